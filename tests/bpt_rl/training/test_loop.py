"""Training is a function of (seed, step): stopping, resuming and cutting batches up change nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpt_rl.training.config import OptimizerConfig
from bpt_rl.training.loop import average, make_train_step, train
from bpt_rl.training.optimizer import build_optimizer
from bpt_rl.training.state import init_state
from bpt_rl.types import UserError
from tests.bpt_rl.training import tiny

TX = build_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=2), 40)
GRAPHDEF = init_state(tiny.TinyModel(), TX)[0]
STEP = make_train_step(GRAPHDEF, tiny.loss, TX)
NOISY_STEP = make_train_step(GRAPHDEF, tiny.noisy_loss, TX)


def _state():
    return init_state(tiny.TinyModel(), TX)[1]


def _host(tree):
    return jax.tree.map(np.array, tree)


def _assert_equal(left, right, **tolerance):
    compare = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
    jax.tree.map(lambda a, b: compare(a, b, **tolerance), left, right)


def test_training_lowers_the_loss_and_counts_its_steps():
    records = list(train(_state(), STEP, tiny.batches(), seed=0, num_steps=40))
    assert [record.step for record in records] == list(range(1, 41))
    losses = [float(record.metrics["loss"]) for record in records]
    assert losses[-1] < 0.5 * losses[0]
    assert set(records[0].metrics) == {"loss", "gradient_norm"}
    assert int(records[-1].state.step) == 40


def test_stopping_and_continuing_equals_never_having_stopped():
    whole = list(train(_state(), NOISY_STEP, tiny.batches(), seed=3, num_steps=9))[-1]
    part = list(train(_state(), NOISY_STEP, tiny.batches(), seed=3, num_steps=4))[-1]
    rest = list(train(part.state, NOISY_STEP, tiny.batches(4), seed=3, num_steps=9))
    assert [record.step for record in rest] == [5, 6, 7, 8, 9]
    _assert_equal(_host(rest[-1].state), _host(whole.state))


def test_the_randomness_of_a_step_depends_on_seed_and_step():
    same = tiny.batch(0)

    def losses(seed):
        state = _state()
        found = []
        for _ in range(2):
            # The parameters stand still, so that only the key differs.
            params = jax.tree.map(np.array, state.params)
            state, metrics = NOISY_STEP(state, same, jax.random.key(seed))
            state = state._replace(params=jax.device_put(params))
            found.append(float(metrics["loss"]))
        return found

    assert losses(0) == losses(0)
    assert len({*losses(0), *losses(1)}) == 4


def test_the_seed_of_the_run_reaches_the_loss():
    losses = [
        float(next(train(_state(), NOISY_STEP, tiny.batches(), seed=seed, num_steps=1)).metrics["loss"])
        for seed in (0, 1, 1)
    ]
    assert losses[0] != losses[1] == losses[2]


def test_the_state_of_a_record_is_the_models_until_the_next_step():
    generator = train(_state(), STEP, tiny.batches(), seed=0, num_steps=3)
    first = next(generator)
    assert np.isfinite(nnx.merge(GRAPHDEF, first.state.params)(tiny.batch(0).observations)).all()
    next(generator)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.state.params))


def test_a_step_takes_no_more_batches_than_it_needs():
    batches = tiny.batches()
    next(train(_state(), STEP, batches, seed=0, num_steps=9))
    np.testing.assert_array_equal(next(batches).observations, tiny.batch(1).observations)


def test_batches_that_end_too_early_are_an_error():
    with pytest.raises(ValueError, match=r"up to 5, but they ended after step 2"):
        list(train(_state(), STEP, itertools.islice(tiny.batches(), 2), seed=0, num_steps=5))


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulated_gradients_equal_those_of_the_whole_batch(parts):
    whole, metrics = STEP(_state(), tiny.batch(0), jax.random.key(0))
    step = make_train_step(GRAPHDEF, tiny.loss, TX, accumulate=parts)
    accumulated, accumulated_metrics = step(_state(), tiny.batch(0), jax.random.key(0))
    # Sums in another order; Adam's first step divides by the gradient's own size, so tolerances are absolute.
    _assert_equal(_host(accumulated.params), _host(whole.params), rtol=1e-5, atol=1e-6)
    _assert_equal(_host(accumulated_metrics), _host(metrics), rtol=1e-5)


def test_parts_draw_their_own_dropout():
    """The two halves of a doubled batch would give equal gradients under one key."""
    half = tiny.batch(0, rows=3)
    doubled = jax.tree.map(lambda column: np.concatenate([column, column]), half)
    step = make_train_step(GRAPHDEF, tiny.noisy_loss, TX, accumulate=2)
    _, together = step(_state(), doubled, jax.random.key(0))
    key = jax.random.fold_in(jax.random.key(0), 0)
    first, _ = tiny.noisy_loss(tiny.TinyModel(), half, jax.random.fold_in(key, 0))
    second, _ = tiny.noisy_loss(tiny.TinyModel(), half, jax.random.fold_in(key, 1))
    assert abs(float(first) - float(second)) > 1e-3
    np.testing.assert_allclose(together["loss"], (first + second) / 2, rtol=1e-5)


def test_parts_that_do_not_divide_the_rows_are_refused():
    step = make_train_step(GRAPHDEF, tiny.loss, TX, accumulate=4)
    with pytest.raises(UserError, match=r"accumulate=4 must divide the rows.*there are 6"):
        step(_state(), tiny.batch(0), jax.random.key(0))


def test_average_is_the_mean_over_records_as_floats():
    records = list(train(_state(), STEP, tiny.batches(), seed=0, num_steps=5))
    averaged = average(records)
    assert all(type(value) is float for value in averaged.values())
    np.testing.assert_allclose(averaged["loss"], np.mean([r.metrics["loss"] for r in records]), rtol=1e-6)
    with pytest.raises(ValueError, match="at least one record"):
        average([])


def _poisoned(*steps, value="nan"):
    """Batches, those of `steps` with a number in them that is not finite."""
    for step, batch in enumerate(tiny.batches()):
        if step in steps:
            batch.observations[2, 1, 0] = np.float32(value)
        yield batch


def test_a_loss_that_is_not_finite_names_its_step_and_a_way_out():
    records = list(train(_state(), STEP, _poisoned(3), seed=0, num_steps=6))
    with pytest.raises(UserError, match=r"step 4: .*loss=nan.*learning_rate.*before step 4"):
        average(records)
    assert np.isfinite(average(records[:3])["loss"])


def _skipping(loss=tiny.loss, **options):
    return make_train_step(GRAPHDEF, loss, TX, skips_bad_batches=True, **options)


def test_a_bad_batch_that_is_skipped_changes_nothing():
    """Neither the parameters nor the optimiser see it: the rest is as if its step had done nothing."""

    def good_batches_only(step):
        state, key = _state(), jax.random.key(0)
        for number, batch in enumerate(tiny.batches(num_steps=6)):
            if number in (1, 3):
                state = state._replace(step=state.step + 1)
            else:
                state, _ = step(state, batch, key)
        return _host(state)

    step = _skipping(tiny.noisy_loss)
    *_, last = train(_state(), step, _poisoned(1, 3, value="inf"), seed=0, num_steps=6)
    _assert_equal(_host(last.state), good_batches_only(step))
    # Another program may round otherwise.
    _assert_equal(_host(last.state), good_batches_only(NOISY_STEP), rtol=1e-5)


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is_finite():
    def loss(model, batch, key):
        value, metrics = tiny.loss(model, batch, key)
        root = jnp.sqrt(jnp.abs(model.bias[...]).sum())  # 0 at 0, where its slope is infinite
        return value + root - jax.lax.stop_gradient(root), metrics

    state, metrics = _skipping(loss)(_state(), tiny.batch(0), jax.random.key(0))
    assert np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["gradient_norm"])
    _assert_equal(_host(state), _host(_state()._replace(step=np.int32(1))))


def test_skipped_batches_are_counted_and_left_out_of_the_means():
    records = list(train(_state(), _skipping(accumulate=2), _poisoned(1, 4), seed=0, num_steps=6))
    averaged = average(records, may_skip=2)
    assert averaged["skipped_batches"] == 2
    good = [record.metrics["loss"] for record in records if record.step not in (2, 5)]
    np.testing.assert_allclose(averaged["loss"], np.mean(good), rtol=1e-6)
    with pytest.raises(
        UserError, match=r"more .* than training.skip_bad_batches allows.* at gradient step 5: .*loss=nan"
    ):
        average(records, may_skip=1)
    alone = average(records[1:2], may_skip=1)
    assert alone["skipped_batches"] == 1
    assert np.isnan(alone["loss"])
    assert average(records[:1], may_skip=0)["skipped_batches"] == 0


def test_steps_that_skip_nothing_ask_nothing():
    text = [
        make_train_step(GRAPHDEF, tiny.loss, TX, **options)
        .lower(_state(), tiny.batch(0), jax.random.key(0))
        .as_text()
        for options in ({}, {"skips_bad_batches": False}, {"skips_bad_batches": True})
    ]
    assert text[0] == text[1]
    assert "is_finite" not in text[0]
    assert "is_finite" in text[2]


def test_only_the_optimiser_may_promote_types():
    def careless(model, batch, key):
        value, metrics = tiny.loss(model, batch, key)
        return value + batch.timesteps.sum(), metrics

    with jax.numpy_dtype_promotion("strict"):
        make_train_step(GRAPHDEF, tiny.loss, TX)(_state(), tiny.batch(0), jax.random.key(0))
        with pytest.raises(Exception, match="promot"):
            make_train_step(GRAPHDEF, careless, TX)(_state(), tiny.batch(0), jax.random.key(0))
