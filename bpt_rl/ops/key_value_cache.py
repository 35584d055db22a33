"""Keys and values that are kept from call to call: how they lie, how they are written, how a block of them is read.

A cache is cut into blocks of slots. Each block lies together in memory, keys with the slots last. So do values of
narrow heads; those of wide heads lie with their width last, which fills vectors as well, and which products with the
weights of several queries are quickest at. Where a window bounds what a query sees, the slots are a ring, and the
newest tokens overwrite the oldest.

Shapes: C blocks, S slots per block, B rows, K key-value heads, T tokens of one call, H head width.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

# Of one block of keys, in float32. XLA for CPUs copies a block before it multiplies it: the second-level cache must
# hold a block of keys, one of values and the copies of both. Other devices want more at a time.
BLOCK_BYTES = {"cpu": 1 << 19}
OTHER_BLOCK_BYTES = 1 << 24
SMALLEST_BLOCK, LARGEST_BLOCK = 32, 1024
# From this width on a head is a wide one, and the most slots of its blocks.
WIDE_HEAD, LARGEST_WIDE_BLOCK = 128, 512
# Tokens that one call may append to a ring, besides the window.
MOST_TOKENS = 8
# Where there are several blocks their slots are a multiple of it; see `cached_attention`.
SLOTS_PER_LANE = 8
# Single writes of one call that are laid out one by one; more of them go into a loop, which is quicker to compile. So
# do those into a single block: XLA copies a block several times that is written to and read without a loop between.
MOST_WRITES = 8
# What each type of cache is kept as. XLA for CPUs widens bfloat16 arrays as a whole before it writes to them.
KEPT_AS = {"float32": "float32", "bfloat16": "uint16", "int8": "int8"}


class KeyValueCache(NamedTuple):
    """Keys and values of the tokens seen so far; each row is filled up to its own length.

    Attributes:
        key: rotated keys, float32, int8, or uint16: the bits of bfloat16; slots that hold no token hold finite numbers.
        value: values, likewise; `H S`, or of wide heads `S H`.
        key_scale: of int8: what to multiply a token's key by; None otherwise.
        value_scale: of int8, likewise.
        length: tokens seen, per row; a ring keeps the newest of them.
    """

    key: Num[Array, "C B K H S"]
    value: Num[Array, "C B K *slots"]
    key_scale: Float[Array, "C B K S"] | None
    value_scale: Float[Array, "C B K S"] | None
    length: Int[Array, " B"]

    @property
    def num_slots(self) -> int:
        """Slots of one row."""
        return self.key.shape[0] * self.key.shape[4]

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots, their scales included."""
        arrays = (self.key, self.value, self.key_scale, self.value_scale)
        return sum(array.size * array.dtype.itemsize for array in arrays if array is not None)


class NewRows(NamedTuple):
    """Stands for rows of a cache that have seen nothing and will now be filled in one call, blockwise.

    Attributes:
        block: S.
        most_blocks: C of the whole cache.
        window: of the ring, or 0.
        dtype: of the cache.
    """

    block: int
    most_blocks: int
    window: int
    dtype: str


def empty(
    num_rows: int, num_heads: int, head_width: int, *, capacity: int, window: int, dtype: str
) -> KeyValueCache:
    """Returns an empty cache.

    Args:
        num_rows: B.
        num_heads: K.
        head_width: H.
        capacity: most tokens of a row; a ring may see more.
        window: most tokens that a query sees; 0 is no limit. One that the capacity exceeds makes the cache a ring.
        dtype: one of `KEPT_AS`.

    Raises:
        ValueError: the type is not one of these.
    """
    # One slot more than tokens, so that there is always one where nothing can be harmed.
    num_blocks, block = _cut(capacity + 1, num_rows * num_heads, head_width)
    if 0 < window < num_blocks * block:
        num_blocks, block = _cut(window + MOST_TOKENS - 1, num_rows * num_heads, head_width)
    return _zeros((num_blocks, num_rows, num_heads, head_width, block), dtype)


def has_wide_heads(head_width: int) -> bool:
    """Says whether values of heads of this width lie with their width last."""
    return head_width >= WIDE_HEAD


def _cut(num_slots: int, heads_of_rows: int, head_width: int) -> tuple[int, int]:
    """Returns how many blocks of how many slots there are, at least `num_slots` in all."""
    num_bytes = BLOCK_BYTES.get(jax.default_backend(), OTHER_BLOCK_BYTES)
    largest = LARGEST_WIDE_BLOCK if has_wide_heads(head_width) else LARGEST_BLOCK
    block = min(max(num_bytes // (4 * heads_of_rows * head_width), SMALLEST_BLOCK), largest)
    num_blocks = -(-num_slots // block)
    block = -(-num_slots // num_blocks)
    return num_blocks, block + (-block % SLOTS_PER_LANE if num_blocks > 1 else 0)


def recast(cache: KeyValueCache, dtype: str) -> KeyValueCache:
    """Returns an empty cache of the same size that keeps another of the types `KEPT_AS`."""
    return _zeros(cache.key.shape, dtype)


def _zeros(shape: tuple[int, ...], dtype: str) -> KeyValueCache:
    """Returns an empty cache; `shape` is that of its keys."""
    if dtype not in KEPT_AS:
        raise ValueError(f"unknown type of cache {dtype!r}; known: {', '.join(KEPT_AS)}")
    C, B, K, H, S = shape
    numbers = lambda *tail: jnp.zeros((C, B, K, *tail), jnp.dtype(KEPT_AS[dtype]))
    scales = lambda: jnp.zeros((C, B, K, S), jnp.float32) if dtype == "int8" else None
    value = numbers(S, H) if has_wide_heads(H) else numbers(H, S)
    return KeyValueCache(numbers(H, S), value, scales(), scales(), jnp.zeros(B, jnp.int32))


def append(
    cache: KeyValueCache,
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    is_valid: Bool[Array, "B T"],
) -> KeyValueCache:
    """Writes each row's valid tokens, which must be contiguous, behind what the row holds; in place where donated.

    The caller sees to it that a row does not outgrow its capacity. What is not valid leaves zeros in the next slot,
    which the next token overwrites; every row then takes the same number of writes, and nothing need be read first.
    """
    B, T = is_valid.shape
    is_wide = has_wide_heads(key.shape[3])
    num_valid = is_valid.sum(axis=1, dtype=jnp.int32)
    step = jnp.arange(T, dtype=jnp.int32)[None]
    is_written = step < num_valid[:, None]
    slot = (cache.length[:, None] + jnp.minimum(step, num_valid[:, None])) % cache.num_slots
    if T > 1:
        column = jnp.minimum(_first_valid(is_valid)[:, None] + step, T - 1)[..., None, None]
        key, value = (jnp.take_along_axis(x, column, axis=1) for x in (key, value))
    key, value = (jnp.where(is_written[..., None, None], x, jnp.zeros((), x.dtype)) for x in (key, value))
    (key, key_scale), (value, value_scale) = (_encode(x, cache.key.dtype) for x in (key, value))

    def write(place: Array | int, arrays: tuple) -> tuple:
        row, token = place // T, place % T
        at = slot[row, token]
        index, within = at // cache.key.shape[4], at % cache.key.shape[4]
        put = lambda whole, part, *tail: (
            None if whole is None else jax.lax.dynamic_update_slice(whole, part, (index, row, 0, *tail))
        )
        part = lambda x, *axes: None if x is None else jnp.expand_dims(x[row, token], axes)
        return (
            put(arrays[0], part(key, 0, 1, 4), 0, within),
            put(arrays[1], part(value, 0, 1, 3), within, 0)
            if is_wide
            else put(arrays[1], part(value, 0, 1, 4), 0, within),
            put(arrays[2], part(key_scale, 0, 1, 3), within),
            put(arrays[3], part(value_scale, 0, 1, 3), within),
        )

    arrays = _arrays(cache)
    if B * T > MOST_WRITES or cache.key.shape[0] == 1:
        num_writes = B * T
        if num_writes == 1:  # Lengths are never negative, but XLA cannot know, and so keeps the loop.
            num_writes += (cache.length[0] < 0).astype(jnp.int32)
        arrays = jax.lax.fori_loop(0, num_writes, write, arrays)
    else:
        for place in range(B * T):
            arrays = write(place, arrays)
    return _cache(arrays, cache.length + num_valid)


def fill(
    rows: NewRows,
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    is_valid: Bool[Array, "B T"],
) -> KeyValueCache:
    """Returns rows that hold their valid tokens, of a ring the newest, in as many blocks as these may need."""
    num_blocks = rows.most_blocks
    if not rows.window:
        num_blocks = min(num_blocks, -(-key.shape[1] // rows.block))
    num_slots = num_blocks * rows.block
    length = is_valid.sum(axis=1, dtype=jnp.int32)
    place = position(jnp.arange(num_slots, dtype=jnp.int32), length, num_slots)
    column = jnp.clip(place + _first_valid(is_valid)[:, None], 0, key.shape[1] - 1)[..., None, None]
    is_held = (place >= 0)[..., None, None]
    held = lambda x: jnp.where(is_held, jnp.take_along_axis(x, column, axis=1), jnp.zeros((), x.dtype))
    (key, key_scale), (value, value_scale) = (_encode(held(x), jnp.dtype(rows.dtype)) for x in (key, value))

    def cut(x: Array | None) -> Array | None:
        """From B (C S) K ... to blocks."""
        if x is None:
            return None
        x = x.reshape(x.shape[0], num_blocks, rows.block, *x.shape[2:])
        return jnp.moveaxis(jnp.moveaxis(x, 1, 0), 2, -1)

    key, value, key_scale, value_scale = (cut(x) for x in (key, value, key_scale, value_scale))
    if has_wide_heads(key.shape[3]):
        value = value.swapaxes(3, 4)
    return _cache((key, value, key_scale, value_scale), length)


def new_rows(cache: KeyValueCache, *, window: int) -> NewRows:
    """Returns what `fill` must know to make rows that `put_rows` can put into `cache`."""
    num_blocks, *_, block = cache.key.shape
    return NewRows(block, num_blocks, window, str(cache.key.dtype))


def put_rows(cache: KeyValueCache, part: KeyValueCache, rows: Int[Array, " R"]) -> KeyValueCache:
    """Puts the rows of `part` in the places `rows` of `cache`; a last row that is missing is the one before it."""

    def put(index: Array, arrays: tuple) -> tuple:
        def put_one(whole: Array | None, new: Array | None) -> Array | None:
            if whole is None or new is None:
                return None
            row = jax.lax.dynamic_slice_in_dim(new, index, 1, axis=1)
            return jax.lax.dynamic_update_slice(whole, row, (0, rows[index], *(0,) * (whole.ndim - 2)))

        return tuple(put_one(whole, new) for whole, new in zip(arrays, _arrays(part), strict=True))

    arrays = jax.lax.fori_loop(0, rows.shape[0], put, _arrays(cache))
    return _cache(arrays, cache.length.at[rows].set(part.length))


def position(slot: Int[Array, " S"], length: Int[Array, " B"], num_slots: int) -> Int[Array, "B S"]:
    """Returns the place in its row of the token that each slot holds, below 0 where it holds none."""
    newest = length[:, None] - 1
    turn = jnp.floor_divide(newest, num_slots)
    is_older = slot[None] > newest - turn * num_slots  # Written one turn ago.
    return slot[None] + num_slots * (turn - is_older.astype(jnp.int32))


def take(x: Num[Array, "C *shape"], index: Array | int) -> Num[Array, "*shape"]:
    """Returns one block of keys, values or scales."""
    return jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False)


def read_block(
    x: Num[Array, "C B K *shape"], index: Array | int, dtype: jnp.dtype
) -> Float[Array, "B K *shape"]:
    """Returns a block of keys or values in the type `dtype`; shifting bfloat16's bits is as quick as reading them."""
    x = take(x, index)
    if x.dtype != jnp.uint16:
        return x.astype(dtype)
    if dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(x, jnp.bfloat16)
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << jnp.uint32(16), jnp.float32)


def _arrays(cache: KeyValueCache) -> tuple[Any, ...]:
    """Returns all but the lengths; scales may be None."""
    return (cache.key, cache.value, cache.key_scale, cache.value_scale)


def _cache(arrays: tuple[Any, ...], length: Int[Array, " B"]) -> KeyValueCache:
    key, value, key_scale, value_scale = arrays
    return KeyValueCache(key, value, key_scale, value_scale, length)


def _first_valid(is_valid: Bool[Array, "B T"]) -> Int[Array, " B"]:
    return is_valid.argmax(axis=1).astype(jnp.int32)


def _encode(x: Float[Array, "*shape H"], dtype: jnp.dtype) -> tuple[Num[Array, "*shape H"], Array | None]:
    """Returns numbers as the cache keeps them, and what to multiply them by."""
    if dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16), None
    if dtype != jnp.int8:
        return x.astype(dtype), None
    x = x.astype(jnp.float32)
    largest = jnp.abs(x).max(axis=-1)
    # What is not finite stays so, in its scale, and is noticed when it is read.
    scale = jnp.where(largest == 0, jnp.float32(1), largest) / jnp.float32(127)
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale
