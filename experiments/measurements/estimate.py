"""How far the memory that is estimated before compiling is from what the compiled gradient step says.

Every case is a whole gradient step: agent, loss, AdamW. Nothing is run. But for the demo, no case is one of those that
the factors of `bpt_rl.training._stack_memory` were read off.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.config import AgentConfig
from bpt_rl.nn.config import BackboneConfig
from bpt_rl.ops.config import Schedule
from bpt_rl.types import ActionSpec, ContinuousActions, DiscreteActions, EnvSpec, Window
from experiments.measurements.job import Job
from experiments.measurements.tables import Row, Table, listed, number, text

if TYPE_CHECKING:
    from agents.registry import Agent
    from bpt_rl.training.compilation import CompiledStep
    from bpt_rl.training.step_size import StepSize

MIB = 2**20
EPISODES, EPISODE_STEPS = 8, 200
SMALL = {"num_layers": 3, "width": 128, "residual_dropout": 0.1, "embedding_dropout": 0.1}
INPUT = {"save": "input"}
TWO, THREE, HAND = (ContinuousActions((-1.0,) * width, (1.0,) * width) for width in (2, 3, 28))


@dataclass(frozen=True)
class Case:
    """One gradient step; what is not said is as in the configurations of a training.

    Attributes:
        num_rows: of the batch.
        row_steps: environment steps of a row.
        backbone: options.
        schedule: options.
        agent: options.
        observation_size: O.
        actions: kind and width.
        accumulate: parts of the batch.
        skips: whether bad batches are skipped.
    """

    num_rows: int
    row_steps: int
    backbone: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    observation_size: int = 11
    actions: ActionSpec = THREE
    accumulate: int = 1
    skips: bool = False

    def build(self) -> tuple["Agent", "StepSize"]:
        """Returns the agent and the size of its gradient step."""
        from agents import registry
        from bpt_rl.data.config import ContextConfig
        from bpt_rl.data.normalisation import Normaliser
        from bpt_rl.training.step_size import BatchSize, StepSize

        spec = EnvSpec("case", self.observation_size, self.actions)
        one, episodes = np.ones(self.observation_size, np.float32), EPISODES
        backbone, schedule = BackboneConfig(**self.backbone), Schedule(**self.schedule)
        agent = registry.build(
            AgentConfig(**self.agent),
            spec,
            context=ContextConfig(episodes=episodes),
            backbone=backbone,
            schedule=schedule,
            normaliser=Normaliser(0 * one, one, 1.0, 1.0),
            max_timestep=EPISODE_STEPS,
            seed=0,
        )
        steps = self.num_rows * self.row_steps
        batch = BatchSize(self.num_rows, self.row_steps, episodes, steps, self.accumulate)
        return agent, StepSize.of(agent.model, spec, backbone=backbone, schedule=schedule, batch=batch)

    def compile(self, agent: "Agent") -> "CompiledStep":
        """Returns the compiled gradient step; there is no batch, only its shapes."""
        import jax

        from bpt_rl.training.compilation import compile_train_step
        from bpt_rl.training.config import OptimizerConfig
        from bpt_rl.training.loop import make_train_step
        from bpt_rl.training.optimizer import build_optimizer
        from bpt_rl.training.state import init_state

        def column(*shape: int, dtype: type = np.float32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.num_rows, self.row_steps, *shape), dtype)

        tx = build_optimizer(OptimizerConfig(), 1000)
        graphdef, state = init_state(agent.model, tx, num_devices=self.schedule.get("devices", 1))
        step = make_train_step(
            graphdef, agent.loss, tx, accumulate=self.accumulate, skips_bad_batches=self.skips
        )
        counts = {name: column(dtype=np.int32) for name in ("timesteps", "episode_index", "segments")}
        is_discrete = isinstance(self.actions, DiscreteActions)
        batch = Window(
            observations=column(self.observation_size),
            actions=column(dtype=np.int32) if is_discrete else column(self.actions.width),
            rewards=column(),
            returns_to_go=column(),
            completions=column(),
            loss_weights=column(),
            **counts,
        )
        return compile_train_step(step, state, batch)


CASES = {
    "demo": Case(24, 160, observation_size=81, actions=DiscreteActions(5)),
    "demo, interleaved": Case(
        8, 160, agent={"layout": "interleaved"}, observation_size=81, actions=DiscreteActions(5)
    ),
    "demo, vanilla": Case(
        24, 160, schedule={"name": "vanilla"}, observation_size=81, actions=DiscreteActions(5)
    ),
    "demo, 15 bins, 4 parts": Case(
        24, 160, agent={"head": "discretised", "num_bins": 15}, actions=TWO, accumulate=4
    ),
    "rows of 64": Case(60, 64, {"num_layers": 3, "num_heads": 2}, INPUT),
    "rows of 64, 3 parts": Case(60, 64, {"width": 96}, accumulate=3, skips=True),
    "rows of 50, vanilla": Case(30, 50, {"num_layers": 4, "width": 96}, {"name": "vanilla"}, accumulate=2),
    "rows of 100, chunks": Case(20, 100, {"num_layers": 4, "width": 96}, {"name": "memory_efficient"}),
    "64 rows of 20 steps": Case(64, 20, SMALL | {"num_heads": 1}, agent={"layout": "interleaved"}),
    "rows of 300, 1 head": Case(24, 300, SMALL | {"num_heads": 1}),
    "rows of 20, 6 layers": Case(50, 20, {"num_layers": 6, "width": 256, "num_heads": 8}),
    "hopper": Case(1, 4000, SMALL),
    "hopper, vanilla": Case(1, 4000, SMALL, {"name": "vanilla"}),
    "hopper, interleaved": Case(1, 4000, SMALL, INPUT, {"layout": "interleaved"}),
    "hopper, interleaved, vanilla": Case(3, 200, SMALL, {"name": "vanilla"}, {"layout": "interleaved"}),
    "hopper, attention dropout": Case(2, 1500, SMALL | {"attention_dropout": 0.1}, {"name": "vanilla"}),
    "hand, gaussian": Case(3, 1200, SMALL, agent={"head": "gaussian"}, observation_size=39, actions=HAND),
    "hand, 21 bins": Case(
        2, 1200, SMALL | {"width": 192}, INPUT, {"head": "discretised"}, observation_size=39, actions=HAND
    ),
    "1K, width 256": Case(1, 1024, {"num_layers": 3, "width": 256, "num_heads": 4}, INPUT),
    "2K, bfloat16": Case(1, 2048, {"num_layers": 3, "dtype": "bfloat16"}),
    "8K, hidden": Case(1, 8192, {"num_layers": 4}, {"save": "hidden", "segment_layers": 2}),
    "8K, 1 layer": Case(1, 8192, {"num_layers": 1, "width": 96}),
    "8K, chunks": Case(1, 8192, {"num_layers": 2, "width": 96, "num_heads": 2}, {"name": "memory_efficient"}),
    "20K, one head at a time": Case(
        1, 20000, {"num_layers": 5, "width": 64, "num_heads": 8}, INPUT | {"heads_at_once": 1}
    ),
    "16K, 3 of 6 heads share": Case(
        1, 16384, {"num_layers": 4, "width": 96, "num_heads": 6, "num_kv_heads": 3, "norm": "layer"}, INPUT
    ),
    "8K, bfloat16": Case(1, 8192, {"num_layers": 6, "width": 96, "dtype": "bfloat16"}, INPUT),
    "8K, bfloat16, output": Case(2, 4096, {"num_layers": 3, "dtype": "bfloat16"}, {"save": "output"}),
    "8K, small blocks": Case(1, 8192, {"num_layers": 4}, INPUT | {"query_block": 128, "key_block": 256}),
    "32K, output": Case(1, 32768, {"num_layers": 5}, {"save": "output"}),
    "32K, int8": Case(1, 32768, SMALL | {"num_layers": 6}, INPUT | {"saved_type": "int8"}),
    "40K, saved in bfloat16": Case(
        1, 40000, SMALL | {"num_layers": 5}, INPUT | {"saved_type": "bfloat16", "heads_at_once": 1}
    ),
    "32K, segments": Case(1, 32768, SMALL | {"num_layers": 6}, INPUT | {"segment_layers": 3}),
    "48K, smallest": Case(
        1,
        49152,
        {"num_layers": 8, "num_heads": 8},
        INPUT | {"saved_type": "int8", "heads_at_once": 1, "segment_layers": 3},
    ),
    "32K in 4 rows, 2 parts": Case(4, 8192, {"num_layers": 4, "window": 1000}, INPUT, accumulate=2),
    "16K, bfloat16, 2 heads": Case(
        1, 16384, {"num_layers": 3, "num_heads": 8, "dtype": "bfloat16"}, INPUT | {"heads_at_once": 2}
    ),
    "8 rows, 2 devices": Case(
        8, 480, schedule={"devices": 2}, observation_size=81, actions=DiscreteActions(5)
    ),
    "32K, 2 devices": Case(1, 32768, {"num_layers": 5}, INPUT | {"devices": 2}),
    "64K, 8 heads": Case(1, 65536, {"num_layers": 2, "width": 128, "num_heads": 8}),
}


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per case, of the first so many where the options say so."""
    for name, case in list(CASES.items())[: job.config.cases or None]:
        yield row(name, case)


def row(name: str, case: Case) -> dict[str, Any]:
    """Returns the estimate of a case beside what the compiled step says, in MiB, and the seconds of both."""
    from bpt_rl.training.memory import estimate

    agent, size = case.build()
    start = time.perf_counter()
    estimated = estimate(size)
    seconds = time.perf_counter() - start
    compiled = case.compile(agent)
    assert compiled.memory is not None
    return {
        "case": name,
        "tokens": case.num_rows * size.row_tokens,
        "estimated_mib": estimated.peak_bytes / MIB,
        "compiled_mib": compiled.memory.peak_bytes / MIB,
        "error_percent": 100 * (estimated.peak_bytes / compiled.memory.peak_bytes - 1),
        "moment": estimated.moment,
        "estimate_s": seconds,
        "compile_s": compiled.seconds,
    }


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns one line per case."""
    columns = {
        "case": text("case"),
        "tokens": number("tokens", 0),
        "estimated, MiB": number("estimated_mib", 1),
        "compiled, MiB": number("compiled_mib", 1),
        "error, %": number("error_percent", 1),
        "largest at": text("moment"),
        "compiled in s": number("compile_s", 1),
    }
    return [listed("Memory of a gradient step, estimated and compiled", rows, columns)]
