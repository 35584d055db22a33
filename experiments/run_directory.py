"""The files of a run directory: what was asked, where it ran, and what came of it."""

import contextlib
import csv
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bpt_rl.types import UserError
from experiments import ROOT, schema
from experiments.schema import TrainConfig

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.csv"
EPISODES = "evaluation.csv"
SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
FIGURES = "figures"
DAMAGED = "copy the whole run directory again, or run the evaluation again"
# The columns of evaluation.csv that are read again; a score is empty where there is no reference.
WHOLE_COLUMNS = ("gradient_step", "seed", "task", "row", "position")
NUMBER_COLUMNS = ("target_return", "return")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "h5py", "hydra-core", "omegaconf")


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
    if (folder / CONFIG).exists() and any((folder / name).exists() for name in (CHECKPOINTS, SUMMARY)):
        raise UserError(
            f"{folder} already holds a run; choose another directory (hydra.run.dir=DIR), or remove that one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EPISODES).unlink(missing_ok=True)  # A run that failed there; everything else is written anew.
    (folder / CONFIG).write_text(schema.to_yaml(config))
    write_json(folder / ENVIRONMENT, describe_environment() | {"dataset_fingerprint": fingerprint})


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
        return Run(folder, schema.from_yaml(path.read_text(), TrainConfig))
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
    with path.open("a", newline="") as file:
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
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); was it changed or cut off?") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a JSON object; {DAMAGED}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object beside the file's place, then takes it at once."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


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
