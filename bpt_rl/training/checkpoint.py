"""Saves and restores training, and refuses a checkpoint that is damaged or another agent's.

A folder of checkpoints holds `index.json`, which says what `last` and `best` are, and one folder per checkpoint:
`checkpoint.json` (step, identity, what the arrays are, a digest of every file), and the arrays in two Orbax trees,
`params` and `training`, so that an evaluation reads the parameters alone. Arrays and JSON, nothing else. A
checkpoint is written beside the old one and named when it is whole: a crash at any moment leaves the old one usable.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bpt_rl.training import checkpoint_files as files
from bpt_rl.training.state import TrainState
from bpt_rl.types import UserError

FORMAT = 1
INDEX = "index.json"
PARAMS = "params"
TRAINING = "training"
MOST_DIFFERENCES = 12
MISSING = "(absent)"


def save_checkpoint(
    folder: Path, state: TrainState, identity: Mapping[str, Any], *, names: Sequence[str] = ("last",)
) -> Path:
    """Writes `state` and points `names` to it; checkpoints that no name points to any longer are removed.

    Args:
        folder: of all checkpoints of a run; made if it is missing.
        state: read, not consumed; waits for the step to finish.
        identity: JSON values that a restore must agree with: all that decides what the parameters compute. The
            schedule is no part of it.
        names: what the checkpoint is called: `last`, `best`, or both.

    Returns:
        The checkpoint's own folder.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    step = int(state.step)
    partial = folder / f"step_{step:08d}{files.PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    trees = {PARAMS: _named(state.params), TRAINING: _named((state.opt_state, state.step))}
    for name, arrays in trees.items():
        files.write_arrays(partial / name, arrays)
    files.write_json(
        partial / files.MANIFEST,
        {
            "format": FORMAT,
            "step": step,
            "identity": identity,
            "arrays": {name: _signatures(arrays) for name, arrays in trees.items()},
            "files": files.digests(partial, files.paths(partial)),
        },
    )
    final = _unused(folder, f"step_{step:08d}")
    partial.rename(final)
    index = _read_index(folder) if (folder / INDEX).exists() else {}
    index |= {name: final.name for name in names}
    files.write_json(folder / INDEX, {"format": FORMAT, "names": index})
    _remove_unnamed(folder, index)
    return final


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
    if not (folder / INDEX).exists() or name not in _read_index(folder):
        return None
    return int(_read_manifest(folder, name)[1]["step"])


def _restore(folder: Path, tree: str, like: Any, identity: Mapping[str, Any], name: str) -> Any:
    checkpoint, manifest = _read_manifest(Path(folder).resolve(), name)
    _require_same(
        checkpoint,
        "was saved by another configuration",
        _flat(manifest["identity"]),
        _flat(_as_json(identity)),
    )
    expected = _named(like)
    _require_same(checkpoint, "holds other arrays", manifest["arrays"][tree], _signatures(expected))
    _require_whole(
        checkpoint, {path: at for path, at in manifest["files"].items() if path.startswith(f"{tree}/")}
    )
    arrays = files.read_arrays(checkpoint / tree, expected)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[key] for key in expected])


def _read_manifest(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Returns the checkpoint's folder and what it says of itself."""
    if not (folder / INDEX).exists():
        raise UserError(
            f"no checkpoint at {folder}: expected a folder with {INDEX}, as a run leaves in its directory under "
            f"checkpoints/; give that folder, or train first"
        )
    names = _read_index(folder)
    if name not in names:
        raise UserError(
            f"no checkpoint called {name!r} in {folder}; known: {', '.join(sorted(names)) or 'none'}"
        )
    checkpoint = folder / names[name]
    manifest = files.read_json(checkpoint / files.MANIFEST)
    if manifest.get("format") != FORMAT or not {"step", "identity", "arrays", "files"} <= set(manifest):
        raise UserError(
            f"expected {checkpoint / files.MANIFEST} to be a manifest of format {FORMAT}, found format "
            f"{manifest.get('format')}; use the version of bpt-rl that wrote it, or train again"
        )
    return checkpoint, manifest


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


def _require_whole(checkpoint: Path, written: Mapping[str, str]) -> None:
    """Orbax stops at a damaged file with an error from deep inside; the digests find it first."""
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
    candidates = [folder / name] + [folder / f"{name}.{number}" for number in range(1, 1000)]
    return next(candidate for candidate in candidates if not candidate.exists())


def _remove_unnamed(folder: Path, index: Mapping[str, str]) -> None:
    for path in folder.glob("step_*"):
        if path.name not in index.values():
            shutil.rmtree(path)


def _read_index(folder: Path) -> dict[str, str]:
    names = files.read_json(folder / INDEX).get("names")
    if not isinstance(names, dict):
        raise UserError(
            f"{folder / INDEX} has no names; it was not written by bpt-rl, or it is damaged: train again"
        )
    return names
