"""The compiled step is the same step, and says what memory it takes."""

import jax
import numpy as np
import pytest

from bpt_rl.training.compilation import compile_train_step
from bpt_rl.training.config import OptimizerConfig
from bpt_rl.training.loop import make_train_step, train
from bpt_rl.training.optimizer import build_optimizer
from bpt_rl.training.state import init_state
from tests.bpt_rl.training import tiny

TX = build_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=2), 40)


def _state(width=3):
    return init_state(tiny.TinyModel(width=width), TX)


def test_the_compiled_step_trains_like_the_jitted_one():
    graphdef, state = _state()
    step = make_train_step(graphdef, tiny.noisy_loss, TX)
    compiled = compile_train_step(step, state, tiny.batch(0))
    assert compiled.seconds > 0
    fast = list(train(state, compiled.step, tiny.batches(), seed=1, num_steps=4))[-1]
    plain = list(train(_state()[1], step, tiny.batches(), seed=1, num_steps=4))[-1]
    jax.tree.map(np.testing.assert_array_equal, fast.state, plain.state)


def test_abstract_arrays_are_enough_and_nothing_is_consumed():
    graphdef, state = _state()
    step = make_train_step(graphdef, tiny.loss, TX)
    abstract = jax.eval_shape(lambda: state)
    memory = compile_train_step(step, abstract, tiny.batch(0)).memory
    assert memory == compile_train_step(step, state, tiny.batch(0)).memory
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_memory_grows_with_the_batch_and_counts_donated_arrays_once():
    graphdef, state = _state()
    step = make_train_step(graphdef, tiny.loss, TX)
    small = compile_train_step(step, state, tiny.batch(0)).memory
    large = compile_train_step(step, state, tiny.batch(0, rows=600)).memory
    batch_bytes = sum(column.nbytes for column in tiny.batch(0, rows=600)[:2])
    assert large.argument_bytes - small.argument_bytes > 0.9 * batch_bytes
    assert large.temp_bytes > small.temp_bytes
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert small.output_bytes >= state_bytes
    assert small.peak_bytes < small.argument_bytes + small.output_bytes + small.temp_bytes - 0.9 * state_bytes


def test_a_backend_that_does_not_say_gives_no_memory(monkeypatch):
    graphdef, state = _state()
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: None)
    assert compile_train_step(make_train_step(graphdef, tiny.loss, TX), state, tiny.batch(0)).memory is None


def test_other_shapes_are_refused():
    graphdef, state = _state()
    compiled = compile_train_step(make_train_step(graphdef, tiny.loss, TX), state, tiny.batch(0))
    with pytest.raises(TypeError, match=r"(?i)compiled"):
        compiled.step(state, tiny.batch(0, rows=5), jax.random.key(0))
