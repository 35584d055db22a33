"""The state holds copies of a model's parameters, and nothing goes missing between the two."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from bpt_rl.training.state import count_parameters, init_state
from tests.bpt_rl.training import tiny


def test_the_state_is_the_model_before_the_first_step():
    model = tiny.TinyModel()
    graphdef, state = init_state(model, optax.adam(0.1))
    observations = tiny.batch(0).observations
    np.testing.assert_array_equal(nnx.merge(graphdef, state.params)(observations), model(observations))
    assert int(state.step) == 0
    assert count_parameters(state.params) == 3 * 5 + 5


def test_consuming_the_state_leaves_the_model_usable():
    model = tiny.TinyModel()
    _, state = init_state(model, optax.sgd(0.1))
    jax.tree.map(lambda leaf: leaf.delete(), state.params)
    assert np.isfinite(model(tiny.batch(0).observations)).all()


def test_arrays_that_are_not_parameters_are_refused_by_name():
    model = tiny.TinyModel()
    model.seen = nnx.BatchStat(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"only arrays are parameters.*seen"):
        init_state(model, optax.sgd(0.1))
