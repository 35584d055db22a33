"""Metrics sent to Weights & Biases."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


class WandbTracker:
    """Sends metrics to a run of its own; with WANDB_MODE=offline they stay in `folder`.

    Args:
        folder: the run directory; its name is the run's. The run's id is kept there in `wandb_id`.
        project: of the run.
        run_config: shown beside the run.
        resume: continues the run that began in this folder, if one did.

    Raises:
        ModuleNotFoundError: wandb is not installed.
    """

    def __init__(self, folder: Path, *, project: str, run_config: Mapping[str, Any], resume: bool = False):
        wandb = import_module("wandb")
        kept_id = folder / "wandb_id"
        run_id = kept_id.read_text() if resume and kept_id.exists() else None
        self._run = wandb.init(
            dir=str(folder),
            project=project,
            name=folder.name,
            id=run_id,
            resume="must" if run_id else None,
            config=dict(run_config),
        )
        kept_id.write_text(self._run.id)

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Sends one row."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()
