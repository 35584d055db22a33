"""Checkpoints written in the background, while training goes on."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bpt_rl.training.checkpoint import mark_best, save_checkpoint
from bpt_rl.training.state import TrainState
from bpt_rl.types import UserError


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time, in a thread of its own.

    The state is copied to the host before `save` returns, as the next gradient step writes over it. What goes wrong in
    the thread is raised by the next call.

    Args:
        folder: of all checkpoints of the run.
        identity: of the agent; see `save_checkpoint`.
        keep: how many of the newest are kept, whatever they are called.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, keep: int):
        self._folder, self._identity, self._keep = Path(folder).resolve(), identity, keep
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def save(
        self, state: TrainState, *, names: Sequence[str] = ("last",), notes: Mapping[str, Any] | None = None
    ) -> None:
        """Begins to write a checkpoint, once the one before is written.

        Args:
            state: read, not consumed; waits for the step to finish.
            names: what the checkpoint is called.
            notes: JSON values for whoever continues from it.

        Raises:
            UserError: the one before could not be written; or parameters are not finite: the last good one stays.
        """
        self.wait()
        copied = jax.tree.map(lambda leaf: np.array(leaf), state)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(copied.params)):
            raise UserError(
                f"parameters are not finite after gradient step {copied.step}, so they are not saved; train with a "
                f"lower optimizer.learning_rate"
            )
        self._writing = self._executor.submit(
            save_checkpoint, self._folder, copied, self._identity, names=names, notes=notes, keep=self._keep
        )

    def mark_best(self, value: float) -> None:
        """Calls the checkpoint that was saved last `best`, too.

        Args:
            value: what makes it the best.
        """
        self.wait()
        mark_best(self._folder, value)

    def wait(self) -> Path | None:
        """Waits until the last checkpoint is on disk and returns its folder; None if there is none."""
        return self._writing.result() if self._writing is not None else None

    def close(self) -> None:
        """Waits for what is being written; nothing may be saved afterwards.

        Raises:
            UserError: the last one could not be written.
        """
        self._executor.shutdown(wait=True)
        self.wait()
