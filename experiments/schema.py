"""What each entry point can be told: the dataclasses of all rooms, composed and registered with Hydra.

Hydra checks names and types against these; each room's own checks run when `to_config` turns the result into real
objects. Below that nobody sees a DictConfig.
"""

import math
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agents.config import AgentConfig
from bpt_rl.data.config import ContextConfig, DatasetConfig
from bpt_rl.evaluation.config import EvaluationConfig
from bpt_rl.nn.config import BackboneConfig
from bpt_rl.ops.config import Schedule
from bpt_rl.tracking.config import TrackerConfig
from bpt_rl.training.config import OptimizerConfig, TrainingConfig
from envs.config import EnvConfig
from experiments.measurements.config import DEVICES, MeasurementConfig

CHECKPOINTS = ("last", "best")
RESUME = ("never", "auto")
POLICIES = ("learners", "random", "scripted", "agent")
Config = TypeVar("Config")


@dataclass(unsafe_hash=True)
class TrainConfig:
    """One run: an agent, its data, how it is trained, and where it is evaluated.

    Attributes:
        agent: which agent.
        context: what goes into a window.
        dataset: which episodes.
        backbone: size of the network.
        schedule: how attention is computed.
        env: where the agent is evaluated; null trains only.
        optimizer: the optimiser.
        training: how long, and how often to look.
        evaluation: how the agent is evaluated.
        tracker: where the numbers go.
        seed: of parameters, batches and dropout, and of what is generated.
        video: environments to film in the last evaluation, the first so many; 0 films nothing.
        resume: what to do where the run directory holds a run: `never` leaves it alone and stops, `auto` goes on with
            it from its newest whole checkpoint (and does nothing if it is finished).
    """

    agent: AgentConfig = field(default_factory=AgentConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    schedule: Schedule = field(default_factory=Schedule)
    env: EnvConfig | None = field(default_factory=EnvConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    seed: int = 0
    video: int = 0
    resume: str = "never"

    def __post_init__(self) -> None:
        """Refuses unknown names and values out of range."""
        if self.resume not in RESUME:
            raise ValueError(f"resume must be {' or '.join(RESUME)}, got {self.resume!r}")
        for name in ("seed", "video"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(unsafe_hash=True)
class EvaluationChanges:
    """What an evaluation does differently from the run's own; null leaves it as it was.

    Attributes:
        episodes: m, episodes played in a row in each environment.
        rollouts_per_task: environments per task.
        target_returns: returns to ask for, one evaluation each, raw units.
        temperature: 0 acts greedily, 1 samples from the agent's distribution.
        seed: of the environments and the sampled actions.
        cache: how keys and values are kept while acting: `compute` (the network's type), `bfloat16` or `int8`.
    """

    episodes: int | None = None
    rollouts_per_task: int | None = None
    target_returns: list[float] | None = field(default=None, hash=False)
    temperature: float | None = None
    seed: int | None = None
    cache: str | None = None


@dataclass(unsafe_hash=True)
class EnvChanges:
    """What is different about the environment of an evaluation; null leaves it as it was in training.

    Attributes:
        name: `dark_room`, `cue_bandit` (and other families), a Gymnasium id, or `dm_control:DOMAIN/TASK`.
        max_episode_steps: environment steps after which an episode is cut.
        d4rl_rewards: rewards of the Adroit hand, and the end of its pen task, as D4RL recorded them.
        options: keyword arguments of a simulator, all of them: those of the training are forgotten.
        rescale_actions: a simulator is told actions in [-1, 1], which are rescaled to its own bounds.
        workers: processes that step the environments of a simulator, several in each; 0 steps them in this one.
        worker_timeout: seconds after which a worker process that does not answer is ended, and the evaluation with it.
    """

    name: str | None = None
    max_episode_steps: int | None = None
    d4rl_rewards: bool | None = None
    # Any, as OmegaConf cannot put a dictionary where an optional one is null.
    options: Any = field(default=None, hash=False)
    rescale_actions: bool | None = None
    workers: int | None = None
    worker_timeout: float | None = None


@dataclass(unsafe_hash=True)
class EvaluateConfig:
    """One evaluation of a run that is there already.

    Attributes:
        run: the run directory.
        checkpoint: `last`, or `best` (highest late return at an evaluation during training).
        env: what is different about the environment.
        evaluation: what is different about the evaluation.
        video: environments to film, the first so many; 0 films nothing.
    """

    run: str = ""
    checkpoint: str = "last"
    env: EnvChanges = field(default_factory=EnvChanges)
    evaluation: EvaluationChanges = field(default_factory=EvaluationChanges)
    video: int = 0

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not self.run:
            raise ValueError("run is empty; expected run=RUN_DIR, a directory that experiments.train wrote")
        if self.checkpoint not in CHECKPOINTS:
            raise ValueError(f"checkpoint must be {' or '.join(CHECKPOINTS)}, got {self.checkpoint!r}")
        if self.video < 0:
            raise ValueError(f"video must be at least 0, got {self.video}")


@dataclass(unsafe_hash=True)
class CollectConfig:
    """One dataset: who plays, where, and how many episodes of it are kept.

    Attributes:
        path: folder to write, a store for `dataset=recorded dataset.id=...`; must not exist.
        env: the environment, or the embedded family.
        policy: who plays: `learners` (of an embedded family, from clumsy to good), `random`, `scripted` (a rule written
            by hand, where there is one) or `agent` (of a run).
        run: directory of the run whose agent plays.
        checkpoint: of the run: `last`, or `best`.
        episodes: how many, rounded up to the same number in every row; learners play their own number.
        rows: environments side by side, the same number for each task and at least one; `env.workers` steps those of a
            simulator in processes.
        noise: of scripted actions: probability of a random one, or standard deviation as a share of the range.
        target_return: what an agent is asked for, raw units; null takes the highest return of its dataset.
        temperature: of an agent: 0 acts greedily, 1 samples from its distribution.
        seed: of environments, policies and learners.
    """

    path: str = ""
    env: EnvConfig = field(default_factory=EnvConfig)
    policy: str = "learners"
    run: str = ""
    checkpoint: str = "last"
    episodes: int = 100
    rows: int = 8
    noise: float = 0.0
    target_return: float | None = None
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses unknown names and values out of range."""
        if not self.path:
            raise ValueError("path is empty; expected path=FOLDER, where the episodes will be written")
        if self.policy not in POLICIES:
            raise ValueError(f"unknown policy {self.policy!r}; known: {', '.join(POLICIES)}")
        if (self.policy == "agent") != bool(self.run):
            raise ValueError(
                f"policy=agent goes with run=RUN_DIR, a directory that experiments.train wrote; got "
                f"policy={self.policy} and run={self.run!r}"
            )
        if self.checkpoint not in CHECKPOINTS:
            raise ValueError(f"checkpoint must be {' or '.join(CHECKPOINTS)}, got {self.checkpoint!r}")
        for name, least in (("episodes", 1), ("rows", 1), ("noise", 0), ("temperature", 0), ("seed", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("noise", "temperature", "target_return"):
            if not math.isfinite(getattr(self, name) or 0):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")


@dataclass(unsafe_hash=True)
class BenchmarkConfig:
    """One run of the benchmark.

    Attributes:
        benchmark: what is measured.
        device: `auto` takes what JAX finds, `cpu` and `gpu` insist; gpu alone also chooses benchmark=gpu.
        tune: measure block sizes instead, and say what to override where the rule's choice is not the best.
        peers: a Python file with other people's layers (`compile_step` and `init`), for the part `peers`; adds it.
    """

    benchmark: MeasurementConfig = field(default_factory=MeasurementConfig)
    device: str = "auto"
    tune: bool = False
    peers: str = ""

    def __post_init__(self) -> None:
        """Refuses unknown names."""
        if self.device not in DEVICES:
            raise ValueError(
                f"device must be {', '.join(DEVICES[:-1])} or {DEVICES[-1]}, got {self.device!r}"
            )


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "collect": CollectConfig,
    "benchmark": BenchmarkConfig,
}


def register() -> None:
    """Tells Hydra the schemas, as `train_schema` and so on."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    for name, schema in SCHEMAS.items():
        node = OmegaConf.structured(schema)
        if name != "evaluate" and "env" in node:
            # Any keyword: what a simulator can be made with is its own affair.
            OmegaConf.set_struct(node.env.options, False)
        ConfigStore.instance().store(name=f"{name}_schema", node=node)


def to_config(composed: Any, schema: type[Config]) -> Config:
    """Returns the real dataclasses of a composed DictConfig; runs their checks.

    Raises:
        ValueError: a value is out of range.
        omegaconf.errors.OmegaConfBaseException: a value is missing, or refers to something that is not there.
    """
    from omegaconf import OmegaConf

    config = OmegaConf.to_object(composed)
    assert isinstance(config, schema)
    return config


def to_yaml(config: Any) -> str:
    """Returns the dataclasses as YAML that `from_yaml` reads."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(text: str, schema: type[Config]) -> Config:
    """Returns the dataclasses that `to_yaml` wrote; errors as for `to_config`, and for what is not plain or whole."""
    from omegaconf import OmegaConf

    from experiments import configuration_checks

    configuration_checks.require_plain(text)
    stored: Any = OmegaConf.create(text)
    whole: Any = OmegaConf.merge(OmegaConf.structured(schema), stored)
    configuration_checks.require_whole(stored, whole)
    return to_config(whole, schema)
