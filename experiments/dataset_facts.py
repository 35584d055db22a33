"""What a run remembers of its dataset, so that its agent can be built again where the dataset is not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpt_rl.types import EnvSpec, UserError

if TYPE_CHECKING:
    from agents.registry import Agent
    from bpt_rl.data.normalisation import Normaliser
    from experiments.schema import TrainConfig
    from experiments.sources import Dataset

FILE = "dataset.json"


@dataclass(frozen=True, eq=False)
class DatasetFacts:
    """The numbers of a dataset that an agent and its evaluation depend on.

    Attributes:
        spec: observations and actions; the environment's own actions where it is known.
        normaliser: scales.
        max_timestep: longest episode of the dataset or the environment, in environment steps.
        mean_return: of the episodes that are learned from, raw units.
        highest_return: of the episodes that are learned from, raw units.
        fingerprint: of the dataset's contents.
    """

    spec: EnvSpec
    normaliser: "Normaliser"
    max_timestep: int
    mean_return: float
    highest_return: float
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values from which `from_json` makes the same facts."""
        from bpt_rl.data.episodes import spec_to_json

        return {
            "spec": spec_to_json(self.spec),
            "normaliser": self.normaliser.to_json(),
            "max_timestep": self.max_timestep,
            "mean_return": self.mean_return,
            "highest_return": self.highest_return,
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DatasetFacts":
        """Returns the facts that `to_json` wrote down."""
        from bpt_rl.data.episodes import spec_from_json
        from bpt_rl.data.normalisation import Normaliser

        return cls(
            spec=spec_from_json(values["spec"]),
            normaliser=Normaliser.from_json(values["normaliser"]),
            max_timestep=int(values["max_timestep"]),
            mean_return=float(values["mean_return"]),
            highest_return=float(values["highest_return"]),
            fingerprint=str(values["fingerprint"]),
        )


def gather(dataset: "Dataset", env_spec: EnvSpec | None, *, normalise_observations: bool) -> DatasetFacts:
    """Returns the facts of a dataset, for an agent that will act in an environment of `env_spec` (if any)."""
    from bpt_rl.data.normalisation import fit_normaliser

    source, limit = dataset.source, 0
    spec = source.spec
    if env_spec is not None:
        spec = EnvSpec(env_spec.name, spec.observation_size, env_spec.actions, env_spec.max_episode_steps)
        limit = env_spec.max_episode_steps or 0
    return DatasetFacts(
        spec=spec,
        normaliser=fit_normaliser(
            source, normalise_observations=normalise_observations, episodes=dataset.training
        ),
        max_timestep=max(int(source.lengths.max()), limit),
        mean_return=float(source.returns[dataset.training].mean()),
        highest_return=float(source.returns[dataset.training].max()),
        fingerprint=dataset.fingerprint,
    )


def read(folder: Path) -> DatasetFacts:
    """Returns the facts that a run left in its directory.

    Raises:
        UserError: the file is missing or broken.
    """
    path = folder / FILE
    try:
        return DatasetFacts.from_json(json.loads(path.read_text())["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); expected what experiments.train writes there: "
            f"copy the whole run directory, or train again"
        ) from error


def build_agent(config: "TrainConfig", facts: DatasetFacts) -> "Agent":
    """Returns the agent of a run, with its initial parameters.

    Raises:
        UserError: the options do not make an agent.
    """
    from agents import registry

    try:
        return registry.build(
            config.agent,
            facts.spec,
            context=config.context,
            backbone=config.backbone,
            schedule=config.schedule,
            normaliser=facts.normaliser,
            max_timestep=facts.max_timestep,
            seed=config.seed,
        )
    except ValueError as error:  # Sizes and names that only the network can judge.
        raise UserError(f"no agent can be built from these options: {error}") from error
