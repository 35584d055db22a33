"""Plays an agent in the environment of its run and sums up what it earned."""

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from bpt_rl.data.config import ContextConfig
from bpt_rl.disk import writing
from bpt_rl.evaluation.config import EvaluationConfig
from bpt_rl.types import EnvSpec, Policy, UserError
from envs.config import EnvConfig

if TYPE_CHECKING:
    from bpt_rl.evaluation.rollout import FinishedEpisode
    from experiments.dataset_facts import DatasetFacts

FIVE = ("first", "last", "late", "mean", "best")


@dataclass(frozen=True, eq=False)
class Played:
    """What an agent earned when it was asked for one return.

    Attributes:
        target_return: what it was asked for, raw units.
        rows: one record per episode, for evaluation.csv.
        summary: the five numbers, `by_position`, and the same of normalised scores (None where no reference is known).
    """

    target_return: float
    rows: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """Where an agent plays, and how.

    Attributes:
        env: the environment, or family.
        evaluation: how many episodes, where, asked for what.
        seed: of the training run, for the records.
    """

    env: EnvConfig
    evaluation: EvaluationConfig
    seed: int

    def tasks(self) -> Int[np.ndarray, " B"]:
        """Returns the task of every row: each held-out task as often as there are rollouts of it."""
        from envs import registry

        return np.repeat(registry.held_out_tasks(self.env), self.evaluation.rollouts_per_task)

    def play(self, policy: Policy, target_return: float, *, films: Path, num_filmed: int = 0) -> Played:
        """Plays all chains and returns what came of them.

        Args:
            policy: what plays.
            target_return: what to ask for, raw units.
            films: folder for videos.
            num_filmed: how many of the first rows are filmed.
        """
        from bpt_rl.evaluation.rollout import rollout
        from bpt_rl.evaluation.scores import episode_rows, return_matrix
        from bpt_rl.tracking.progress import show_progress

        tasks, num_episodes = self.tasks(), self.evaluation.episodes
        finished: list[FinishedEpisode] = []
        earned = 0.0
        total, name = len(tasks) * num_episodes, f"evaluating, target {target_return:g}"
        with (
            writing(films),  # On closing, what was filmed is written.
            contextlib.closing(self._environment(tasks, films, num_filmed)) as env,
            show_progress(name, total, rate_name="episodes") as progress,
        ):
            for episode in rollout(
                policy,
                env,
                episodes_per_row=num_episodes,
                target_return=target_return,
                seed=self.evaluation.seed,
                name=self.env.name,
            ):
                finished.append(episode)
                earned += episode.total_return
                progress.update(len(finished), {"mean return": earned / len(finished)})
        normalise = lambda total_return: score(self.env, total_return)
        rows = episode_rows(finished, seed=self.seed, tasks=tasks, normalise=normalise)
        return Played(target_return, rows, summarise(return_matrix(finished), tasks, normalise))

    def require_pictures(self) -> None:
        """Takes one picture and throws it away.

        Raises:
            UserError: the environment cannot be rendered here, or a library is missing.
        """
        with (
            tempfile.TemporaryDirectory() as films,
            contextlib.closing(self._environment(self.tasks()[:1], Path(films), 1)) as env,
        ):
            env.reset(seed=self.evaluation.seed)

    def _environment(self, tasks: Int[np.ndarray, " B"], films: Path, num_filmed: int) -> Any:
        from envs import registry
        from envs.videos import FilmedRows

        num_filmed = min(num_filmed, len(tasks))
        env = registry.make_vector(self.env, len(tasks), tasks=tasks, num_rendered=num_filmed)
        return FilmedRows(env, films, num_rows=num_filmed) if num_filmed else env


def score(env: EnvConfig, total_return: float) -> float | None:
    """Returns the normalised score; None without a reference, or where the rewards are not the reference's."""
    from envs.reference_scores import normalised_score, pays_as_the_reference
    from envs.wrappers import has_d4rl_reward

    env_id = env.name.rpartition(":")[2]  # Gymnasium takes `package:id`, too.
    if has_d4rl_reward(env_id) and not env.d4rl_rewards:
        return None
    if not pays_as_the_reference(env.name, options=env.options, max_episode_steps=env.max_episode_steps):
        return None
    return normalised_score(env.name, total_return)


def summarise(
    returns: np.ndarray, tasks: Int[np.ndarray, " B"], normalise: Callable[[float], float | None]
) -> dict[str, Any]:
    """Returns the five numbers and `by_position`, raw; and under `normalised` as scores, None without a reference."""
    from bpt_rl.evaluation.scores import summarise_chains

    zero, one = normalise(0.0), normalise(1.0)
    summary = summarise_chains(returns, tasks)
    if zero is None or one is None:
        return summary | {"normalised": None}
    return summary | {"normalised": summarise_chains(zero + (one - zero) * returns, tasks)}


def targets(evaluation: EvaluationConfig, facts: "DatasetFacts") -> tuple[list[float], str]:
    """Returns the returns to ask for, the highest first, and where they come from."""
    if evaluation.target_returns:
        return sorted(set(evaluation.target_returns), reverse=True), "evaluation.target_returns"
    return [facts.highest_return], "the highest return in the dataset"


def require_fits(env_spec: EnvSpec, facts: "DatasetFacts") -> None:
    """Refuses to play an agent where it cannot act, or longer than it can tell the time.

    Raises:
        UserError: spaces or lengths do not fit.
    """
    from envs import fits

    fits.check_fits(facts.spec, env_spec)
    if (env_spec.max_episode_steps or 0) > facts.max_timestep:
        raise UserError(
            f"an episode of {env_spec.name} may take {env_spec.max_episode_steps} steps, but the agent was built for "
            f"{facts.max_timestep}; set env.max_episode_steps={facts.max_timestep}, or train with that environment"
        )


def require_room(context: ContextConfig, facts: "DatasetFacts", *, window: int) -> None:
    """Refuses a context that a single episode of the environment may outgrow.

    A network that sees a `window` of one episode forgets what it no longer sees, however long the episode is.

    Raises:
        UserError: it may.
    """
    forgets = window > 0 and context.episodes == 1
    if 0 < context.steps < facts.max_timestep and not forgets:
        raise UserError(
            f"an episode of the environment may take {facts.max_timestep} steps, but the context holds "
            f"{context.steps}; set context.steps to at least {facts.max_timestep}, or to 0"
        )


def write_rows(path: Path, played: Played, *, gradient_step: int) -> None:
    """Adds the episodes to an evaluation.csv."""
    from experiments.run_directory import append_episodes

    append_episodes(path, [{"gradient_step": gradient_step, **row} for row in played.rows])
