"""Metrics as TensorBoard event files."""

from collections.abc import Mapping
from pathlib import Path


class TensorboardTracker:
    """Writes scalars with tensorboardX, which needs neither TensorFlow nor an account.

    Args:
        folder: of the event files; made if it is missing.
        resume_step: steps after this one that earlier event files hold are hidden; 0 hides nothing.

    Raises:
        ModuleNotFoundError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, *, resume_step: int = 0):
        from tensorboardX import SummaryWriter

        purge_step = resume_step + 1 if resume_step else None
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Writes one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is still held back."""
        self._writer.close()
