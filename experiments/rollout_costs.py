"""What acting costs: one more token of a long context, one more step of a rollout, and what to set them beside.

Nothing is trained and nothing is played: the caches are filled with random numbers, since what a step costs does not
depend on them. Seconds are those that this process was busy (one core, where it is pinned to one).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

DECODE_LENGTHS = (4096, 65536)
MOST_RECOMPUTED = 4096
WINDOWS = (20, 200, 1000, 4000)


class Size(NamedTuple):
    """A network: float32, feed-forward four times the width."""

    num_layers: int
    width: int
    num_heads: int


class Seconds(NamedTuple):
    """Processor seconds of repeated runs."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class DecodeCost:
    """What one token costs when so many are in the cache.

    Attributes:
        tokens: in the cache.
        cache: type of the cache.
        bytes_per_token: of the caches of all layers.
        decode: of one token through the whole network.
        sum: of adding up every number in the caches, or None: other types than float32 are no measure of bandwidth.
        recompute: of the whole window, blockwise, or None where it would take long.
    """

    tokens: int
    cache: str
    bytes_per_token: float
    decode: Seconds
    sum: Seconds | None
    recompute: Seconds | None


@dataclass(frozen=True)
class RolloutCost:
    """What one environment step costs a policy that plays several environments, the simulators left out.

    Attributes:
        rows: environments.
        position: environment steps behind the present one, of every environment.
        tokens: the same in tokens.
        cache: type of the cache.
        cache_bytes: of all rows.
        act: of one call of `act`, divided by the rows.
        recompute: of `recompute_tokens` of one row read afresh, blockwise.
        recompute_tokens: where fewer than `tokens`, the whole costs at least tokens / recompute_tokens as much.
    """

    rows: int
    position: int
    tokens: int
    cache: str
    cache_bytes: int
    act: Seconds
    recompute: Seconds
    recompute_tokens: int

    @property
    def times_faster(self) -> float:
        """How many times cheaper a step is than reading the context afresh; at least, where less of it was read."""
        return self.recompute.median * self.tokens / self.recompute_tokens / self.act.median


@dataclass(frozen=True)
class WindowCost:
    """What one environment step costs a policy that sees a window, in one environment of the Hopper's sizes.

    Attributes:
        window: environment steps that it sees; all of them are there.
        layout: of the tokens.
        cache: type of the cache.
        act: of one call of `act`.
    """

    window: int
    layout: str
    cache: str
    act: Seconds


def decoding(config: Any) -> Iterator[dict[str, Any]]:
    """Yields rows for the benchmark's table: sizes and repeats are those of `config`."""
    size = Size(config.num_layers, config.width, config.num_heads)
    for cache in ("compute", "bfloat16", "int8"):
        for cost in decode_costs(size, DECODE_LENGTHS, cache=cache, repeats=config.repeats):
            yield {
                "tokens": cost.tokens,
                "cache": cost.cache,
                "bytes_per_token": cost.bytes_per_token,
                **_columns("decode", cost.decode),
                **_columns("sum", cost.sum),
                **_columns("recompute", cost.recompute),
                "decode_over_sum": cost.sum and cost.decode.median / cost.sum.median,
                "recompute_over_decode": cost.recompute and cost.recompute.median / cost.decode.median,
            }


def rollout(config: Any) -> Iterator[dict[str, Any]]:
    """Yields rows for the benchmark's table: an agent of 3 layers x 128 in 8 environments, and windows of one."""
    for cache in ("compute", "int8"):
        cost = rollout_cost(Size(3, 128, 1), cache=cache, repeats=config.repeats)
        yield {
            "case": f"{cost.rows} environments at step {cost.position}",
            "tokens": cost.tokens,
            "cache": cost.cache,
            **_columns("act", cost.act),
            "times_faster_than_recomputing": cost.times_faster,
        }
    for layout in ("step", "interleaved"):
        for cost in window_costs(Size(3, 128, 1), WINDOWS, layout=layout, repeats=config.repeats):
            yield {
                "case": f"one environment, window of {cost.window} steps, {layout}",
                "tokens": cost.window * _tokens_per_step(layout),
                "cache": cost.cache,
                **_columns("act", cost.act),
                "times_faster_than_recomputing": None,
            }


def decode_costs(
    size: Size, lengths: Sequence[int], *, cache: str = "compute", calls_per_run: int = 10, repeats: int = 5
) -> Iterator[DecodeCost]:
    """Yields what one token costs at each length, one row, in turns with the sum and with recomputing.

    Tokens are decoded and sums formed several times in a row, as a rollout does: what no one has touched for a second
    is slow to read, on a shared machine many times slower.
    """
    import jax
    import jax.numpy as jnp

    for tokens in lengths:
        capacity = tokens + calls_per_run * (repeats + 1)
        policy = _policy(size, "step", num_episodes=1, max_episode_steps=capacity, cache=cache)
        device = policy._on_device
        caches = [_filled(device.empty(1), tokens)]
        lines, reset, key = (
            np.zeros((1, policy._record.width), np.float32),
            np.zeros(1, bool),
            jax.random.key(0),
        )
        lines[:, policy._record.places["segment"]] = 1

        def decode() -> None:
            caches[0], _ = device.decode(caches[0], lines, reset, key, 0)  # noqa: B023

        arrays = [array for layer in caches[0].layers for array in layer[:4] if array is not None]
        num_bytes = sum(layer.num_bytes / layer.num_slots for layer in caches[0].layers)
        calls: dict[str, Callable[[], Any]] = {"decode": decode}
        add_up = jax.jit(lambda arrays: sum(jnp.sum(array) for array in arrays))
        if cache == "compute":  # Narrow types are not added up at the speed at which they are read.
            copies = [array + 0 for array in arrays]  # The caches are given away with every call.
            calls["sum"] = lambda: add_up(copies).block_until_ready()  # noqa: B023
        if tokens <= MOST_RECOMPUTED:
            calls["recompute"] = _recompute(policy, tokens)
        short = [name for name in calls if name != "recompute"]
        calls |= {name: _several(calls[name], calls_per_run) for name in short}
        seconds = interleaved_seconds(calls, repeats=repeats)
        seconds |= {name: _divided(seconds[name], calls_per_run) for name in short}
        yield DecodeCost(
            tokens, cache, num_bytes, seconds["decode"], seconds.get("sum"), seconds.get("recompute")
        )


def rollout_cost(
    size: Size,
    *,
    rows: int = 8,
    episodes: int = 32,
    episode_steps: int = 1000,
    layout: str = "interleaved",
    cache: str = "compute",
    recompute_tokens: int = 16384,
    repeats: int = 5,
) -> RolloutCost:
    """Returns what a step costs at the beginning of the last episode that the context has room for."""
    import jax

    num_tokens = _tokens_per_step(layout)
    policy = _policy(size, layout, num_episodes=episodes, max_episode_steps=episode_steps, cache=cache)
    position = (episodes - 1) * episode_steps
    state = policy.start(rows, jax.random.key(0))
    active, rng = np.ones(rows, bool), np.random.default_rng(0)
    state = policy.begin_episode(state, active, np.ones(rows))
    state.device = _filled(state.device, position * num_tokens)
    state.filled[:] = position
    state.starts = [list(range(0, position, episode_steps)) for _ in range(rows)]
    recompute_tokens = min(recompute_tokens, position * num_tokens)
    calls = {
        "act": _acting(policy, state, rng, active),
        "recompute": _recompute(policy, recompute_tokens // num_tokens),
    }
    seconds = interleaved_seconds(calls, repeats=repeats)
    return RolloutCost(
        rows=rows,
        position=position,
        tokens=position * num_tokens,
        cache=cache,
        cache_bytes=sum(layer.num_bytes for layer in state.device.layers),
        act=_divided(seconds["act"], rows),
        recompute=seconds["recompute"],
        recompute_tokens=recompute_tokens,
    )


def window_costs(
    size: Size,
    windows: Sequence[int],
    *,
    layout: str = "step",
    cache: str = "compute",
    calls_per_run: int = 50,
    repeats: int = 5,
) -> Iterator[WindowCost]:
    """Yields what a step costs in one environment once the window is full."""
    import jax

    for window in windows:
        tokens = window * _tokens_per_step(layout)
        policy = _policy(size, layout, num_episodes=1, max_episode_steps=10**6, window=tokens, cache=cache)
        state, active = policy.start(1, jax.random.key(0)), np.ones(1, bool)
        state = policy.begin_episode(state, active, np.ones(1))
        state.device = _filled(state.device, tokens)
        act = _acting(policy, state, np.random.default_rng(0), active)
        seconds = interleaved_seconds({"act": _several(act, calls_per_run)}, repeats=repeats)["act"]
        yield WindowCost(window, layout, cache, _divided(seconds, calls_per_run))


def interleaved_seconds(calls: dict[str, Callable[[], Any]], *, repeats: int) -> dict[str, Seconds]:
    """Times several calls in turns, after one warm-up each, so that what disturbs the machine disturbs them alike."""
    measured: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if repeat:
                measured[name].append(time.process_time() - start)
    return {name: Seconds(float(np.median(all_)), min(all_), max(all_)) for name, all_ in measured.items()}


def _several(call: Callable[[], Any], number: int) -> Callable[[], Any]:
    return lambda: [call() for _ in range(number)]


def _divided(seconds: Seconds, number: int) -> Seconds:
    return Seconds(*(value / number for value in seconds))


def _policy(
    size: Size, layout: str, *, num_episodes: int, max_episode_steps: int, cache: str, window: int = 0
) -> Any:
    """Returns a policy with random parameters and the Hopper's spaces, one token's positions without a table."""
    from flax import nnx

    from bpt_rl.data.normalisation import Normaliser
    from bpt_rl.data.tokens import TokenReader, feature_width
    from bpt_rl.evaluation.cached_policy import TransformerPolicy
    from bpt_rl.nn.config import BackboneConfig
    from bpt_rl.nn.trajectory_transformer import TrajectoryShape, TrajectoryTransformer
    from bpt_rl.ops.config import Schedule
    from bpt_rl.types import ContinuousActions, EnvSpec

    spec = EnvSpec("Hopper-v5", 11, ContinuousActions((-1.0,) * 3, (1.0,) * 3), max_episode_steps)
    normaliser = Normaliser(np.zeros(11, np.float32), np.ones(11, np.float32), 1.0, 1.0)
    num_tokens = _tokens_per_step(layout)
    model = TrajectoryTransformer(
        TrajectoryShape(feature_width(spec), num_tokens, max_episode_steps, num_episodes, spec.actions),
        BackboneConfig(*size[:2], num_heads=size.num_heads, window=window),
        Schedule(),
        timesteps="sinusoidal",
        convolution_taps=8 if num_tokens > 1 else 0,
        head="auto",
        num_bins=0,
        rngs=nnx.Rngs(params=0),
    )
    return TransformerPolicy(
        model,
        TokenReader(spec, normaliser, layout),
        num_episodes=num_episodes,
        max_episode_steps=max_episode_steps,
        temperature=0.0,
        cache=cache,
    )


def _acting(policy: Any, state: Any, rng: np.random.Generator, active: np.ndarray) -> Callable[[], None]:
    """Returns one call of `act` on something new; the state goes on from call to call."""
    held = [state]

    def act() -> None:
        observation = rng.standard_normal((len(active), 11)).astype(np.float32)
        held[0], _ = policy.act(held[0], observation, np.zeros(len(active)), active)

    return act


def _recompute(policy: Any, num_steps: int) -> Callable[[], Any]:
    """Returns a call that reads so many steps of one row afresh and returns the last action's parameters."""
    import jax
    from flax import nnx

    device, record = policy._on_device, policy._record
    model, reader = device.model, policy.reader
    lines = np.random.default_rng(0).standard_normal((1, num_steps, record.width)).astype(np.float32)
    for name, value in (("segment", 1), ("has_previous", 1), ("timestep", 0), ("episode_index", 0)):
        lines[..., record.places[name]] = value
    forward = nnx.jit(lambda model, lines: model(reader.read(record.unpack(lines)))[:, -1])
    return lambda: jax.block_until_ready(forward(model, lines))


def _filled(state: Any, tokens: int) -> Any:
    """Returns the state as if every row had read so many tokens; what the caches hold is drawn at random."""
    import jax
    import jax.numpy as jnp

    def draw(array: Any) -> Any:
        if array is None:
            return None
        key = jax.random.key(array.size % 97)
        if jnp.issubdtype(array.dtype, jnp.floating):
            return jax.random.normal(key, array.shape, array.dtype)
        if array.dtype == jnp.uint16:  # Bits of bfloat16.
            normal = jax.random.normal(key, array.shape, jnp.bfloat16)
            return jax.lax.bitcast_convert_type(normal, jnp.uint16)
        return jax.random.randint(key, array.shape, -127, 128, array.dtype)

    length = jnp.full(state.length.shape, tokens, jnp.int32)
    layers = tuple(type(layer)(*(draw(array) for array in layer[:4]), length) for layer in state.layers)
    return state._replace(length=length + 0, layers=_apart(layers))


def _apart(layers: tuple) -> tuple:
    """Every array a buffer of its own, as they are given away one by one."""
    return tuple(layer._replace(length=layer.length + 0) for layer in layers)


def _tokens_per_step(layout: str) -> int:
    from bpt_rl.data.tokens import tokens_per_step

    return tokens_per_step(layout)


def _columns(name: str, seconds: Seconds | None) -> dict[str, float | None]:
    values = seconds or (None,) * len(Seconds._fields)
    return {f"{name}_{field}": value for field, value in zip(Seconds._fields, values, strict=True)}
