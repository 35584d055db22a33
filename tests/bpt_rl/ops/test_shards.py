"""Devices that share a gradient step: every token is somebody's, and the result is that of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.ops import shards
from bpt_rl.ops.config import Schedule
from bpt_rl.ops.masks import Slice
from bpt_rl.ops.shards import TOKENS, WHOLE, Shards
from bpt_rl.types import UserError
from tests.bpt_rl.ops import layers
from tests.bpt_rl.ops.test_fused_stack import B, run_stack

THREE = Shards(count=3, chunk=2)


# Two rows: with two devices each has one, three share the tokens of both.
@pytest.mark.parametrize(
    ("num_devices", "options"),
    [
        (2, {"save": "output"}),
        (3, {"save": "output"}),
        (3, {"save": "input", "heads_at_once": 1}),
        (4, {"save": "input", "segment_layers": 2}),
    ],
)
def test_several_devices_compute_what_one_does_and_drop_the_same(num_devices, options):
    assert B == 2
    schedule = Schedule(query_block=8, key_block=4, devices=num_devices, **options)
    assert layers.differences(run_stack(schedule, 0.2), run_stack(Schedule("vanilla"), 0.2)).max() < 1e-5


def test_every_token_is_with_one_device_and_each_sees_as_many_keys():
    places = shards.mapped(
        lambda x: x + jnp.stack([THREE.place(Slice(start, 2)).start for start in (0, 2)])[None],
        3,
        WHOLE,
        out=TOKENS,
    )(jnp.zeros((1, 2), jnp.int32))
    starts = np.asarray(places).reshape(3, 2)
    assert sorted(starts.ravel()) == [0, 2, 4, 6, 8, 10]
    assert {*starts.sum(axis=1)} == {10}


def test_rows_are_split_gathered_and_joined_without_a_change():
    x = jax.random.normal(jax.random.key(0), (2, THREE.num_tokens, 4))
    np.testing.assert_array_equal(THREE.join(THREE.split(x)), x)
    heads_first = lambda part: part[:, None]
    gathered = shards.mapped(lambda part: THREE.gather(heads_first(part))[:, 0], 3, TOKENS, out=WHOLE)
    np.testing.assert_array_equal(gathered(THREE.split(x)), x)
    summed = shards.mapped(lambda x: THREE.sum_scattered(heads_first(x))[:, 0], 3, WHOLE, out=TOKENS)
    np.testing.assert_allclose(THREE.join(summed(x)), 3 * x, rtol=1e-6)


def test_more_devices_than_there_are_and_schedules_that_cannot_are_refused():
    with pytest.raises(UserError, match=r"schedule\.devices=99, but JAX finds 8"):
        shards.mesh(99)
    with pytest.raises(ValueError, match="devices must be at least 1, got 0"):
        Schedule(devices=0)
    with pytest.raises(ValueError, match="devices=2 needs the blockwise schedule, got 'vanilla'"):
        Schedule("vanilla", devices=2)
