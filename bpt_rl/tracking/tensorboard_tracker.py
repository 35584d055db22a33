"""Metrics as TensorBoard event files."""

import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from bpt_rl.disk import writing

VERSION = "brain.Event:2"


class TensorboardTracker:
    """Writes scalars with tensorboardX, which needs neither TensorFlow nor an account.

    What is logged is on disk when `log` returns. tensorboardX's own `SummaryWriter` has a thread write it later: where
    that thread stops, as on a full disk, the writer waits for it without end; and it names and writes files by the wall
    clock, which may jump.

    Args:
        folder: of the event files; made if it is missing. Each tracker adds a file; TensorBoard reads them in the order
            of their names, which are numbered.
        resume_step: steps after this one that earlier event files hold are hidden; 0 hides nothing.

    Raises:
        ModuleNotFoundError: tensorboardX is not installed.
        UserError: the disk is full, or cannot be written; from `log` and `close`, too.
    """

    def __init__(self, folder: Path, *, resume_step: int = 0):
        from tensorboardX.record_writer import RecordWriter

        self._messages = import_module("tensorboardX.proto.event_pb2")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / f"events.out.tfevents.{len(list(folder.glob('*tfevents*'))):06d}"
            self._file = RecordWriter(str(self._path))
        self._write({"file_version": VERSION})
        if resume_step:
            start = self._messages.SessionLog(status=self._messages.SessionLog.START)
            self._write({"step": resume_step + 1, "session_log": start})

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Writes one scalar per metric."""
        from tensorboardX.summary import scalar

        self._write(*({"step": step, "summary": scalar(name, value)} for name, value in metrics.items()))

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._file.close()

    def _write(self, *events: Mapping[str, Any]) -> None:
        """Writes events, and waits until they are on disk."""
        with writing(self._path):
            for event in events:
                message = self._messages.Event(wall_time=time.time(), **event)
                self._file.write(message.SerializeToString())
            self._file.flush()
