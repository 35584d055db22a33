"""A real gradient step on a real batch: agent, sampler, AdamW; shared by the parts that measure it."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bpt_rl.data.config import ContextConfig
from bpt_rl.ops.config import Schedule
from bpt_rl.types import ContinuousActions, EnvSpec, Episode
from experiments.measurements.config import MeasurementConfig
from experiments.measurements.job import Job

if TYPE_CHECKING:
    from bpt_rl.data.episodes import EpisodeStore
    from bpt_rl.data.sampling import BatchSampler
    from bpt_rl.training.compilation import CompiledStep

# The sizes of Hopper; what the numbers are does not matter to the cost.
SPEC = EnvSpec("noise of Hopper's sizes", 11, ContinuousActions((-1.0,) * 3, (1.0,) * 3))


@dataclass
class GradientStep:
    """A compiled gradient step that keeps its own state from call to call.

    Attributes:
        compiled: the step.
        state: consumed and renewed by every call.
        batch: of every call.
    """

    compiled: "CompiledStep"
    state: Any
    batch: Any

    def __call__(self) -> None:
        """Takes one gradient step and waits for it."""
        import jax

        self.state, metrics = self.compiled.step(self.state, self.batch, jax.random.key(0))
        jax.block_until_ready((self.state, metrics))


def prepare(config: MeasurementConfig, sampler: "BatchSampler", schedule: Schedule) -> GradientStep:
    """Returns the gradient step of the agent that the options say, on the sampler's first batch."""
    from agents import registry
    from agents.config import AgentConfig
    from bpt_rl.data.normalisation import Normaliser
    from bpt_rl.nn.config import BackboneConfig

    one, rate = np.ones(SPEC.observation_size, np.float32), config.training_dropout
    agent = registry.build(
        AgentConfig(layout=config.training_layout),
        SPEC,
        context=context(config),
        backbone=BackboneConfig(
            num_layers=config.training_layers,
            width=config.training_width,
            num_heads=config.training_heads,
            attention_dropout=rate,
            residual_dropout=rate,
            embedding_dropout=rate,
        ),
        schedule=schedule,
        normaliser=Normaliser(0 * one, one, 1.0, 100.0),
        max_timestep=config.training_episode_steps,
        seed=0,
    )
    return gradient_step(agent.model, agent.loss, sampler.batch(0))


def gradient_step(model: Any, loss: Callable[..., Any], batch: Any, **optimizer: Any) -> GradientStep:
    """Returns the compiled gradient step of a model with AdamW on one batch; `optimizer` as in `OptimizerConfig`."""
    from bpt_rl.training.compilation import compile_train_step
    from bpt_rl.training.config import OptimizerConfig
    from bpt_rl.training.loop import make_train_step
    from bpt_rl.training.optimizer import build_optimizer
    from bpt_rl.training.state import init_state

    tx = build_optimizer(OptimizerConfig(**optimizer), 1000)
    graphdef, state = init_state(model, tx)
    return GradientStep(compile_train_step(make_train_step(graphdef, loss, tx), state, batch), state, batch)


def make_sampler(config: MeasurementConfig, store: "EpisodeStore") -> "BatchSampler":
    """Returns batches of one row of whole chains."""
    from bpt_rl.data.sampling import BatchSampler

    steps = config.training_episodes * config.training_episode_steps
    return BatchSampler(store, context(config), batch_steps=steps, loss_episodes="all", seed=0)


def context(config: MeasurementConfig) -> ContextConfig:
    """Returns the context of the training parts."""
    return ContextConfig(episodes=config.training_episodes)


@contextmanager
def scratch_folder(job: Job) -> Iterator[Path]:
    """Yields a folder below the run's that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=job.folder, prefix="scratch-") as folder:
        yield Path(folder)


def write_noise(folder: Path, *, num_steps: int, episode_steps: int) -> "EpisodeStore":
    """Writes a dataset of noise: whole episodes, at least one, of about `num_steps` environment steps in all."""
    from bpt_rl.data.episodes import write_store

    def episodes() -> Iterator[Episode]:
        rng = np.random.default_rng(0)
        for _ in range(max(1, num_steps // episode_steps)):
            yield Episode(
                observations=rng.standard_normal((episode_steps, SPEC.observation_size), np.float32),
                actions=rng.uniform(-1, 1, (episode_steps, SPEC.actions.width)).astype(np.float32),
                rewards=rng.standard_normal(episode_steps, np.float32),
                is_terminal=False,
            )

    return write_store(folder, SPEC, episodes(), metadata={"origin": "noise"})
