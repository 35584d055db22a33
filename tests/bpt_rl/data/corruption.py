"""Reads hundreds of damaged variants of real files, each in a process of its own, and counts what came of them.

    python -m tests.bpt_rl.data.corruption --data FOLDER [--variants 500] [--seed 0] [--json FILE]

A variant may give the right data or one clear error. What else there is fails: a crash, a hang, another exception,
anything unpickled. Wrong data that nothing noticed is counted and listed: a file without checksums cannot tell every
flipped bit, nor that two arrays of one kind have traded places. With a checksum beside the file, and in a store,
nothing may go unnoticed.
"""

import argparse
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bpt_rl.data import checksums, d4rl, exorl
from bpt_rl.data.episodes import EpisodeStore, open_store
from bpt_rl.data.recording import convert
from bpt_rl.types import UserError
from tests.bpt_rl.data.damages import DAMAGES

FILES = (
    "real/door-human-dapg.hdf5",
    "real/cartpole-expert-imitation.hdf5",
    "exorl/cartpole_swingup/episode_000003_1000.npz",
)
TIMEOUT_SECONDS = 30
# What a process may take beyond what it has when it begins.
MOST_BYTES = 2 * 2**30
RIGHT, REFUSED, UNDETECTED = "right data", "clear error", "undetected"
FINE = (RIGHT, REFUSED)


@dataclass(frozen=True)
class Variant:
    """One damaged file, and what came of reading it.

    Attributes:
        file: which.
        kind: of damage.
        detail: what exactly was done.
        outcome: `right data`, `clear error`, `undetected`, `crash`, `hang`, `unpickled` or `exception`.
        message: of the error.
    """

    file: str
    kind: str
    detail: str
    outcome: str
    message: str


def run_files(data: Path, num_variants: int, *, seed: int, with_checksums: bool = False) -> Iterator[Variant]:
    """Yields variants of the three files in turn."""
    with tempfile.TemporaryDirectory(prefix="corruption-") as work:
        right = {name: _whole(_read_file(_copy(data / name, Path(work)))) for name in FILES}
        # ExoRL's reader has no use for a checksum: NPZ archives have their own.
        names = [name for name in FILES if name.endswith(".hdf5")] if with_checksums else FILES
        for number in range(num_variants):
            name = names[number % len(names)]

            def read(copy: Path, name: str = name) -> bool:
                return _whole(_read_file(copy)) == right[name]

            kind = _kind(name, number // len(names))
            yield _variant(data / name, name, kind, seed + number, read, with_checksums=with_checksums)


def run_stores(data: Path, num_variants: int, *, seed: int) -> Iterator[Variant]:
    """Yields variants of the stores that the files are converted to: one bit flips in one of a store's own files."""
    with tempfile.TemporaryDirectory(prefix="corruption-") as work:
        stores = {
            name: _read_file(_copy(data / name, Path(work) / str(index))) for index, name in enumerate(FILES)
        }
        right = {name: _whole(store) for name, store in stores.items()}
        for number in range(num_variants):
            name = FILES[number % len(FILES)]
            files = sorted(path for path in stores[name].folder.iterdir())
            file = files[number // len(FILES) % len(files)]

            def read(copy: Path, name: str = name) -> bool:
                return _whole(open_store(copy.parent)) == right[name]

            label = f"{name} converted: {file.name}"
            yield _variant(file, label, "bit flips", seed + number, read, is_store=True)


def summary(variants: Sequence[Variant]) -> str:
    """Returns a table of outcomes by kind of damage, and a list of all that was not noticed."""
    kinds = Counter((variant.kind, variant.outcome) for variant in variants)
    outcomes = [*FINE, *sorted({variant.outcome for variant in variants} - {*FINE})]
    lines = ["| damage | variants | " + " | ".join(outcomes) + " |", "|---|---|" + "---|" * len(outcomes)]
    for kind in dict.fromkeys(variant.kind for variant in variants):
        counts = [kinds[kind, outcome] for outcome in outcomes]
        lines.append(f"| {kind} | {sum(counts)} | " + " | ".join(map(str, counts)) + " |")
    totals = [sum(variant.outcome == outcome for variant in variants) for outcome in outcomes]
    lines.append(f"| all | {len(variants)} | " + " | ".join(map(str, totals)) + " |")
    for variant in variants:
        if variant.outcome not in FINE:
            lines.append(
                f"{variant.outcome}: {variant.file}, {variant.kind}, {variant.detail} {variant.message}".rstrip()
            )
    return "\n".join(lines)


def _copy(path: Path, folder: Path) -> Path:
    """Copies a file into a folder of its own name, as a folder's name says of which domain its episodes are."""
    target = folder / path.parent.name / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    return target


def _read_file(path: Path) -> EpisodeStore:
    """Converts a file beside itself."""
    if path.suffix == ".npz":
        recording = exorl.recording(path.parent)
    else:
        recording = d4rl.recording(path, max_episode_steps=None)
    return convert(recording, path.parent.parent / f"store-{path.stem}")


def _whole(store: EpisodeStore) -> tuple[object, ...]:
    """All that there is in a store."""
    episodes = [store[index] for index in range(len(store))]
    values = [
        (
            *(array.tobytes() for array in (episode.observations, episode.actions, episode.rewards)),
            episode.is_terminal,
        )
        for episode in episodes
    ]
    facts = {name: value for name, value in store.metadata.items() if name != "source"}
    return values, store.tasks.tolist(), store.returns.tolist(), store.spec, facts


def _kind(name: str, number: int) -> str:
    """Every kind of damage in turn, as often as its weight; the first of each kind come first."""
    weights = {kind: weight for kind, (_, weight) in DAMAGES[Path(name).suffix].items()}
    turns = [
        kind for turn in range(max(weights.values())) for kind, weight in weights.items() if turn < weight
    ]
    return turns[number % len(turns)]


def _variant(
    original: Path,
    name: str,
    kind: str,
    seed: int,
    read: Callable[[Path], bool],
    *,
    with_checksums: bool = False,
    is_store: bool = False,
) -> Variant:
    """Damages a copy, and reads it in a process of its own."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="variant-") as work:
        if is_store:
            shutil.copytree(original.parent, Path(work) / "store")
            copy = Path(work) / "store" / original.name
        else:
            copy = _copy(original, Path(work))
        if with_checksums:
            checksums.write_sidecar(copy, checksums.file_digest(copy))
        before = copy.read_bytes()
        detail = DAMAGES[copy.suffix][kind][0](copy, rng)
        if copy.read_bytes() == before:
            return Variant(name, kind, f"{detail} (which changed nothing)", RIGHT, "")
        outcome, message = _in_a_process(lambda: read(copy))
    return Variant(name, kind, detail, outcome, message)


def _in_a_process(read: Callable[[], bool]) -> tuple[str, str]:
    """Returns what came of reading, and the message of an error; outlives whatever the reader does."""
    results, answer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(results)
        outcome, message = _outcome(read)
        os.write(answer, json.dumps([outcome, message[:4000]]).encode())
        os._exit(0)
    os.close(answer)
    status = _wait(process)
    with os.fdopen(results, "rb") as pipe:
        said = pipe.read()
    if status is None:
        return "hang", f"no end after {TIMEOUT_SECONDS} s"
    if os.WIFSIGNALED(status):
        return "crash", signal.Signals(os.WTERMSIG(status)).name
    outcome, message = json.loads(said) if said else ("crash", f"exit {os.WEXITSTATUS(status)}")
    return outcome, message


def _outcome(read: Callable[[], bool]) -> tuple[str, str]:
    """Reads, in the process that is there for it."""
    unpickled: list[str] = []
    sys.addaudithook(lambda event, _: unpickled.append(event) if event.startswith("pickle.") else None)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    logging.disable()
    try:
        outcome, message = (RIGHT if read() else UNDETECTED), ""
    except UserError as error:
        outcome, message = REFUSED, str(error)
    except BaseException as error:
        outcome, message = "exception", f"{type(error).__name__}: {error}"
    return ("unpickled", ", ".join(unpickled)) if unpickled else (outcome, message)


def _wait(process: int) -> int | None:
    """Returns the status of a process, or None if it had to be ended."""
    end = time.monotonic() + TIMEOUT_SECONDS
    pause = 0.001
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return status
        time.sleep(pause)
        pause = min(0.02, 1.5 * pause)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def main() -> None:
    """Prints a table of each stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the real files")
    parser.add_argument("--variants", type=int, default=500)
    parser.add_argument("--checksum-variants", type=int, default=150)
    parser.add_argument("--store-variants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for every variant")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    stages = {
        "files": lambda: run_files(given.data, given.variants, seed=given.seed),
        "files with checksums": lambda: run_files(
            given.data, given.checksum_variants, seed=given.seed + 10**6, with_checksums=True
        ),
        "stores": lambda: run_stores(given.data, given.store_variants, seed=given.seed + 2 * 10**6),
    }
    found: dict[str, list[Variant]] = {}
    for stage, run in stages.items():
        begin = time.perf_counter()
        found[stage] = list(run())
        seconds = time.perf_counter() - begin
        print(
            f"\n{stage}: {len(found[stage])} variants in {seconds:.1f} s\n{summary(found[stage])}", flush=True
        )
    if given.json:
        every = {stage: [asdict(variant) for variant in variants] for stage, variants in found.items()}
        given.json.write_text(json.dumps(every, indent=1))


if __name__ == "__main__":
    main()
