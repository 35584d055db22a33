"""What a run that is gone on with has behind it: its newest checkpoint, and which rows of its tables still count."""

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from bpt_rl.types import UserError
from experiments import run_directory
from experiments.fitting import Past, Trainable
from experiments.schema import TrainConfig

LOG = logging.getLogger(__name__)


def past(config: TrainConfig, trainable: Trainable, folder: Path, *, identity: str) -> Past | None:
    """Returns what an unfinished run has behind it, and drops rows of what will be done again.

    Args:
        config: of the run.
        trainable: as it is before its first gradient step.
        folder: the run directory.
        identity: of the run; its checkpoints have it in their notes.

    Returns:
        None where the run came to no checkpoint.

    Raises:
        UserError: no checkpoint is whole, or they are another run's; or a table of the run is damaged.
    """
    from bpt_rl.tracking.csv_tracker import logged_steps
    from bpt_rl.training.checkpoint import restore_newest

    checkpoints = folder / run_directory.CHECKPOINTS
    newest = restore_newest(checkpoints, trainable.state, trainable.agent.identity)
    if newest is None:
        run_directory.keep_episodes(folder / run_directory.EPISODES, 0)
        return None
    _require_notes(checkpoints, newest.notes, identity)
    step, keeps_table = int(newest.state.step), "csv" in config.tracker.kinds
    logged = logged_steps(folder / run_directory.METRICS) if keeps_table else []
    # The row is written last; the summary needs the last evaluation, which only playing it again brings back.
    is_done = step in logged and step < config.training.steps and not newest.went_back
    found = Past(newest.state, newest.notes, newest.best_value, "row" not in newest.notes or is_done)
    played = run_directory.keep_episodes(folder / run_directory.EPISODES, found.kept_step)
    training = config.training
    if keeps_table:
        every = (training.log_every, training.evaluate_every, training.checkpoint_every)
        _warn(folder / run_directory.METRICS, found.kept_step, every, logged)
    if config.env is not None:
        _warn(folder / run_directory.EPISODES, found.kept_step, (training.evaluate_every,), played)
    LOG.info(f"going on with the run in {folder} after gradient step {step}")
    return found


def _warn(path: Path, last_step: int, every: tuple[int, ...], steps: Collection[int]) -> None:
    """Says so where rows up to a gradient step are gone: what is done already is not done again for them."""
    due = {step for period in every if period for step in range(period, last_step + 1, period)}
    gone = sorted(due - set(steps))
    if gone:
        LOG.warning(
            f"{path} lacks the rows of {len(gone)} gradient steps up to {last_step}, the first of them {gone[0]}: it "
            f"was changed or damaged, and they do not come back"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(number) for number in value.values())


def _is_list_of(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(is_one(one) for one in value)


# What the notes of a checkpoint may hold; what each says is told in `fitting._Observer`.
NOTES: Mapping[str, Callable[[Any], bool]] = {
    "run": lambda value: isinstance(value, str),
    "row": _is_metrics,
    "stretch": _is_list_of(_is_metrics),
    "seconds": _is_list_of(_is_number),
    "skipped": lambda value: isinstance(value, int),
}


def _require_notes(checkpoints: Path, notes: Mapping[str, Any], identity: str) -> None:
    """Refuses notes that a training has not written, and those of another run.

    Raises:
        UserError: says which.
    """
    for name, value in notes.items():
        if name not in NOTES or not NOTES[name](value):
            raise UserError(
                f"the newest checkpoint in {checkpoints} has a note {name!r} as no training writes it; copy the run "
                f"again from where it was trained, or train again"
            )
    if notes.get("run") != identity:
        raise UserError(
            f"the newest checkpoint in {checkpoints} is of another run: of other options, another seed or other data; "
            f"copy the run again from where it was trained, or train again"
        )
