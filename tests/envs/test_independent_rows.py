"""Rows of any Gymnasium environment begin and end on their own, in one process or in several."""

import dataclasses
import functools

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from bpt_rl.types import RowError
from envs import registry
from envs.config import EnvConfig
from envs.independent_rows import HoldAfterEnd, IndependentRows, side_by_side
from envs.simulators import make_single
from envs.workers import WorkerRows

CONFIG = EnvConfig("CartPole-v1", max_episode_steps=25)


def _vector():
    return side_by_side([functools.partial(make_single, CONFIG)] * 3, workers=0)


def _mask(*rows: int) -> np.ndarray:
    return np.isin(np.arange(3), rows)


def test_gymnasium_itself_refuses_to_step_a_row_that_is_over():
    """If this fails, Gymnasium has learnt it, and `IndependentRows` may go."""
    env = SyncVectorEnv(
        [lambda: gymnasium.make("CartPole-v1", max_episode_steps=1)], autoreset_mode=AutoresetMode.DISABLED
    )
    env.reset(seed=0)
    env.step(np.array([0]))
    with pytest.raises(AssertionError):
        env.step(np.array([0]))


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_out_of_phase_equal_single_environments(workers):
    vector = registry.make_vector(dataclasses.replace(CONFIG, workers=workers), 3)
    assert isinstance(vector.unwrapped, WorkerRows if workers else SyncVectorEnv)
    singles = [gymnasium.make("CartPole-v1", max_episode_steps=25) for _ in range(3)]
    rng = np.random.default_rng(0)
    seen, _ = vector.reset(seed=4)
    expected = np.stack([env.reset(seed=4 + row)[0] for row, env in enumerate(singles)])
    over = np.zeros((3, 2), bool)
    num_ends = np.zeros(2, int)
    for _ in range(150):
        np.testing.assert_array_equal(seen, expected)
        # Mostly left in one row, so that one pole falls and another stands until the limit.
        actions = np.where(rng.random(3) < [0.05, 0.5, 0.5], 1, 0)
        actions[2] = int(expected[2, 2] + expected[2, 3] > 0)
        seen, rewards, terminated, truncated, _ = vector.step(actions)
        for row in range(3):
            if over[row].any():
                assert rewards[row] == 0
                continue
            expected[row], reward, *over[row], _ = singles[row].step(actions[row])
            assert rewards[row] == reward
            num_ends += over[row]
        np.testing.assert_array_equal(np.stack([terminated, truncated], axis=1), over)
        begins = over.any(axis=1) & (rng.random(3) < 0.5)  # Some rows wait, so that the rows drift apart.
        if begins.any():
            seen, _ = vector.reset(options={"reset_mask": begins})
            for row in np.flatnonzero(begins):
                expected[row], _ = singles[row].reset()
            over[begins] = False
    assert (num_ends > 0).all()  # Both kinds of end have been seen.
    vector.close()


def test_resetting_some_rows_leaves_the_others_and_the_callers_options_alone():
    env = _vector()
    env.reset(seed=0)
    before = env.step(np.ones(3, int))[0]
    options = {"reset_mask": _mask(1)}
    after, _ = env.reset(seed=[9, 9, 9], options=options)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(after[1], gymnasium.make("CartPole-v1").reset(seed=9)[0])
    assert options["reset_mask"].tolist() == [False, True, False]


def test_a_row_keeps_its_flag_until_it_is_reset():
    env = _vector()
    env.reset(seed=0)
    _, _, at_first, _, _ = env.step(np.ones(3, int))
    for _ in range(24):
        _, _, terminated, truncated, _ = env.step(np.ones(3, int))
    assert terminated.all()  # Pushed to one side only, every pole falls.
    assert not at_first.any()  # What was returned before is not changed behind the caller's back.
    env.reset(options={"reset_mask": _mask(0, 2)})
    _, _, terminated, truncated, _ = env.step(np.ones(3, int))
    assert terminated.tolist() == [False, True, False]
    assert not truncated.any()


def test_a_single_row_that_is_over_reads_no_action():
    env = HoldAfterEnd(gymnasium.make("CartPole-v1", max_episode_steps=1))
    env.reset(seed=0)
    last, reward, terminated, truncated, ends = env.step(0)
    assert (reward, terminated, truncated) == (1, False, False)
    assert ends == {"is_terminated": False, "is_truncated": True}
    again, reward, _, _, ends = env.step(np.nan)
    assert again is last
    assert (reward, ends) == (0, {})


def test_autoreset_is_off():
    assert isinstance(_vector(), IndependentRows)
    assert _vector().metadata["autoreset_mode"] is AutoresetMode.DISABLED


def test_a_simulator_that_raises_is_named_by_its_row():
    class Broken(gymnasium.Wrapper):
        def step(self, action):
            raise ZeroDivisionError("no pole")

        def reset(self, *, seed=None, options=None):
            if seed is None:
                raise OSError("no cart")
            return super().reset(seed=seed, options=options)

    whole, broken = functools.partial(make_single, CONFIG), lambda: HoldAfterEnd(Broken(make_single(CONFIG)))
    env = side_by_side([whole, broken, whole], workers=0)
    with pytest.raises(RowError, match=r"row 1 failed: OSError: no cart \(.*test_independent_rows.py:\d+\)"):
        env.reset()
    env.reset(seed=0)
    with pytest.raises(RowError, match="row 1 failed: ZeroDivisionError: no pole") as caught:
        env.step(np.ones(3, int))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ValueError, match="2 seeds for 3"):  # Not a simulator's.
        env.reset(seed=[1, 2])
