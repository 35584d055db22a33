"""Run directories that nobody trained: the files of a run, with returns of our choice."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from bpt_rl.data.config import ContextConfig
from bpt_rl.evaluation.config import EvaluationConfig
from envs.config import EnvConfig
from experiments import run_directory, schema
from experiments.schema import TrainConfig


def config(*, episodes: int, seed: int = 0, env: str = "dark_room", num_positions: int = 8) -> TrainConfig:
    """Returns a configuration with a context of `episodes`."""
    return TrainConfig(
        context=ContextConfig(episodes=episodes),
        env=EnvConfig(env, split_seed=seed),
        evaluation=EvaluationConfig(episodes=num_positions, target_returns=[4.0]),
        seed=seed,
    )


def write(folder: Path, config: TrainConfig, returns: dict[float, np.ndarray], **summary) -> Path:
    """Writes a run whose rows (one per task, 3 rollouts each) earned `returns` `[tasks * 3, m]` for each target."""
    folder.mkdir(parents=True)
    (folder / run_directory.CONFIG).write_text(schema.to_yaml(config))
    for target, matrix in returns.items():
        rows = [
            {
                "gradient_step": config.training.steps,
                "seed": config.seed,
                "task": row // 3,
                "row": row,
                "position": position,
                "target_return": target,
                "return": float(earned),
                "normalised_score": None,
                "length": 4,
                "is_terminal": False,
            }
            for (row, position), earned in np.ndenumerate(matrix)
        ]
        run_directory.append_episodes(folder / run_directory.EPISODES, rows)
    headline = max(returns)
    late = returns[headline][:, -max(1, returns[headline].shape[1] // 4) :].mean()
    values = {
        "context_episodes": config.context.episodes,
        "target_return": headline,
        "late": {"mean": float(late)},
        "optimal_return": 4.0,
        "dataset_mean_return": 2.0,
        "batch_steps": 2048,
        "parameters": 1000,
        "peak_memory_bytes": 2**20 * config.context.episodes,
        "seconds_per_gradient_step": 0.01 * config.context.episodes,
    }
    run_directory.write_json(folder / run_directory.SUMMARY, values | summary)
    return folder


def rising(*, top: float, num_tasks: int = 5, num_positions: int = 8, seed: int = 0) -> np.ndarray:
    """Returns of rows that rise along the chain from 0.8 to `top`, noisily."""
    rng = np.random.default_rng(seed)
    mean = np.linspace(0.8, top, num_positions)[None] + 0.2 * rng.normal(size=(num_tasks, 1)).repeat(
        3, axis=0
    )
    return mean + 0.1 * rng.normal(size=(3 * num_tasks, num_positions))


def with_agent(config: TrainConfig, name: str, top_fraction: float = 1.0) -> TrainConfig:
    """Returns the configuration with another agent."""
    return replace(config, agent=replace(config.agent, name=name, top_fraction=top_fraction))
