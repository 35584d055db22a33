"""A conversion is used again while nothing changed, and is whole or not there whatever happens half way."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from bpt_rl.data import recording
from bpt_rl.data.episodes import open_store
from bpt_rl.data.recording import Contents, Recording, convert, file_identity
from bpt_rl.testing import FIVE_ARMS
from bpt_rl.types import EnvSpec, Episode, UserError

SPEC = EnvSpec("arms", 3, FIVE_ARMS)


def _episode(number: int, length: int) -> Episode:
    rewards = np.arange(length, dtype=np.float32) + number
    observations = np.stack([rewards, -rewards, rewards / 2], axis=1)
    return Episode(observations, np.arange(length, dtype=np.int32) % 5, rewards, is_terminal=bool(number % 2))


class Tape:
    """A recording of episodes of 4, 5, 6, ... steps that counts how often it is opened and closed."""

    def __init__(self, num_episodes: int = 3):
        self.num_episodes = num_episodes
        self.num_opened = self.num_closed = 0

    def recording(self, **options) -> Recording:
        return Recording("tape", {"format": "tape", "episodes": self.num_episodes, **options}, self._open)

    @contextmanager
    def _open(self) -> Iterator[Contents]:
        self.num_opened += 1
        try:
            lengths = range(4, 4 + self.num_episodes)
            episodes = (_episode(number, length) for number, length in enumerate(lengths))
            yield Contents(SPEC, episodes, num_steps=sum(lengths), facts={"licence": "MIT"})
        finally:
            self.num_closed += 1


def _failing(at: int, error: Exception) -> Recording:
    """A recording of another identity whose episode `at` cannot be read."""

    def episodes() -> Iterator[Episode]:
        for number in range(at):
            yield _episode(number, 2)
        raise error

    @contextmanager
    def opened() -> Iterator[Contents]:
        yield Contents(SPEC, episodes(), num_steps=2 * at + 1, facts={})

    return Recording("broken", {"format": "broken"}, opened)


def test_a_store_holds_the_episodes_and_says_where_they_come_from(tmp_path):
    store = convert(Tape().recording(trailing="keep"), tmp_path / "store")
    assert store.lengths.tolist() == [4, 5, 6]
    assert store.returns.tolist() == [0 + 1 + 2 + 3, 1 + 2 + 3 + 4 + 5, 2 + 3 + 4 + 5 + 6 + 7]
    np.testing.assert_array_equal(store[1].observations, _episode(1, 5).observations)
    assert store.metadata["source"] == {"format": "tape", "episodes": 3, "trailing": "keep"}
    assert store.metadata["facts"] == {"licence": "MIT"}


def test_what_is_converted_is_not_converted_again(tmp_path, caplog):
    caplog.set_level("INFO")
    tape = Tape()
    first = convert(tape.recording(), tmp_path / "store")
    again = convert(tape.recording(), tmp_path / "store")
    assert (tape.num_opened, tape.num_closed) == (1, 1)
    assert again.fingerprint == first.fingerprint
    assert "tape: using the conversion in" in caplog.text


def test_another_option_or_another_file_is_converted_anew(tmp_path):
    tape, other = Tape(), Tape(num_episodes=2)
    convert(tape.recording(trailing="keep"), tmp_path / "store")
    convert(tape.recording(trailing="drop"), tmp_path / "store")
    assert tape.num_opened == 2
    assert len(convert(other.recording(trailing="drop"), tmp_path / "store")) == 2


def test_a_file_is_known_by_name_size_and_time(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"12345")
    os.utime(path, ns=(0, 123_456_789))
    before = file_identity(path)
    assert before == {"file": "file.bin", "bytes": 5, "mtime_ns": 123_456_789}
    os.utime(path, ns=(0, 123_456_790))
    assert file_identity(path) != before


@pytest.mark.parametrize("name", ["rewards.npy", "offsets.npy", "manifest.json"])
def test_a_damaged_store_is_converted_again(tmp_path, caplog, name):
    tape = Tape()
    store = convert(tape.recording(), tmp_path / "store")
    path = store.folder / name
    path.write_bytes(path.read_bytes()[:-7])
    again = convert(tape.recording(), tmp_path / "store")
    assert (tape.num_opened, again.fingerprint) == (2, store.fingerprint)
    assert "converting again" in caplog.text
    assert open_store(store.folder).lengths.tolist() == [4, 5, 6]


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(
    "error", [UserError("damaged"), OSError(errno.EIO, "no such luck"), KeyboardInterrupt()]
)
def test_a_failure_half_way_leaves_the_older_store_as_it_was(tmp_path, error, at):
    older = convert(Tape().recording(), tmp_path / "store")
    with pytest.raises(type(error)):
        convert(_failing(at, error), tmp_path / "store")
    assert open_store(tmp_path / "store").fingerprint == older.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_failure_half_way_leaves_nothing_where_there_was_nothing(tmp_path):
    with pytest.raises(UserError, match="damaged"):
        convert(_failing(1, UserError("damaged")), tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    tape = Tape()
    with pytest.raises(UserError, match="is no store of episodes"):
        convert(tape.recording(), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "chapter 1"
    assert tape.num_closed == 1


def test_a_disk_that_is_full_when_files_are_completed_is_one_message(tmp_path, monkeypatch):
    older = convert(Tape().recording(), tmp_path / "store")

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=r"(?s)no room on the disk.*No space left.*dataset\.cache"):
            convert(Tape(num_episodes=5).recording(), tmp_path / "store")
    assert open_store(tmp_path / "store").fingerprint == older.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


# A process of its own makes a recording of `num_episodes` of 1000 steps of 20 bytes each, and says how it ended.
CONVERT = """
import resource, sys
from contextlib import contextmanager
from pathlib import Path
import numpy as np
from bpt_rl.data.recording import Contents, Recording, convert
from bpt_rl.types import DiscreteActions, EnvSpec, Episode, UserError

folder, num_episodes, most_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if most_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

def episode(number):
    rewards = np.full(1000, number, np.float32)
    return Episode(np.repeat(rewards[:, None], 3, axis=1), np.zeros(1000, np.int32), rewards, True)

@contextmanager
def opened():
    episodes = (episode(number) for number in range(num_episodes))
    yield Contents(EnvSpec("arms", 3, DiscreteActions(5)), episodes, num_steps=1000 * num_episodes, facts={})

print("ready", flush=True)
sys.stdin.readline()
try:
    store = convert(Recording("tape", {"number": num_episodes}, opened), folder)
except UserError as error:
    print(f"refused: {error}")
else:
    print(len(store), float(store[len(store) - 1].rewards.sum()))
"""


@contextmanager
def _converting(folder, num_episodes: int, *, most_bytes: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Yields a process that has everything imported and converts once its input is closed."""
    command = [sys.executable, "-c", CONVERT, str(folder), str(num_episodes), str(most_bytes)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


# The observations outgrow the limit while they are written; with one episode it is the manifest or nothing.
@pytest.mark.parametrize(
    ("num_episodes", "most_bytes"), [(300, 2_000_000), (300, 300_000), (300, 100), (1, 150)]
)
def test_a_disk_that_is_full_half_way_is_one_message_and_leaves_nothing(tmp_path, num_episodes, most_bytes):
    with _converting(tmp_path / "store", num_episodes, most_bytes=most_bytes) as process:
        said, errors = process.communicate()
    assert said.startswith("refused: no room on the disk for "), errors
    assert str(tmp_path) in said
    assert "free some space" in said
    assert list(tmp_path.iterdir()) == []


def test_processes_that_convert_into_one_folder_at_once_all_end_with_a_whole_store(tmp_path):
    counts = (200, 201, 202)
    with (
        _converting(tmp_path / "store", counts[0]) as first,
        _converting(tmp_path / "store", counts[1]) as second,
        _converting(tmp_path / "store", counts[2]) as third,
    ):
        processes = (first, second, third)
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        ends = [process.communicate() for process in processes]
    assert [said for said, _ in ends] == [f"{count} {1000.0 * (count - 1)}\n" for count in counts]
    store = open_store(tmp_path / "store")
    assert len(store) in counts
    assert store.metadata["source"] == {"number": len(store)}
    assert [store[index].rewards[-1] for index in range(len(store))] == list(range(len(store)))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_progress_counts_environment_steps(tmp_path, monkeypatch):
    updates = []

    @contextmanager
    def show(name: str, total: int, *, rate_name: str):
        updates.append((name, total, rate_name))
        yield type("Display", (), {"update": lambda _, done, fields: updates.append((done, fields))})()

    monkeypatch.setattr(recording, "show_progress", show)
    convert(Tape().recording(), tmp_path / "store")
    assert updates == [("converting tape", 15, "steps"), (4, {}), (9, {}), (15, {})]
