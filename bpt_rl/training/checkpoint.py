"""Saves and restores training, and refuses a checkpoint that is damaged or another agent's.

A folder of checkpoints holds `index.json`, which says what `last` and `best` are, and one folder per checkpoint:
`checkpoint.json` (step, identity, notes of the run, what the arrays are, a digest of every file), and the arrays in
`params.safetensors` and `training.safetensors`, so that an evaluation reads the parameters alone. Arrays and JSON,
nothing else. A checkpoint is written beside the old one and named when it is whole: a crash at any moment leaves the
old one usable.
"""

import itertools
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bpt_rl.disk import synchronise
from bpt_rl.training import checkpoint_files as files
from bpt_rl.training import checkpoint_index as index
from bpt_rl.training.state import TrainState
from bpt_rl.types import UserError

logger = logging.getLogger(__name__)

FORMAT = 2  # The first one had its arrays in folders of Orbax.
PARAMS = "params"
TRAINING = "training"
SUFFIX = ".safetensors"
MOST_DIFFERENCES = 12
MISSING = "(absent)"


def save_checkpoint(
    folder: Path,
    state: TrainState,
    identity: Mapping[str, Any],
    *,
    names: Sequence[str] = ("last",),
    notes: Mapping[str, Any] | None = None,
    keep: int = 1,
) -> Path:
    """Writes `state` and points `names` to it; older checkpoints that no name points to are removed.

    Args:
        folder: of all checkpoints of a run; made if it is missing.
        state: read, not consumed; waits for the step to finish.
        identity: JSON values that a restore must agree with: all that decides what the parameters compute. The
            schedule is no part of it.
        names: what the checkpoint is called: `last`, `best`, or both.
        notes: JSON values that whoever continues from the checkpoint should know.
        keep: how many of the newest checkpoints are kept, whatever they are called.

    Returns:
        The checkpoint's own folder.

    Raises:
        UserError: the disk is full, or cannot be written; the checkpoints that are there stay as they are.
    """
    folder = Path(folder).resolve()
    step = int(state.step)
    partial = folder / f"step_{step:08d}{files.PARTIAL}"
    trees = {PARAMS: _named(state.params), TRAINING: _named((state.opt_state, state.step))}
    with files.whole_or_nothing(partial):
        for name, arrays in trees.items():
            files.write_arrays(partial / f"{name}{SUFFIX}", arrays)
        files.write_json(
            partial / files.MANIFEST,
            {
                "format": FORMAT,
                "step": step,
                "identity": identity,
                "notes": dict(notes or {}),
                "best": index.read_best(folder),
                "arrays": {name: _signatures(arrays) for name, arrays in trees.items()},
                "files": files.digests(partial, files.paths(partial)),
            },
        )
        synchronise(partial)
        final = _unused(folder, f"step_{step:08d}")
        partial.rename(final)
        synchronise(folder)
    index.point(folder, {name: final.name for name in names})
    _remove_old(folder, keep)
    return final


def mark_best(folder: Path, value: float) -> None:
    """Calls the checkpoint `last` `best`, too.

    Args:
        folder: of all checkpoints of a run.
        value: what makes it the best; noted beside its name.
    """
    last = index.read_names(Path(folder).resolve())["last"]
    index.point(Path(folder).resolve(), {"best": last}, best_value=value)


class Restored(NamedTuple):
    """The newest whole checkpoint of a run.

    Attributes:
        state: all of it.
        notes: of the checkpoint.
        best_value: what was noted of the best checkpoint that is still there, or None.
        went_back: whether something newer was damaged, so that nothing is known of what came after the checkpoint.
    """

    state: TrainState
    notes: dict[str, Any]
    best_value: float | None
    went_back: bool


def restore_newest(folder: Path, like: TrainState, identity: Mapping[str, Any]) -> Restored | None:
    """Returns the newest whole checkpoint, or None if there is none; damaged ones are passed over.

    What a write that was cut off left is removed. Damaged checkpoints are set aside as `damaged_step_*`; if the best
    one is among them, the best is what was the best when the restored one was written, as far as it is still there.

    Args:
        folder: of all checkpoints of a run.
        like: as for `restore_checkpoint`.
        identity: of the agent that is asking.

    Raises:
        UserError: every checkpoint is damaged, or they are another agent's.
    """
    folder = Path(folder).resolve()
    for left in folder.glob(f"step_*{files.PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
    damaged: dict[Path, UserError] = {}
    for checkpoint in sorted(folder.glob("step_*"), key=_age, reverse=True):
        try:
            manifest = _whole_manifest(checkpoint)
        except UserError as error:
            logger.warning("%s; going back to the one before it", error)
            damaged[checkpoint] = error
            continue
        state = TrainState(
            _arrays(checkpoint, manifest, PARAMS, like.params, identity),
            *_arrays(checkpoint, manifest, TRAINING, (like.opt_state, like.step), identity),
        )
        if int(state.step) != manifest["step"]:
            raise _not_as_written(checkpoint)
        is_index_whole = _is_index_whole(folder)
        for path in damaged:
            path.rename(_unused(folder, f"damaged_{path.name}"))
        best = index.read_best(folder) if is_index_whole else None
        if best is None or not _is_kept(folder / best.name, checkpoint):
            best = index.Best.read(manifest.get("best"))
            best = best if best is not None and _is_kept(folder / best.name, checkpoint) else None
        index.write_again(folder, checkpoint.name, best)
        value = None if best is None else best.value
        return Restored(state, dict(manifest.get("notes", {})), value, bool(damaged) or not is_index_whole)
    if damaged:
        raise next(iter(damaged.values()))
    return None


def _is_index_whole(folder: Path) -> bool:
    """Tells whether the index can be read, or there is none, as before the first checkpoint has its name."""
    if (folder / index.INDEX).exists():
        try:
            files.read_json(folder / index.INDEX)
        except UserError as error:
            logger.warning("%s; doing without it", error)
            return False
        index.read_index(folder)
    return True


def _is_kept(checkpoint: Path, newest: Path) -> bool:
    """Tells whether a checkpoint is whole and no newer than another."""
    try:
        _whole_manifest(checkpoint)
    except UserError as error:
        logger.warning("%s; it is the best one no longer", error)
        return False
    return _age(checkpoint) <= _age(newest)


def _whole_manifest(checkpoint: Path) -> dict[str, Any]:
    manifest = _manifest(checkpoint)
    _require_whole(checkpoint, manifest["files"])
    return manifest


def restore_checkpoint(
    folder: Path, like: TrainState, identity: Mapping[str, Any], *, name: str = "last"
) -> TrainState:
    """Returns the whole state; training continues from it as if it had never stopped.

    Args:
        folder: of all checkpoints of a run.
        like: arrays or `jax.ShapeDtypeStruct`s of the state to expect; looked at, not used.
        identity: of the agent that is asking.
        name: `last` or `best`.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or it is another agent's; says what differs.
    """
    params = restore_params(folder, like.params, identity, name=name)
    opt_state, step = _restore(folder, TRAINING, (like.opt_state, like.step), identity, name)
    return TrainState(params, opt_state, step)


def restore_params(folder: Path, like: Any, identity: Mapping[str, Any], *, name: str = "last") -> Any:
    """Returns the parameters only; arguments and errors as for `restore_checkpoint`, `like` being parameters."""
    return _restore(folder, PARAMS, like, identity, name)


def checkpoint_step(folder: Path, name: str = "last") -> int | None:
    """Returns the gradient steps that the checkpoint called `name` was trained for, or None if there is none."""
    folder = Path(folder).resolve()
    if not (folder / index.INDEX).exists() or name not in index.read_names(folder):
        return None
    return int(_read_manifest(folder, name)[1]["step"])


def _restore(folder: Path, tree: str, like: Any, identity: Mapping[str, Any], name: str) -> Any:
    checkpoint, manifest = _read_manifest(Path(folder).resolve(), name)
    return _arrays(checkpoint, manifest, tree, like, identity)


def _arrays(
    checkpoint: Path, manifest: Mapping[str, Any], tree: str, like: Any, identity: Mapping[str, Any]
) -> Any:
    _require_same(
        checkpoint,
        "was saved by another configuration",
        _flat(manifest["identity"]),
        _flat(_as_json(identity)),
    )
    expected = _named(like)
    _require_same(checkpoint, "holds other arrays", manifest["arrays"][tree], _signatures(expected))
    path = f"{tree}{SUFFIX}"
    _require_whole(checkpoint, {path: manifest["files"].get(path)})
    arrays = files.read_arrays(checkpoint / path, expected)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[key] for key in expected])


def _read_manifest(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Returns the checkpoint's folder and what it says of itself."""
    if not (folder / index.INDEX).exists():
        raise UserError(
            f"no checkpoint at {folder}: expected a folder with {index.INDEX}, as a run leaves in its directory under "
            f"checkpoints/; give that folder, or train first"
        )
    names = index.read_names(folder)
    if name not in names:
        raise UserError(
            f"no checkpoint called {name!r} in {folder}; known: {', '.join(sorted(names)) or 'none'}"
        )
    checkpoint = folder / names[name]
    return checkpoint, _manifest(checkpoint)


def _manifest(checkpoint: Path) -> dict[str, Any]:
    manifest = files.read_json(checkpoint / files.MANIFEST)
    if manifest.get("format") != FORMAT or not {"step", "identity", "arrays", "files"} <= set(manifest):
        raise UserError(
            f"expected {checkpoint / files.MANIFEST} to be a manifest of format {FORMAT}, found format "
            f"{manifest.get('format')}; use the version of bpt-rl that wrote it, or train again"
        )
    arrays = manifest["arrays"]
    sections = (manifest["identity"], manifest["files"], manifest.get("notes", {}), arrays)
    is_understood = isinstance(manifest["step"], int) and all(isinstance(one, dict) for one in sections)
    if (
        not is_understood
        or not all(isinstance(arrays.get(name), dict) for name in (PARAMS, TRAINING))
        or any(Path(path).is_absolute() or ".." in Path(path).parts for path in manifest["files"])
    ):
        raise _not_as_written(checkpoint)
    return manifest


def _not_as_written(checkpoint: Path) -> UserError:
    return UserError(
        f"{checkpoint / files.MANIFEST} describes no checkpoint: it was changed after it was written; copy it again "
        f"from where it was trained, or train again"
    )


def _require_same(checkpoint: Path, what: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [key for key in sorted({*saved, *now}) if saved.get(key, MISSING) != now.get(key, MISSING)]
    if not differing:
        return
    lines = [
        f"  {key}: checkpoint {_brief(saved.get(key, MISSING))}, now {_brief(now.get(key, MISSING))}"
        for key in differing[:MOST_DIFFERENCES]
    ]
    if len(differing) > MOST_DIFFERENCES:
        lines.append(f"  ... and {len(differing) - MOST_DIFFERENCES} more")
    raise UserError(
        f"the checkpoint {checkpoint} {what}:\n" + "\n".join(lines) + "\n"
        "Give the options that it was trained with (config.yaml of its run has them), or train again."
    )


def _require_whole(checkpoint: Path, written: Mapping[str, str | None]) -> None:
    """Refuses files that are not those that were written."""
    found = files.digests(checkpoint, written)
    damaged = sorted(path for path, digest in written.items() if found.get(path) != digest)
    if damaged:
        state = "differs from what was written" if damaged[0] in found else "is missing"
        raise UserError(
            f"the checkpoint {checkpoint} is damaged: {damaged[0]} {state} ({len(damaged)} of {len(written)} files); "
            f"copy it again from where it was trained, or train again"
        )


def _named(tree: Any) -> dict[str, Any]:
    """Returns the leaves by the path that leads to each, in the tree's order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf
        for path, leaf in leaves
    }
    assert len(named) == len(leaves), "two leaves share a path"
    return named


def _signatures(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested dictionaries as one, with dotted keys."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    items = (_flat(inner, f"{prefix}.{key}" if prefix else key) for key, inner in value.items())
    return {key: inner for item in items for key, inner in item.items()}


def _brief(value: Any) -> str:
    text = value if value == MISSING else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _as_json(value: Any) -> Any:
    """Returns the value as it will be read back: tuples as lists."""
    return json.loads(json.dumps(value))


def _unused(folder: Path, name: str) -> Path:
    """Returns a folder that does not exist yet; a second checkpoint of the same step gets a number."""
    numbered = (folder / f"{name}.{number}" for number in itertools.count(1))
    return next(path for path in itertools.chain([folder / name], numbered) if not path.exists())


def _remove_old(folder: Path, keep: int) -> None:
    """Removes checkpoints that have no name, but for the newest `keep`."""
    named = set(index.read_names(folder).values())
    newest = sorted(folder.glob("step_*"), key=_age, reverse=True)[:keep]
    for path in folder.glob("step_*"):
        if path.name not in named and path not in newest:
            shutil.rmtree(path)


def _age(checkpoint: Path) -> tuple[int, int]:
    """Sorts checkpoints by their step, and those of one step by their number."""
    step, _, number = checkpoint.name.removeprefix("step_").partition(".")
    return (int(step) if step.isdecimal() else -1, int(number) if number.isdecimal() else 0)
