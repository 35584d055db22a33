"""What is written is what is read; what is damaged, or not of this environment, is refused."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bpt_rl.data import episodes
from bpt_rl.data.episodes import EpisodeStore, open_store, write_store
from bpt_rl.testing import FIVE_ARMS, TWO_JOINTS, tiny_source
from bpt_rl.types import ContinuousActions, DiscreteActions, EnvSpec, Episode, EpisodeSource, UserError


@pytest.fixture
def store(tmp_path) -> EpisodeStore:
    source = tiny_source(num_episodes=8, num_tasks=3)
    return write_store(tmp_path / "store", source.spec, list(source), metadata={"seed": 5})


def _step(value: float) -> Episode:
    """One step of a `tiny` environment with five arms."""
    return Episode(np.full((1, 3), value, np.float32), np.ones(1, np.int32), np.ones(1, np.float32), False)


@pytest.mark.parametrize("actions", [FIVE_ARMS, TWO_JOINTS])
def test_what_was_written_is_read(tmp_path, actions):
    source = tiny_source(num_episodes=9, num_tasks=2, actions=actions)
    write_store(tmp_path / "deep" / "store", source.spec, iter(source), metadata={"from": ["here"]})
    store = open_store(tmp_path / "deep" / "store")
    assert isinstance(store, EpisodeSource)
    assert (len(store), store.spec, store.metadata) == (9, source.spec, {"from": ["here"]})
    assert store.folder == tmp_path / "deep" / "store"
    for name in ("lengths", "returns", "tasks"):
        np.testing.assert_array_equal(getattr(store, name), getattr(source, name))
    for actual, expected in zip(store, source, strict=True):
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))
            assert getattr(actual, name).dtype == getattr(expected, name).dtype
        assert (actual.is_terminal, actual.task) == (expected.is_terminal, expected.task)


def test_steps_are_gathered_in_the_shape_of_their_indices(store):
    source = tiny_source(num_episodes=8, num_tasks=3)
    steps = np.array([[0, 9, 9], [14, 3, 1]])
    for actual, expected in zip(store.gather(steps), source.gather(steps), strict=True):
        np.testing.assert_array_equal(actual, expected)
        actual[:] = 0  # A copy: the caller may write to it.
    np.testing.assert_array_equal(store.gather(steps).rewards, source.gather(steps).rewards)


def test_episodes_count_from_either_end(store):
    np.testing.assert_array_equal(store[-1].rewards, store[7].rewards)
    for index in (8, -9):
        with pytest.raises(IndexError, match=f"no episode {index} among 8"):
            store[index]


def test_the_environment_survives_bit_for_bit(tmp_path):
    actions = ContinuousActions((-0.1, float(np.float32(0.3)), -1e-7), (0.1, 2.5, 1 / 3))
    spec = EnvSpec("odd", 1, actions, max_episode_steps=None)
    episode = Episode(
        np.zeros((1, 1), np.float32), np.array([[0, 1, 0.2]], np.float32), np.zeros(1, np.float32), True
    )
    assert write_store(tmp_path / "store", spec, [episode], metadata={}).spec == spec


def test_the_fingerprint_is_of_the_contents(tmp_path):
    tiny = tiny_source().spec

    def fingerprint(name: str, value: float = 1, spec: EnvSpec = tiny, **metadata) -> str:
        return write_store(tmp_path / name, spec, [_step(0), _step(value)], metadata=metadata).fingerprint

    first = fingerprint("a", made="today")
    assert first == fingerprint("b", made="tomorrow")
    assert first != fingerprint("c", 2)
    assert first != fingerprint("d", spec=EnvSpec("tiny", 3, DiscreteActions(6)))


def test_a_failure_leaves_the_old_store_and_nothing_else(store):
    def breaks_off():
        yield _step(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_store(store.folder, store.spec, breaks_off(), metadata={})
    assert open_store(store.folder).fingerprint == store.fingerprint
    assert list(store.folder.parent.iterdir()) == [store.folder]


def test_a_new_store_takes_the_place_of_the_old_one_whose_readers_go_on(store):
    before = np.array(store[0].observations)
    new = write_store(store.folder, store.spec, [_step(7)], metadata={})
    assert len(open_store(store.folder)) == len(new) == 1
    np.testing.assert_array_equal(store[0].observations, before)
    assert list(store.folder.parent.iterdir()) == [store.folder]


def test_no_episodes_are_refused(tmp_path):
    with pytest.raises(UserError, match="no episodes of tiny to store: the dataset is empty"):
        write_store(tmp_path / "store", tiny_source().spec, [], metadata={})
    assert not list(tmp_path.iterdir())


def test_an_episode_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(UserError, match="episode 1 has NaN or infinite observations at step 0"):
        write_store(tmp_path / "store", tiny_source().spec, [_step(1), _step(np.nan)], metadata={})


def test_a_missing_store_is_said_to_be_missing(tmp_path):
    with pytest.raises(UserError, match=r"no dataset at .*nowhere: expected a folder with manifest\.json"):
        open_store(tmp_path / "nowhere")


def _edit_manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_format_is_refused(store):
    _edit_manifest(store.folder, format=99)
    with pytest.raises(UserError, match="format 99, expected 2"):
        open_store(store.folder)


def test_a_manifest_that_was_changed_is_refused(store):
    _edit_manifest(
        store.folder, spec={**json.loads((store.folder / "manifest.json").read_text())["spec"], "name": "x"}
    )
    with pytest.raises(UserError, match=r"manifest\.json was changed after it was written.*make it again"):
        open_store(store.folder)


def test_changed_metadata_are_refused(store):
    _edit_manifest(store.folder, metadata={"seed": 6})
    with pytest.raises(UserError, match=r"manifest\.json was changed after it was written"):
        open_store(store.folder)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\x00\xff"])
def test_a_manifest_that_is_none_is_refused(store, text):
    (store.folder / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"manifest\.json (cannot be read|is of format None)"):
        open_store(store.folder)


def test_a_manifest_without_its_parts_is_refused(store):
    (store.folder / "manifest.json").write_text('{"format": 2, "spec": {}}')
    with pytest.raises(UserError, match="lacks columns, metadata, fingerprint, checksum"):
        open_store(store.folder)


@pytest.mark.parametrize(
    "name", ["observations", "actions", "rewards", "offsets", "returns", "tasks", "is_terminal"]
)
def test_a_column_that_is_gone_or_cut_short_is_refused(store, name):
    path = store.folder / f"{name}.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{name}\.npy is cut short or was changed"):
        open_store(store.folder)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}\.npy is missing"):
        open_store(store.folder)


def test_a_column_of_another_shape_is_refused(store):
    np.save(store.folder / "rewards.npy", np.zeros(3, np.float32))
    with pytest.raises(
        UserError, match=r"rewards\.npy is cut short or was changed: .* found 140 bytes with another header"
    ):
        open_store(store.folder)


@pytest.mark.parametrize("name", ["offsets", "returns", "tasks", "is_terminal"])
def test_a_changed_value_per_episode_is_refused(store, name):
    path = store.folder / f"{name}.npy"
    values = np.load(path)
    values[1] = not values[1]
    np.save(path, values)
    with pytest.raises(UserError, match=rf"{name}\.npy was changed after it was written"):
        open_store(store.folder)


def test_a_whole_manifest_that_describes_no_store_is_refused(store):
    manifest = json.loads((store.folder / "manifest.json").read_text())
    for change in ({"dtype": "|O"}, {"shape": ["3"]}, {"crc32": None}, {"block_rows": "2"}, {"sha256": 3}):
        columns = {**manifest["columns"], "rewards": {**manifest["columns"]["rewards"], **change}}
        changed = {**manifest, "columns": columns}
        _edit_manifest(store.folder, columns=columns, checksum=episodes._checksum(changed))
        with pytest.raises(UserError, match=r"manifest\.json describes no store"):
            open_store(store.folder)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_a_changed_step_is_refused_when_it_is_read(store, name):
    path = store.folder / f"{name}.npy"
    data = bytearray(path.read_bytes())
    data[-2] ^= 16
    path.write_bytes(data)
    changed = open_store(store.folder)
    with pytest.raises(UserError, match=rf"{name}\.npy was changed after it was written"):
        changed[7]
    with pytest.raises(UserError, match=rf"{name}\.npy was changed after it was written"):
        changed.gather(np.array([1]))


def test_pickled_columns_are_never_read(store):
    path = store.folder / "rewards.npy"
    path.write_bytes(pickle.dumps(np.load(path)))
    with pytest.raises(UserError, match=r"rewards\.npy is cut short or was changed"):
        open_store(store.folder)


MEASURE = """
import sys
from pathlib import Path
import numpy as np
from bpt_rl.data.episodes import open_store, write_store
from bpt_rl.types import DiscreteActions, EnvSpec, Episode

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

def episodes():
    for index in range(200):  # 64 MiB of observations.
        yield Episode(
            np.full((1000, 84), index, np.float32), np.zeros(1000, np.int32), np.ones(1000, np.float32), False
        )

folder = Path(sys.argv[1])
before = resident()
write_store(folder, EnvSpec("large", 84, DiscreteActions(2)), episodes(), metadata={})
after_writing = resident()
store = open_store(folder)
total = store[7].observations.sum() + store.gather(np.arange(3, 200_000, 40_000)).rewards.sum()
for start in range(0, 200_000, 1000):  # Everything, as a normaliser does.
    store.gather(np.arange(start, start + 1000))
print(after_writing - before, resident() - after_writing, total)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_does_not_grow_with_the_dataset(tmp_path):
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "store")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    writing, reading, total = (float(number) for number in output.split())
    assert total == 7 * 84_000 + 5
    assert writing < 8
    assert reading < 16
