"""Rows that end at different times must each get their own chain, and nobody else's numbers."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from bpt_rl import testing
from bpt_rl.evaluation.rollout import rollout
from bpt_rl.types import RowError, UserError

LENGTHS = ((2, 3), (5, 1), (3,))


def _run(env=None, policy=None, **options):
    env = testing.TinyVectorEnv(LENGTHS) if env is None else env
    options = {"episodes_per_row": 3, "target_return": 7.0, "seed": 11} | options
    return list(rollout(policy or testing.CountingPolicy(), env, **options)), env


class _Recorder(testing.CountingPolicy):
    """A counting policy whose record survives the rollout."""

    def start(self, num_rows, key):
        self.__dict__["record"] = super().start(num_rows, key)
        return self.record

    def begin_episode(self, state, rows, target_return):
        state = super().begin_episode(state, rows, target_return)
        self.__dict__["record"] = state
        return state

    def act(self, state, observation, previous_reward, active):
        state, actions = super().act(state, observation, previous_reward, active)
        self.__dict__["record"] = state
        # Rows that are over may be given anything.
        return state, np.where(active, actions, 99).astype(np.int32)


class _FlagsStayUp(testing.TinyVectorEnv):
    """As the vectors of `envs` do it: a row that is over says so at every step until it is reset."""

    def __init__(self):
        super().__init__(LENGTHS)
        self.flags = np.zeros((2, 3), bool)

    def reset(self, *, seed=None, options=None):
        shown = super().reset(seed=seed, options=options)
        self.flags &= self.is_over[None]
        return shown

    def step(self, actions):
        observation, reward, *ends, info = super().step(actions)
        self.flags |= np.stack(ends)
        return observation, reward, *self.flags.copy(), info


@pytest.mark.parametrize("make_env", [lambda: testing.TinyVectorEnv(LENGTHS), _FlagsStayUp])
def test_every_row_plays_its_own_chain(make_env):
    episodes, env = _run(make_env())
    found = {(episode.row, episode.position): episode for episode in episodes}
    assert len(episodes) == len(found) == 9
    for row in range(3):
        for position in range(3):
            length = LENGTHS[row][position % len(LENGTHS[row])]
            rewards = [100 * row + 10 * position + t for t in range(length)]
            episode = found[row, position]
            assert episode.length == length
            assert episode.total_return == sum(rewards)
            assert episode.is_terminal == (row % 2 == 0)
            assert episode.target_return == 7.0
    assert env.seeds[0] == 11
    assert set(env.seeds[1:]) == {None}


def test_each_row_may_be_asked_for_its_own_return():
    episodes, _ = _run(target_return=np.array([1.0, 2.0, 3.5]))
    assert {(episode.row, episode.target_return) for episode in episodes} == {(0, 1.0), (1, 2.0), (2, 3.5)}


@pytest.mark.parametrize(("key", "expected"), [(None, 11), (jax.random.key(3), 3)])
def test_the_policy_gets_its_own_key_or_one_made_from_the_seed(key, expected):
    keys = []

    class Listening(testing.CountingPolicy):
        def start(self, num_rows, key):
            keys.append(jax.random.key_data(key).tolist())
            return super().start(num_rows, key)

    _run(policy=Listening(), key=key)
    assert keys == [jax.random.key_data(jax.random.key(expected)).tolist()]


def test_episodes_come_as_they_end():
    episodes, _ = _run()
    order = [(episode.row, episode.position) for episode in episodes]
    assert order == [(0, 0), (2, 0), (0, 1), (1, 0), (1, 1), (2, 1), (0, 2), (2, 2), (1, 2)]


def test_actions_reach_the_row_that_they_were_chosen_for():
    _, env = _run()
    for row, total in enumerate((2 + 3 + 2, 5 + 1 + 5, 9)):
        assert [int(action) for action in env.actions[row]] == [k % 5 for k in range(total)]


def test_the_policy_is_told_what_happened_and_nothing_else():
    policy = _Recorder()
    _run(policy=policy, target_return=np.array([1.0, 2.0, 3.0]))
    acts = [call for call in policy.record if call.name == "act"]
    begins = [call for call in policy.record if call.name == "begin_episode"]
    np.testing.assert_array_equal(sum(call.rows.astype(int) for call in begins), [3, 3, 3])
    np.testing.assert_array_equal(begins[0].rows, [True, True, True])
    np.testing.assert_array_equal(begins[0].values, [1, 2, 3])
    for row in range(3):
        mine = [call for call in acts if call.rows[row]]
        seen = [tuple(call.observation[row][:3]) for call in mine]
        played = [
            (row, position, t)
            for position in range(3)
            for t in range(LENGTHS[row][position % len(LENGTHS[row])])
        ]
        assert seen == played
        # The reward of the last step of an episode comes with the first step of the next.
        rewards = [100 * r + 10 * position + t for r, position, t in played]
        assert [call.values[row] for call in mine] == [0.0, *rewards[:-1]]


def test_an_episode_begins_before_the_act_that_it_begins_with():
    policy = _Recorder()
    _run(policy=policy)
    started = np.zeros(3, int)
    for call in policy.record:
        if call.name == "begin_episode":
            started += call.rows
        else:
            np.testing.assert_array_equal(call.observation[call.rows][:, 1], started[call.rows] - 1)


def test_rows_that_are_over_get_harmless_actions():
    box = testing.TWO_JOINTS

    class Wild(testing.CountingPolicy):
        def act(self, state, observation, previous_reward, active):
            state, actions = super().act(state, observation, previous_reward, active)
            return state, np.where(active[:, None], actions, np.nan).astype(np.float32)

    episodes, _ = _run(testing.TinyVectorEnv(LENGTHS, actions=box), Wild(box))
    assert len(episodes) == 9


def test_a_rollout_can_be_abandoned_and_repeated():
    env = testing.TinyVectorEnv(LENGTHS)
    generator = rollout(testing.CountingPolicy(), env, episodes_per_row=3, target_return=7.0, seed=11)
    next(generator)
    generator.close()
    assert _run(env)[0] == _run()[0]


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_numbers_that_are_not_finite_are_refused_by_place(what):
    class Broken(testing.TinyVectorEnv):
        def step(self, actions):
            observation, reward, *rest = super().step(actions)
            if self.episode[0] == 1 and self.t[0] == 2:
                (observation if what == "observation" else reward)[0] = np.inf
            return observation, reward, *rest

    with pytest.raises(
        UserError,
        match=rf"{what} that is not finite.*row 0 of Spoon-v1, episode 1 of its chain, step [12]",
    ):
        _run(Broken(LENGTHS), name="Spoon-v1")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RowError(2, "ArithmeticError: bent"),
            r"failed in row 2 of Spoon-v1, episode 1 of its chain, step 1: Arith",
        ),
        (UserError("worker process 0 hangs"), "Spoon-v1: worker process 0 hangs"),
        (
            KeyError("bowl"),
            r"failed, in a call for all rows \(.* row 1 of Spoon-v1, .* step 4\): KeyError: 'bowl'",
        ),
    ],
)
def test_an_environment_that_raises_is_named_with_the_place(error, expected):
    class Broken(testing.TinyVectorEnv):
        def step(self, actions):
            if self.t[1] == 4:
                raise error from ZeroDivisionError()
            return super().step(actions)

    with pytest.raises(UserError, match=expected) as caught:
        _run(Broken(LENGTHS), name="Spoon-v1")
    assert isinstance(
        caught.value.__cause__, ZeroDivisionError if isinstance(error, RowError) else type(error)
    )


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), SystemExit(3)])
def test_what_is_no_fault_of_the_environment_passes(error):
    class Stopped(testing.TinyVectorEnv):
        def reset(self, *, seed=None, options=None):
            raise error

    with pytest.raises(type(error)) as caught:
        _run(Stopped(LENGTHS))
    assert caught.value is error


def test_actions_that_are_not_finite_are_refused():
    class Diverged(testing.CountingPolicy):
        def act(self, state, observation, previous_reward, active):
            state, actions = super().act(state, observation, previous_reward, active)
            return state, np.full_like(actions, np.nan)

    with pytest.raises(UserError, match=r"policy chose an action that is not finite.*row 0.*diverged"):
        _run(testing.TinyVectorEnv(LENGTHS, actions=testing.TWO_JOINTS), Diverged(testing.TWO_JOINTS))


def _cart_poles(mode: AutoresetMode, count: int = 2) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * count, autoreset_mode=mode)


class _LeftRight(testing.CountingPolicy):
    def act(self, state, observation, previous_reward, active):
        state, actions = super().act(state, observation, previous_reward, active)
        return state, (actions % 2).astype(np.int32)


def test_an_environment_that_resets_itself_is_refused():
    with pytest.raises(ValueError, match="DISABLED"):
        _run(_cart_poles(AutoresetMode.NEXT_STEP))


def test_chains_in_gymnasium_environments_equal_each_environment_alone():
    together, _ = _run(_cart_poles(AutoresetMode.DISABLED, 1), _LeftRight(), seed=5, episodes_per_row=4)
    env, count, alone = gymnasium.make("CartPole-v1"), 0, []
    for position in range(4):
        env.reset(seed=5 if position == 0 else None)
        length, is_over = 0, False
        while not is_over:
            _, _, terminated, truncated, _ = env.step(count % 5 % 2)
            count, length, is_over = count + 1, length + 1, terminated or truncated
        alone.append(length)
    assert [episode.length for episode in together] == alone
    assert [episode.total_return for episode in together] == alone
