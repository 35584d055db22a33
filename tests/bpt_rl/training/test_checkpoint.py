"""A checkpoint gives back exactly what was saved, or says why it cannot."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.training import checkpoint_files
from bpt_rl.training.checkpoint import checkpoint_step, restore_checkpoint, restore_params, save_checkpoint
from bpt_rl.training.compilation import compile_train_step
from bpt_rl.training.config import OptimizerConfig
from bpt_rl.training.loop import make_train_step, train
from bpt_rl.training.optimizer import build_optimizer
from bpt_rl.training.state import TrainState, init_state
from bpt_rl.types import UserError
from tests.bpt_rl.training import tiny

TX = build_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=2), 40)
GRAPHDEF = init_state(tiny.TinyModel(), TX)[0]
STEP = make_train_step(GRAPHDEF, tiny.noisy_loss, TX)
IDENTITY = {"agent": {"name": "tiny", "taps": 8}, "bounds": (1.0, 1 / 3), "normaliser": {"scale": 0.1}}


def _state(width: int = 3, seed: int = 0):
    return init_state(tiny.TinyModel(width=width, seed=seed), TX)[1]


def _trained(num_steps: int):
    return list(train(_state(), STEP, tiny.batches(), seed=3, num_steps=num_steps))[-1].state


def _assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a checkpoint of step 4, shared by tests that only read it."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    save_checkpoint(folder, _trained(4), IDENTITY)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """The same, to be damaged."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_save_restore_continue_equals_never_having_stopped(saved):
    state = restore_checkpoint(saved, _state(seed=5), IDENTITY)
    assert int(state.step) == checkpoint_step(saved) == 4
    continued = list(train(state, STEP, tiny.batches(4), seed=3, num_steps=9))[-1].state
    _assert_equal(continued, _trained(9))


def test_a_restored_state_fits_a_step_that_was_compiled_ahead(saved):
    compiled = compile_train_step(STEP, _state(), tiny.batch(0)).step
    state = restore_checkpoint(saved, jax.eval_shape(_state), IDENTITY)
    continued = list(train(state, compiled, tiny.batches(4), seed=3, num_steps=6))[-1].state
    _assert_equal(continued, _trained(6))


def test_parameters_alone_can_be_restored_without_the_optimiser(copied):
    (copied / "step_00000004" / "training.safetensors").unlink()
    abstract = jax.eval_shape(lambda: _state().params)
    _assert_equal(restore_params(copied, abstract, IDENTITY), _trained(4).params)


def test_last_and_best_are_kept_and_the_rest_is_removed(tmp_path):
    states = {step: _trained(step) for step in (1, 2, 3)}
    save_checkpoint(tmp_path, states[1], IDENTITY, names=("last", "best"))
    save_checkpoint(tmp_path, states[2], IDENTITY)
    assert (checkpoint_step(tmp_path), checkpoint_step(tmp_path, "best")) == (2, 1)
    save_checkpoint(tmp_path, states[3], IDENTITY)
    assert (checkpoint_step(tmp_path), checkpoint_step(tmp_path, "best")) == (3, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.json",
        "step_00000001",
        "step_00000003",
    ]
    _assert_equal(restore_checkpoint(tmp_path, _state(), IDENTITY, name="best"), states[1])


def test_a_second_checkpoint_of_the_same_step_replaces_the_first(tmp_path):
    save_checkpoint(tmp_path, _state(seed=1), IDENTITY)
    save_checkpoint(tmp_path, _state(seed=2), IDENTITY)
    _assert_equal(restore_checkpoint(tmp_path, _state(), IDENTITY), _state(seed=2))
    assert len(list(tmp_path.glob("step_*"))) == 1


def test_arrays_find_their_places_whatever_their_names(tmp_path):
    """As text, place 10 sorts before place 2."""
    state = TrainState([np.full(3, place, np.float32) for place in range(12)], (), np.zeros((), np.int32))
    save_checkpoint(tmp_path, state, IDENTITY)
    _assert_equal(restore_checkpoint(tmp_path, state, IDENTITY), state)


def test_arrays_keep_their_values_types_and_shapes_however_they_lie_in_memory(tmp_path):
    by_column = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    every_other = np.arange(8, dtype=np.int32)[::2]
    parameters = [by_column, every_other, jnp.full((2, 2), 1 / 3, jnp.bfloat16), np.zeros((0, 3), bool)]
    state = TrainState(parameters, (np.float32(0.1),), np.zeros((), np.uint32))
    save_checkpoint(tmp_path, state, IDENTITY)
    restored = restore_checkpoint(tmp_path, state, IDENTITY)
    _assert_equal(restored, state)
    assert [leaf.dtype for leaf in jax.tree.leaves(restored)] == [
        leaf.dtype for leaf in jax.tree.leaves(state)
    ]


def test_whoever_may_read_the_folder_may_read_the_arrays(tmp_path):
    for mode in (0o755, 0o700):
        (tmp_path / str(mode)).mkdir()
        (tmp_path / str(mode)).chmod(mode)
        path = tmp_path / str(mode) / "params.safetensors"
        checkpoint_files.write_arrays(path, {"a": np.zeros(3)})
        assert path.stat().st_mode & 0o777 == mode & 0o666


def test_a_crash_while_saving_leaves_the_old_checkpoint(copied, monkeypatch):
    def crash(path, arrays):
        del arrays
        path.write_text("")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("bpt_rl.training.checkpoint_files.write_arrays", crash)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(copied, _trained(5), IDENTITY)
    assert checkpoint_step(copied) == 4
    _assert_equal(restore_checkpoint(copied, _state(), IDENTITY), _trained(4))
    save_checkpoint(copied, _trained(5), IDENTITY)
    assert sorted(path.name for path in copied.iterdir()) == ["index.json", "step_00000005"]


def test_only_arrays_and_json_are_written(saved):
    names = {path.name for path in saved.rglob("*") if path.is_file()}
    assert names == {"index.json", "checkpoint.json", "params.safetensors", "training.safetensors"}
    manifest = json.loads((saved / "step_00000004" / "checkpoint.json").read_text())
    assert manifest["arrays"]["params"] == {"bias": "float32[5]", "kernel": "float32[3, 5]"}


def test_another_configuration_is_refused_with_every_difference(saved):
    other = {
        "agent": {"name": "tiny", "taps": 0},
        "bounds": [1.0, 0.25],
        "normaliser": {"scale": 0.1},
        "new": 1,
    }
    with pytest.raises(UserError) as caught:
        restore_checkpoint(saved, _state(), other)
    message = str(caught.value)
    assert "agent.taps: checkpoint 8, now 0" in message
    assert "bounds: checkpoint [1.0, 0.333" in message
    assert "new: checkpoint (absent), now 1" in message
    assert "agent.name" not in message
    assert "normaliser" not in message
    assert "config.yaml" in message


def test_long_lists_of_differences_are_cut_short(saved):
    with pytest.raises(UserError, match=r"and 12 more"):
        restore_checkpoint(saved, _state(), {f"option{index:02d}": index for index in range(20)})


def test_arrays_of_another_shape_are_refused_by_name(saved):
    with pytest.raises(
        UserError, match=r"(?s)holds other arrays.*kernel: checkpoint 'float32\[3, 5\]', now 'float32\[7"
    ):
        restore_params(saved, _state(width=7).params, IDENTITY)


def test_missing_checkpoints_are_named(saved, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint at .*index.json.*train first"):
        restore_params(tmp_path, _state().params, IDENTITY)
    with pytest.raises(UserError, match=r"no checkpoint called 'best'.*known: last"):
        restore_params(saved, _state().params, IDENTITY, name="best")
    assert checkpoint_step(tmp_path) is None
    assert checkpoint_step(saved, "best") is None


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_damaged_arrays_are_found_before_they_are_used(copied, damage):
    damage(copied / "step_00000004" / "params.safetensors")
    with pytest.raises(UserError, match=r"is damaged: params\.safetensors"):
        restore_params(copied, _state().params, IDENTITY)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ("[]", "manifest of format 2, found format None"),
     ('{"format": 9, "step": 1, "identity": {}, "arrays": {}, "files": {}}', "found format 9")],
)  # fmt: skip
def test_damaged_manifests_are_refused(copied, content, message):
    (copied / "step_00000004" / "checkpoint.json").write_text(content)
    with pytest.raises(UserError, match=message):
        restore_params(copied, _state().params, IDENTITY)


def test_a_damaged_index_is_refused(copied):
    (copied / "index.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match="does not name checkpoints beside it"):
        restore_params(copied, _state().params, IDENTITY)
