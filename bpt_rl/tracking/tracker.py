"""What a tracker is, the tracker that keeps nothing, and the one that tells several."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bpt_rl.tracking.config import TrackerConfig
from bpt_rl.types import UserError

# What each kind needs beyond the standard library; the extra that brings it has the kind's name.
LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


@runtime_checkable
class Tracker(Protocol):
    """Keeps numbers by gradient step."""

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Keeps `metrics` as of `step`; later calls have later steps, and may bring other metrics."""
        ...

    def close(self) -> None:
        """Writes what is still held back; nothing may be logged afterwards."""
        ...


class NullTracker:
    """Keeps nothing."""

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Forgets them."""
        del step, metrics

    def close(self) -> None:
        """Has nothing to write."""


class CompositeTracker:
    """Tells several trackers the same.

    Args:
        trackers: told in this order.
    """

    def __init__(self, trackers: Sequence[Tracker]):
        self.trackers = tuple(trackers)

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Tells every tracker."""
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        """Closes every tracker."""
        for tracker in self.trackers:
            tracker.close()


def require_libraries(config: TrackerConfig) -> None:
    """Refuses trackers whose libraries are not installed; worth asking before anything else is done.

    Raises:
        UserError: names the extra that brings the library.
    """
    for kind in config.kinds:
        try:
            if kind in LIBRARIES:
                import_module(LIBRARIES[kind])
        except ModuleNotFoundError as error:
            raise UserError(
                f"tracker {kind!r} needs the library {error.name!r}, which is not installed; "
                f"pip install -e '.[{kind}]', or leave it out of tracker.kinds"
            ) from error


def build_tracker(
    config: TrackerConfig, folder: Path, *, run_config: Mapping[str, Any], resume_step: int = 0
) -> Tracker:
    """Returns the trackers of a run as one.

    Args:
        config: which.
        folder: the run directory.
        run_config: the run's whole configuration, for trackers that show it.
        resume_step: gradient steps of the checkpoint that the run continues from; 0 starts the record anew.

    Raises:
        UserError: a tracker's library is not installed; names the extra that brings it.
    """
    require_libraries(config)
    trackers: list[Tracker] = []
    try:
        for kind in config.kinds:
            trackers.append(_build(kind, config, Path(folder), run_config, resume_step))
    except BaseException:  # One that cannot begin leaves no file of the others open.
        CompositeTracker(trackers).close()
        raise
    if not trackers:
        return NullTracker()
    return trackers[0] if len(trackers) == 1 else CompositeTracker(trackers)


def _build(
    kind: str, config: TrackerConfig, folder: Path, run_config: Mapping[str, Any], resume_step: int
) -> Tracker:
    if kind == "csv":
        from bpt_rl.tracking.csv_tracker import CsvTracker

        return CsvTracker(folder / "metrics.csv", resume_step=resume_step)
    if kind == "tensorboard":
        from bpt_rl.tracking.tensorboard_tracker import TensorboardTracker

        return TensorboardTracker(folder / "tensorboard", resume_step=resume_step)
    from bpt_rl.tracking.wandb_tracker import WandbTracker

    return WandbTracker(folder, project=config.project, run_config=run_config, resume=resume_step > 0)
