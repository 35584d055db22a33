"""A tiny dataset, agents that are built for it at once, and batches of it."""

import functools

from agents import registry
from agents.config import AgentConfig
from agents.registry import Agent
from bpt_rl.data.config import ContextConfig
from bpt_rl.data.normalisation import fit_normaliser
from bpt_rl.data.sampling import BatchSampler
from bpt_rl.nn.config import BackboneConfig
from bpt_rl.ops.config import Schedule
from bpt_rl.testing import FIVE_ARMS, tiny_source
from bpt_rl.types import ActionSpec, Window

BACKBONE = BackboneConfig(num_layers=1, width=8, num_heads=2, ffn_multiple=2)


def episodes_of(name: str) -> int:
    """Returns how many episodes of context the agent gets here."""
    return 3 if name == "agentic_transformer" else 1


@functools.cache
def build(
    config: AgentConfig,
    *,
    actions: ActionSpec = FIVE_ARMS,
    backbone: BackboneConfig = BACKBONE,
    schedule: Schedule | None = None,
    context: ContextConfig | None = None,
    seed: int = 0,
) -> Agent:
    """Returns the agent of a configuration; nobody may change its model."""
    source = tiny_source(actions=actions)
    return registry.build(
        config,
        source.spec,
        context=context or ContextConfig(episodes=episodes_of(config.name)),
        backbone=backbone,
        schedule=schedule or Schedule("vanilla"),
        normaliser=fit_normaliser(source, normalise_observations=True),
        max_timestep=6,
        seed=seed,
    )


def batch(name: str, *, actions: ActionSpec = FIVE_ARMS, loss_episodes: str = "all") -> Window:
    """Returns a batch with packed chains and padding."""
    context = ContextConfig(episodes=episodes_of(name), steps=14, draw="uniform")
    sampler = BatchSampler(
        tiny_source(actions=actions), context, batch_steps=28, loss_episodes=loss_episodes, seed=3
    )
    return sampler.batch(0)
