"""Checkpoints are written beside the training, one after the other, and what goes wrong is heard of."""

import errno
import threading

import jax
import numpy as np
import pytest

from bpt_rl.training import checkpoint_files, checkpoint_index, checkpoint_writer
from bpt_rl.training.checkpoint import (
    checkpoint_step,
    mark_best,
    restore_newest,
    restore_params,
    save_checkpoint,
)
from bpt_rl.training.checkpoint_writer import CheckpointWriter
from bpt_rl.training.state import TrainState
from bpt_rl.types import UserError

IDENTITY = {"agent": "tiny"}


def _state(step: int) -> TrainState:
    return TrainState(
        {"w": jax.numpy.full((3, 2), float(step))}, {"m": jax.numpy.arange(4.0)}, jax.numpy.int32(step)
    )


@pytest.fixture
def writer(tmp_path):
    writer = CheckpointWriter(tmp_path, IDENTITY, keep=2)
    yield writer
    writer.close()


def test_training_goes_on_while_a_checkpoint_is_written(writer, tmp_path, monkeypatch):
    may_go_on = threading.Event()
    real = checkpoint_files.write_arrays

    def slow(*arguments):
        assert may_go_on.wait(10)
        real(*arguments)

    monkeypatch.setattr(checkpoint_files, "write_arrays", slow)
    state = _state(3)
    writer.save(state, notes={"seconds": [1.5]})
    jax.tree.map(lambda leaf: leaf.delete(), state)  # As a step does that consumes it.
    assert checkpoint_step(tmp_path) is None
    may_go_on.set()
    assert writer.wait().name == "step_00000003"
    found, notes, *_ = restore_newest(tmp_path, _state(0), IDENTITY)
    np.testing.assert_array_equal(found.params["w"], np.full((3, 2), 3.0))
    assert notes == {"seconds": [1.5]}


def test_the_best_and_the_newest_are_kept(writer, tmp_path):
    for step in range(1, 6):
        writer.save(_state(step))
        if step == 2:
            writer.mark_best(7.25)
    writer.wait()
    assert {path.name for path in tmp_path.glob("step_*")} == {f"step_{step:08d}" for step in (2, 4, 5)}
    assert (checkpoint_step(tmp_path, "best"), checkpoint_index.read_best(tmp_path)) == (
        2,
        ("step_00000002", 7.25),
    )


def test_a_failure_is_raised_by_the_next_call(writer, monkeypatch):
    def fail(*arguments, **options):
        raise UserError("no room on the disk")

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", fail)
    writer.save(_state(1))
    with pytest.raises(UserError, match="no room on the disk"):
        writer.save(_state(2))
    monkeypatch.undo()
    writer._writing = None  # So that the fixture closes it quietly.


def test_parameters_that_are_not_finite_are_not_saved(writer, tmp_path):
    writer.save(_state(1))
    bad = _state(2)
    bad.params["w"] = bad.params["w"].at[1, 1].set(np.inf)
    with pytest.raises(UserError, match="parameters are not finite after gradient step 2"):
        writer.save(bad)
    assert checkpoint_step(tmp_path) == 1


def test_a_failure_is_raised_on_closing_at_the_latest(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise UserError("no room on the disk")

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", fail)
    writer = CheckpointWriter(tmp_path, IDENTITY, keep=2)
    writer.save(_state(1))
    with pytest.raises(UserError, match="no room on the disk"):
        writer.close()


def test_a_checkpoint_that_cannot_be_finished_leaves_nothing_behind(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, _state(1), IDENTITY)

    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint_files, "write_json", full)
    with pytest.raises(UserError, match=r"no room on the disk for .*checkpoint\.json"):
        save_checkpoint(tmp_path, _state(2), IDENTITY)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000001"]
    np.testing.assert_array_equal(
        restore_newest(tmp_path, _state(0), IDENTITY).state.params["w"], np.ones((3, 2))
    )


def _damage(folder, step: int) -> None:
    data = folder / f"step_{step:08d}" / "params.safetensors"
    data.write_bytes(data.read_bytes()[:-1])


def test_a_torn_checkpoint_is_passed_over_and_set_aside(tmp_path, caplog):
    for step in (4, 6):
        save_checkpoint(tmp_path, _state(step), IDENTITY, notes={"at": step}, keep=2)
    (tmp_path / "step_00000008.partial").mkdir()
    _damage(tmp_path, 6)
    restored = restore_newest(tmp_path, _state(0), IDENTITY)
    assert (int(restored.state.step), restored.notes, restored.went_back) == (4, {"at": 4}, True)
    assert "is damaged" in caplog.text
    assert "going back to the one before it" in caplog.text
    assert checkpoint_step(tmp_path) == 4
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"index.json", "step_00000004", "damaged_step_00000006"}
    assert not restore_newest(tmp_path, _state(0), IDENTITY).went_back
    _damage(tmp_path, 4)
    with pytest.raises(UserError, match="is damaged"):
        restore_newest(tmp_path, _state(0), IDENTITY)
    assert (tmp_path / "step_00000004").exists()


def _saved_and_marked(folder, *values: float | None) -> None:
    """Saves a checkpoint for each, and marks those that have a value as the best."""
    for step, value in enumerate(values, start=1):
        save_checkpoint(folder, _state(step), IDENTITY, keep=2)
        if value is not None:
            mark_best(folder, value)


def test_the_best_that_is_damaged_gives_way_to_the_best_before_it(tmp_path):
    _saved_and_marked(tmp_path, 1.5, None, 2.5)
    _damage(tmp_path, 3)
    restored = restore_newest(tmp_path, _state(0), IDENTITY)
    assert (int(restored.state.step), restored.best_value) == (2, 1.5)
    np.testing.assert_array_equal(
        restore_params(tmp_path, _state(0).params, IDENTITY, name="best")["w"], np.ones((3, 2))
    )


def test_where_no_best_is_left_there_is_none(tmp_path):
    _saved_and_marked(tmp_path, None, 2.5, 3.5)
    for step in (2, 3):
        _damage(tmp_path, step)
    save_checkpoint(tmp_path, _state(4), IDENTITY, keep=9)
    restored = restore_newest(tmp_path, _state(0), IDENTITY)
    assert (int(restored.state.step), restored.best_value) == (4, None)
    assert checkpoint_step(tmp_path, "best") is None


@pytest.mark.parametrize("text", ["", '{"names": {"last": "step_000'])
def test_a_torn_index_is_written_again(tmp_path, text, caplog):
    _saved_and_marked(tmp_path, 1.5, None, None)
    (tmp_path / checkpoint_index.INDEX).write_text(text)
    restored = restore_newest(tmp_path, _state(0), IDENTITY)
    assert (int(restored.state.step), restored.best_value, restored.went_back) == (3, 1.5, True)
    assert "doing without it" in caplog.text
    assert (checkpoint_step(tmp_path), checkpoint_step(tmp_path, "best")) == (3, 1)


def test_a_checkpoint_that_says_another_step_than_it_holds_is_refused(tmp_path):
    save_checkpoint(tmp_path, _state(3), IDENTITY)
    manifest = tmp_path / "step_00000003" / checkpoint_files.MANIFEST
    checkpoint_files.write_json(manifest, checkpoint_files.read_json(manifest) | {"step": 9999})
    with pytest.raises(UserError, match="was changed after it was written"):
        restore_newest(tmp_path, _state(0), IDENTITY)


def test_no_checkpoint_is_none(tmp_path):
    assert restore_newest(tmp_path, _state(0), IDENTITY) is None
    assert checkpoint_index.read_best(tmp_path) is None


def test_another_agents_checkpoint_is_refused(tmp_path):
    save_checkpoint(tmp_path, _state(1), IDENTITY)
    with pytest.raises(UserError, match="agent: checkpoint 'tiny', now 'other'"):
        restore_newest(tmp_path, _state(0), {"agent": "other"})


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "step_1/../../x", 3])
def test_an_index_never_leads_out_of_its_folder(tmp_path, name):
    save_checkpoint(tmp_path, _state(1), IDENTITY)
    checkpoint_files.write_json(tmp_path / checkpoint_index.INDEX, {"names": {"last": name}})
    with pytest.raises(UserError, match="does not name checkpoints beside it"):
        checkpoint_step(tmp_path)
    with pytest.raises(UserError, match="does not name checkpoints beside it"):
        restore_newest(tmp_path, _state(0), IDENTITY)
