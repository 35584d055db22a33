"""The files of a run directory: what was asked, where it ran, and what came of it."""

import contextlib
import csv
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bpt_rl.disk import synchronise, writing
from bpt_rl.types import UserError
from experiments import ROOT, configuration_checks, differences, schema
from experiments.schema import TrainConfig

LOG = logging.getLogger(__name__)

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.csv"
EPISODES = "evaluation.csv"
SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
FIGURES = "figures"
DAMAGED = "copy the whole run directory again, or run the evaluation again"
NO_TABLE = "restore it, or remove it: training then goes on without the episodes of before"
# The columns of evaluation.csv that are read again; a score is empty where there is no reference.
WHOLE_COLUMNS = ("gradient_step", "seed", "task", "row", "position")
NUMBER_COLUMNS = ("target_return", "return")
# What may differ when a run is gone on with: it decides where and how, not what.
FREE = (*differences.WITHOUT_EFFECT, "training.skip_bad_batches")
MOST_DIFFERENCES = 12
PACKAGES = ("jax", "jaxlib", "flax", "optax", "safetensors", "numpy", "h5py", "hydra-core", "omegaconf")


@dataclass(frozen=True, eq=False)
class Run:
    """A run that is over, or at least begun.

    Attributes:
        folder: its directory.
        config: what it was asked to do.
    """

    folder: Path
    config: TrainConfig

    def summary(self) -> dict[str, Any]:
        """Returns what came of it.

        Raises:
            UserError: nothing yet, or the file is damaged.
        """
        path = self.folder / SUMMARY
        summary = read_json(path)
        needed = {"context_episodes"} | (set() if self.config.env is None else {"target_return"})
        damaged = [name for name in sorted(needed) if not isinstance(summary.get(name), int | float)]
        if damaged:
            raise UserError(f"{path} has no number {damaged[0]}; {DAMAGED}")
        return summary

    def episodes(self) -> list[dict[str, str]]:
        """Returns the rows of evaluation.csv that belong to the last evaluation.

        Raises:
            UserError: there are none, or the file is damaged.
        """
        path = self.folder / EPISODES
        rows = read_csv(path)
        if not rows:
            raise UserError(f"{path} holds no episodes; {DAMAGED}")
        for line, row in enumerate(rows, start=2):
            _require_episode(path, line, row)
        last = max(int(row["gradient_step"]) for row in rows)
        rows = [row for row in rows if int(row["gradient_step"]) == last]
        if len(rows) % self.config.evaluation.episodes:
            raise UserError(
                f"{path} holds {len(rows)} episodes of the last evaluation, which are no whole chains of "
                f"{self.config.evaluation.episodes}; {DAMAGED}"
            )
        return rows


def begin(folder: Path, config: TrainConfig, *, fingerprint: str) -> None:
    """Makes the directory and writes what is known before the first gradient step.

    Raises:
        UserError: another run is there, and came to a checkpoint or a summary.
    """
    if holds_run(folder):
        raise UserError(
            f"{folder} already holds a run; go on with it (resume=auto), choose another directory "
            f"(hydra.run.dir=DIR), or remove that one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in (EPISODES, METRICS):  # Of a run that came to nothing; everything else is written anew.
        (folder / name).unlink(missing_ok=True)
    write_text(folder / CONFIG, schema.to_yaml(config))
    write_json(folder / ENVIRONMENT, describe_environment() | {"dataset_fingerprint": fingerprint})


def holds_run(folder: Path) -> bool:
    """Tells whether a run is there that came to a checkpoint or a summary."""
    came_to = [folder / SUMMARY, *(folder / CHECKPOINTS).glob("step_*[0-9]")]
    return (folder / CONFIG).exists() and any(path.exists() for path in came_to)


def changes(folder: Path, config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Returns what the run in a folder was asked to do otherwise, and decides its outcome: by key, what was and is.

    Raises:
        UserError: there is no run, or its configuration cannot be read.
    """
    was, now = (differences.flat(one) for one in (open_run(folder).config, config))
    both = {key: (was.get(key), now.get(key)) for key in sorted({*was, *now} - {*FREE})}
    return {key: values for key, values in both.items() if values[0] != values[1]}


def require_same_run(folder: Path, config: TrainConfig) -> None:
    """Refuses to go on with a run that was asked to do something else.

    Raises:
        UserError: the configuration differs in what decides the outcome; shows the differences.
    """
    differing = [f"  {key}: was {was!r}, now {now!r}" for key, (was, now) in changes(folder, config).items()]
    if differing:
        more = len(differing) - MOST_DIFFERENCES
        lines = differing[:MOST_DIFFERENCES] + ([f"  ... and {more} more"] if more > 0 else [])
        raise UserError(
            f"the run in {folder} cannot be gone on with: its configuration is another\n"
            + "\n".join(lines)
            + "\nGive the options that it began with, or choose another directory (hydra.run.dir=DIR)"
        )


def go_on(folder: Path, *, fingerprint: str) -> None:
    """Refuses other data than the run began with; notes where it goes on if that is another place.

    Raises:
        UserError: the dataset has changed.
    """
    path = folder / ENVIRONMENT
    began = read_json(path)
    if began.get("dataset_fingerprint") != fingerprint:
        raise UserError(
            f"the run in {folder} began with another dataset (fingerprint {began.get('dataset_fingerprint')}, now "
            f"{fingerprint}); give it the same data, or choose another directory (hydra.run.dir=DIR)"
        )
    here = describe_environment()
    if any(began.get(name) != value for name, value in here.items()):
        LOG.warning(
            "the run began with other versions, another commit or device (environment.json): what follows need not be "
            "bit for bit what it would have been"
        )
        write_json(path, {**began, "continued_in": [*began.get("continued_in", []), here]})


def identity(config: TrainConfig, fingerprint: str) -> str:
    """Returns a digest of all that decides the outcome of a run: what its checkpoints are known by.

    Args:
        config: of the run.
        fingerprint: of its dataset.
    """
    deciding = {key: value for key, value in differences.flat(config).items() if key not in FREE}
    text = json.dumps([deciding, fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def synchronise_tables(folder: Path) -> None:
    """Waits until the rows of metrics.csv and evaluation.csv are on disk: a later checkpoint counts on them.

    Raises:
        UserError: the disk is full, or cannot be written.
    """
    for path in (folder / METRICS, folder / EPISODES):
        if path.exists():
            with writing(path):
                synchronise(path)


def keep_episodes(path: Path, last_step: int) -> set[int]:
    """Drops the rows of evaluation.csv after a gradient step, and lines that were cut off.

    Returns:
        The gradient steps whose rows are kept.

    Raises:
        UserError: the file is no table of episodes.
    """
    if not path.exists():
        return set()
    try:
        text = path.read_text(encoding="utf-8-sig")  # Spreadsheets write a mark in front.
    except ValueError as error:
        raise UserError(f"{path} is not CSV ({error}); {NO_TABLE}") from error
    header, *lines = text[: text.rfind("\n") + 1].splitlines(keepends=True) or [""]
    if header and not header.startswith("gradient_step,"):
        raise UserError(f"{path} begins with {header[:40]!r}, expected a column gradient_step; {NO_TABLE}")
    kept = [line for line in lines if _step_of(line) <= last_step]
    if kept:
        write_text(path, header + "".join(kept))
    else:  # The header is written with the first row.
        path.unlink()
    return {int(_step_of(line)) for line in kept}


def open_run(folder: Path) -> Run:
    """Returns the run in a directory.

    Raises:
        UserError: there is none, or its configuration cannot be read.
    """
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = folder / CONFIG
    if not path.is_file():
        raise UserError(
            f"{folder} holds no run: expected {CONFIG} there, as experiments.train writes it; give a run directory"
        )
    try:
        return Run(folder, schema.from_yaml(configuration_checks.read_stored(path), TrainConfig))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not the configuration of a run of this version ({reason}); restore it, or use the version of "
            f"bpt-rl that environment.json names"
        ) from error


def describe_environment() -> dict[str, Any]:
    """Returns versions, commit and device; nothing that names a machine or a user."""
    import jax

    from envs.versions import simulator_versions

    device = jax.devices()[0]
    return {
        "versions": {
            "python": platform.python_version(),
            **_installed("bpt-rl", *PACKAGES),
            **simulator_versions(),
        },
        "commit": _git("rev-parse", "HEAD"),
        "has_uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "device": f"{device.platform}: {device.device_kind}",
        "num_devices": jax.device_count(),
        "num_cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def shortest(folder: Path) -> Path:
    """Returns the folder relative to where the user is, if it is below."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def as_mapping(config: TrainConfig) -> dict[str, Any]:
    """Returns the configuration as plain values, for trackers that show it."""
    return asdict(config)


def append_episodes(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds records of episodes to a CSV file, with a header if it is new; None is an empty cell."""
    is_new = not path.exists()
    with writing(path), path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file.

    Raises:
        UserError: there is no such file.
    """
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); has the run come to its end?") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not CSV ({error}); {DAMAGED}") from error


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes records with the columns of the first; None is an empty cell."""
    rows = list(rows)
    path.unlink(missing_ok=True)
    append_episodes(path, rows)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a file.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); has the run come to its end?") from error
    except (ValueError, RecursionError) as error:  # The latter where it is nested beyond reason.
        raise UserError(f"{path} is not JSON ({error}); was it changed or cut off?") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a JSON object; {DAMAGED}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object beside the file's place, then takes it at once."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file beside its place, waits for the disk, then takes its place at once."""
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def _step_of(line: str) -> float:
    """The gradient step of a line of evaluation.csv, which is its first column."""
    step = line.partition(",")[0]
    return int(step) if step.isdecimal() else math.inf


def _require_episode(path: Path, line: int, row: Mapping[str, str | None]) -> None:
    """Refuses a row of evaluation.csv that was cut off, or is not of this layout."""
    is_whole = row.get("is_terminal") in ("True", "False") and row.get("normalised_score") is not None
    try:
        for name in WHOLE_COLUMNS:
            int(row[name] or "")
        for name in (*NUMBER_COLUMNS, *(["normalised_score"] if row["normalised_score"] else [])):
            float(row[name] or "")
    except (KeyError, ValueError):
        is_whole = False
    if not is_whole:
        raise UserError(f"{path}, line {line}: not an episode as an evaluation writes it; {DAMAGED}")


def _installed(*names: str) -> dict[str, str]:
    """Returns the versions of those packages that are installed: a benchmark runs without most of them."""
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _git(*arguments: str) -> str | None:
    """Returns what git says of this checkout, or None where there is no git or no repository."""
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
