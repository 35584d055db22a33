"""A cached rollout equals one that reads its whole context afresh at every step, with the eyes of training."""

import jax
import numpy as np
import pytest
from flax import nnx

from bpt_rl.data.normalisation import Normaliser
from bpt_rl.data.tokens import TokenReader, feature_width, tokens_per_step
from bpt_rl.evaluation import cached_policy, compiled_policy
from bpt_rl.evaluation.cached_policy import TransformerPolicy
from bpt_rl.evaluation.prompt import chain_of
from bpt_rl.evaluation.rollout import rollout
from bpt_rl.nn.config import BackboneConfig
from bpt_rl.nn.trajectory_transformer import TrajectoryShape, TrajectoryTransformer
from bpt_rl.ops import cached_attention, key_value_cache, shards
from bpt_rl.ops.config import Schedule
from bpt_rl.testing import FIVE_ARMS, TWO_JOINTS, TinyVectorEnv, tiny_source
from bpt_rl.types import EnvSpec, UserError, Window
from tests.bpt_rl.nn.sequences import compiled

LENGTHS = ((2, 3), (5, 1, 4), (3,), (1, 5, 2))
NUM_EPISODES, CHAIN, LONGEST, TARGET = 3, 7, 5, 120.0
LONGEST_CONTEXT = 40  # Of all tests; windows are padded to it.


def _reader(layout, actions):
    normaliser = Normaliser(
        observation_mean=np.array([0.3, 1.0, 0.5, 0.0], np.float32),
        observation_std=np.array([1.5, 2.0, 0.7, 1.0], np.float32),
        reward_scale=90.0,
        return_scale=150.0,
    )
    return TokenReader(EnvSpec("tiny", 4, actions, LONGEST), normaliser, layout)


def _model(
    reader,
    *,
    taps,
    num_episodes=NUM_EPISODES,
    dtype="float32",
    window=0,
    longest=LONGEST,
    width=24,
    num_kv_heads=2,
):
    """Returns a model whose parameters are drawn by NumPy, none of them 0: JAX would compile a draw for every shape."""
    shape = TrajectoryShape(
        feature_width(reader.spec), tokens_per_step(reader.layout), longest, num_episodes, reader.spec.actions
    )
    backbone = BackboneConfig(
        num_layers=2, width=width, num_heads=4, num_kv_heads=num_kv_heads, dtype=dtype, window=window
    )
    model = nnx.eval_shape(
        lambda: TrajectoryTransformer(
            shape,
            backbone,
            Schedule(query_block=8, key_block=8),
            timesteps="learned",
            convolution_taps=taps,
            head="auto",
            num_bins=5,
            rngs=nnx.Rngs(params=1),
        )
    )
    graphdef, params = nnx.split(model)
    rng = np.random.default_rng(1)
    draw = lambda leaf: jax.device_put(rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype))
    return nnx.merge(graphdef, jax.tree.map(draw, params))


class _Recording:
    """Passes everything on to a policy and keeps what each row lived through and what the network said."""

    def __init__(self, policy, num_rows):
        self.policy, self.said = policy, []
        self.lived = [[] for _ in range(num_rows)]  # Per row, per episode: [observations, actions, rewards].
        self.begun = np.zeros(num_rows, bool)

    def start(self, num_rows, key):
        return self.policy.start(num_rows, key)

    def begin_episode(self, state, rows, target_return):
        self.begun |= rows
        return self.policy.begin_episode(state, rows, target_return)

    def act(self, state, observation, previous_reward, active):
        for row in np.flatnonzero(active):
            if self.lived[row]:
                self.lived[row][-1][2].append(previous_reward[row])
            if self.begun[row]:
                self.lived[row].append([[], [], []])
            self.lived[row][-1][0].append(observation[row].copy())
        self.begun[active] = False
        contexts = {
            int(row): [[list(part) for part in e] for e in self.lived[row]] for row in np.flatnonzero(active)
        }
        state, actions = self.policy.act(state, observation, previous_reward, active)
        self.said.append((contexts, state.parameters.copy()))
        self.state = state
        for row in np.flatnonzero(active):
            self.lived[row][-1][1].append(actions[row].copy())
        return state, actions


def _window(episodes, actions):
    """One row that holds the episodes as a training window would; the last action and reward are not known yet."""
    L = sum(len(observations) for observations, _, _ in episodes)
    rewards = [np.array([*gained, 0.0][: len(seen)], np.float64) for seen, _, gained in episodes]
    filler = np.zeros_like(np.asarray(episodes[-1][0][0][: actions.width])) if actions is TWO_JOINTS else 0
    acted = [[*chosen, filler][: len(seen)] for seen, chosen, _ in episodes]
    to_go = [TARGET - np.concatenate([[0.0], np.cumsum(gained)[:-1]]) for gained in rewards]
    completions = [np.zeros(len(gained)) for gained in rewards]
    for flags, gained in zip(completions[:-1], rewards[:-1], strict=True):
        flags[-1] = gained.sum() >= TARGET
    join = lambda parts, dtype: np.concatenate([np.asarray(part) for part in parts])[None].astype(dtype)
    return Window(
        observations=join([seen for seen, _, _ in episodes], np.float32),
        actions=join(acted, np.int32 if actions is FIVE_ARMS else np.float32),
        rewards=join(rewards, np.float32),
        returns_to_go=join(to_go, np.float32),
        completions=join(completions, np.float32),
        timesteps=join([np.arange(len(gained)) for gained in rewards], np.int32),
        episode_index=join([np.full(len(gained), i) for i, gained in enumerate(rewards)], np.int32),
        segments=np.ones((1, L), np.int32),
        loss_weights=np.ones((1, L), np.float32),
    )


def _play(
    reader, model, *, capacity=0, num_episodes=NUM_EPISODES, cache="compute", lengths=LENGTHS, prompt=None
):
    policy = TransformerPolicy(
        model,
        reader,
        num_episodes=num_episodes,
        max_episode_steps=max(map(max, lengths)),
        capacity=capacity,
        temperature=0.5,
        cache=cache,
    )
    recording = _Recording(policy, len(lengths))
    env = TinyVectorEnv(lengths, actions=reader.spec.actions)
    state = None if prompt is None else policy.start(len(lengths), jax.random.key(3), prompt)
    played = rollout(recording, env, episodes_per_row=CHAIN, target_return=TARGET, seed=3, state=state)
    assert len(list(played)) == CHAIN * len(lengths)
    return recording


def _largest_difference(recording, reader, model, context_of):
    forward = compiled(lambda model, window: model(reader.read_window(window)))
    differences, num_reads = [], 0
    for contexts, said in recording.said:
        for row, lived in contexts.items():
            window = _window(context_of(lived), reader.spec.actions)
            padded = jax.tree.map(
                lambda x: np.pad(x, [(0, 0), (0, LONGEST_CONTEXT - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]),
                window,
            )
            expected = np.asarray(forward(model, padded))[0, window.segments.shape[1] - 1]
            differences.append(np.abs(expected - said[row]).max())
            num_reads += 1
    assert num_reads > 40
    return float(np.max(differences))  # NaN if there is one.


@pytest.mark.parametrize(
    ("layout", "taps", "actions"),
    [("step", 0, FIVE_ARMS), ("interleaved", 8, TWO_JOINTS)],
)
def test_cached_equals_recomputed_across_re_prefills_with_rows_out_of_phase(layout, taps, actions):
    reader = _reader(layout, actions)
    model = _model(reader, taps=taps)
    recording = _play(reader, model)
    assert _largest_difference(recording, reader, model, lambda lived: lived[-NUM_EPISODES:]) < 1e-5


@pytest.mark.parametrize(
    ("layout", "num_kv_heads", "expected"), [("step", 4, 1), ("step", 2, 2), ("interleaved", 4, 4)]
)
def test_queries_that_share_a_cached_key_are_those_of_a_step_and_a_group(layout, num_kv_heads, expected):
    model = _model(_reader(layout, FIVE_ARMS), taps=0, num_kv_heads=num_kv_heads)
    assert compiled_policy.queries_per_step(model) == expected


def test_a_single_query_goes_through_the_cache_by_sums_and_is_compiled_for_it(monkeypatch):
    """A context of 25 slots is two blocks of two lanes."""
    monkeypatch.setattr(key_value_cache, "LARGEST_BLOCK", 16)
    monkeypatch.setattr(key_value_cache, "SMALLEST_BLOCK", 16)
    attend, jit, sums, options = cached_attention.attend, jax.jit, [], {}

    def spy_on_attend(*arguments, by_sums, **others):
        sums.append(by_sums)
        return attend(*arguments, by_sums=by_sums, **others)

    def spy_on_jit(function, **others):
        options[function.__name__] = others.get("compiler_options")
        return jit(function, **others)

    reader = _reader("step", FIVE_ARMS)
    model = _model(reader, taps=0, num_kv_heads=4)
    compiled_policy._compiled.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(cached_attention, "attend", spy_on_attend)
        patch.setattr(jax, "jit", spy_on_jit)
        recording = _play(reader, model, capacity=24)
    blocks, *_, slots = recording.state.device.layers[0].key.shape
    assert (blocks, slots) == (2, 2 * key_value_cache.SLOTS_PER_LANE)
    assert set(sums) == {True}
    assert options["decode"] == cached_attention.SUM_OPTIONS
    assert options["prefill"] is None
    assert _largest_difference(recording, reader, model, lambda lived: lived[-NUM_EPISODES:]) < 1e-5


def test_a_context_too_short_for_all_its_episodes_drops_the_oldest_until_a_whole_one_fits():
    capacity = 9

    def context_of(lived):
        kept = [lived[-1]]
        for episode in lived[-2::-1]:
            held = sum(len(seen) for seen, _, _ in kept[:-1]) + len(episode[0])
            if len(kept) == NUM_EPISODES or held + LONGEST > capacity:
                break
            kept.insert(0, episode)
        return kept

    reader = _reader("step", FIVE_ARMS)
    model = _model(reader, taps=0)
    recording = _play(reader, model, capacity=capacity)
    assert _largest_difference(recording, reader, model, context_of) < 1e-5


def test_one_episode_of_context_forgets_the_one_before():
    reader = _reader("step", FIVE_ARMS)
    model = _model(reader, taps=0, num_episodes=1)
    recording = _play(reader, model, num_episodes=1)
    assert _largest_difference(recording, reader, model, lambda lived: lived[-1:]) < 1e-5


@pytest.mark.parametrize(("num_episodes", "capacity"), [(1, 2), (3, 0)])
def test_a_window_bounds_the_cache_and_what_is_read_again_and_not_the_episode(num_episodes, capacity):
    """The ring of 13 slots comes round; with one episode the context is shorter than an episode."""
    lengths = ((17, 3), (2, 16, 1))
    reader = _reader("interleaved", FIVE_ARMS)
    model = _model(reader, taps=3, num_episodes=num_episodes, window=6, longest=17)
    recording = _play(reader, model, capacity=capacity, num_episodes=num_episodes, lengths=lengths)
    assert recording.state.device.layers[0].num_slots == 13
    context_of = lambda lived: lived[-num_episodes:]
    assert _largest_difference(recording, reader, model, context_of) < 1e-5


def test_a_prompt_is_the_beginning_of_every_context_until_it_leaves():
    reader = _reader("interleaved", TWO_JOINTS)
    model = _model(reader, taps=3)
    source = tiny_source(num_episodes=5, num_tasks=1, observation_size=4, actions=TWO_JOINTS, longest=LONGEST)
    chosen = np.array([3, 0])
    recording = _play(reader, model, prompt=chain_of(source, chosen, target_return=TARGET))
    ascending = chosen[np.argsort(source.returns[chosen])]
    shown = [
        [list(source[i].observations), list(source[i].actions), list(source[i].rewards)]
        for i in ascending.tolist()
    ]
    context_of = lambda lived: [*shown, *lived][-NUM_EPISODES:]
    assert _largest_difference(recording, reader, model, context_of) < 1e-5


def test_a_policy_acts_on_one_device_where_training_has_copies_on_several():
    reader = _reader("step", FIVE_ARMS)
    graphdef, params = nnx.split(_model(reader, taps=0))
    model = nnx.merge(graphdef, jax.device_put(params, shards.copied(2)))
    on_device = compiled_policy.OnDevice(model, reader, capacity=8, temperature=0.0, cache="compute")
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(on_device._params)} == {1}


def test_a_prompt_that_leaves_no_room_is_refused():
    reader = _reader("step", FIVE_ARMS)
    source = tiny_source(num_episodes=3, num_tasks=1, observation_size=4, longest=LONGEST)
    policy = TransformerPolicy(_model(reader, taps=0), reader, num_episodes=3, max_episode_steps=LONGEST)
    with pytest.raises(UserError, match=r"a prompt of 3 episodes .* leaves no room"):
        policy.start(2, jax.random.key(0), chain_of(source, np.arange(3), target_return=1.0))


@pytest.mark.parametrize(("cache", "tolerance"), [("bfloat16", 0.1), ("int8", 0.2)])
def test_narrow_caches_move_what_the_network_says_a_little(cache, tolerance):
    reader = _reader("step", TWO_JOINTS)
    model = _model(reader, taps=0)
    recording = _play(reader, model, cache=cache, lengths=((2, 5), (3, 1, 4)))
    assert recording.state.device.layers[0].key.dtype.itemsize == {"bfloat16": 2, "int8": 1}[cache]
    difference = _largest_difference(recording, reader, model, lambda lived: lived[-NUM_EPISODES:])
    assert 1e-5 < difference < tolerance


@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_a_step_of_the_policy_takes_no_scratch_memory_for_its_parameters_or_its_context(num_kv_heads):
    """Neither is a stacked parameter sliced by copying, nor a cache copied."""
    reader = _reader("step", FIVE_ARMS)

    def temp(capacity, width):
        model = _model(reader, taps=0, width=width, num_kv_heads=num_kv_heads)
        policy = TransformerPolicy(
            model, reader, num_episodes=3, max_episode_steps=LONGEST, capacity=capacity
        )
        return policy._on_device.decode_memory(1).temp_size_in_bytes

    # Sixteen and sixty-four blocks; the scores of eight are there at a time.
    assert temp(64 * 1024 - 1, 24) <= temp(16 * 1024 - 1, 24) + 256
    assert temp(20, 192) < 192 * 192 * 4
    # One write of one token, into a cache of one block.
    policy = TransformerPolicy(
        _model(reader, taps=0, width=128, num_kv_heads=num_kv_heads),
        reader,
        num_episodes=3,
        max_episode_steps=LONGEST,
        capacity=200,
    )
    cache = policy._on_device.empty(1).layers[0]
    assert cache.key.shape[0] == 1
    assert policy._on_device.decode_memory(1).temp_size_in_bytes < cache.num_bytes / 2


def test_a_context_that_cannot_hold_one_episode_is_refused():
    reader = _reader("step", FIVE_ARMS)
    with pytest.raises(UserError, match=r"5 steps, but the context holds 4; set context.steps to at least 5"):
        TransformerPolicy(
            _model(reader, taps=0), reader, num_episodes=3, max_episode_steps=LONGEST, capacity=4
        )


def test_an_episode_past_its_limit_is_an_error():
    reader = _reader("step", FIVE_ARMS)
    policy = TransformerPolicy(_model(reader, taps=0), reader, num_episodes=2, max_episode_steps=LONGEST)
    env = TinyVectorEnv(((6,),))
    with pytest.raises(UserError, match=r"past 5 steps; give the environment's real limit"):
        list(rollout(policy, env, episodes_per_row=1, target_return=1.0, seed=0))


def test_acting_before_an_episode_begins_is_an_error():
    reader = _reader("step", FIVE_ARMS)
    policy = TransformerPolicy(_model(reader, taps=0), reader, num_episodes=2, max_episode_steps=LONGEST)
    state = policy.start(2, jax.random.key(0))
    with pytest.raises(ValueError, match="begin_episode first"):
        policy.act(state, np.zeros((2, 4), np.float32), np.zeros(2), np.ones(2, bool))


def test_an_output_that_is_not_finite_is_an_error_and_not_an_action():
    reader = _reader("step", FIVE_ARMS)
    policy = TransformerPolicy(_model(reader, taps=0), reader, num_episodes=2, max_episode_steps=LONGEST)
    with pytest.raises(UserError, match=r"not finite in row 0, asked for a return of 1e\+300"):
        list(rollout(policy, TinyVectorEnv(LENGTHS), episodes_per_row=1, target_return=1e300, seed=0))


def test_one_number_of_one_row_that_is_not_finite_is_an_error_if_the_row_is_active():
    reader = _reader("step", FIVE_ARMS)
    policy = TransformerPolicy(_model(reader, taps=0), reader, num_episodes=2, max_episode_steps=LONGEST)
    state = policy.start(3, jax.random.key(0))
    state.parameters = np.zeros((3, 5), np.float32)
    state.parameters[1, 4] = np.nan
    cached_policy._require_finite(state, np.array([True, False, True]))
    with pytest.raises(UserError, match="not finite in row 1"):
        cached_policy._require_finite(state, np.array([True, True, True]))
