"""Several devices at one gradient step: who computes what, and how keys and values come together.

Where the rows of a batch come out even among the devices each computes its own (data parallelism). Else they share the
tokens of every row (context parallelism). Each then keeps its tokens' residual streams and computes all that belongs to
them; keys and values of whole rows are gathered layer by layer (or group of heads by group of heads), and their
gradients are summed where the tokens are. A row is cut into twice as many chunks as there are devices, and device i
holds chunks i and 2n - 1 - i: under a causal mask each then visits as many blocks of keys as every other.

References:
    Grattafiori et al. 2024, arXiv:2407.21783, Section 3.3.2 (context parallelism by gathering keys and values, two
    chunks to a device). Ring attention (Liu et al. 2023, arXiv:2310.01889) passes keys on instead, and never holds
    those of whole rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Num

from bpt_rl.ops.masks import Slice
from bpt_rl.types import UserError

AXIS = "devices"
# What every device has a copy of; arrays [B, T, ...] of which each has some rows, or some tokens of all rows.
WHOLE, ROWS, TOKENS = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)


def mesh(count: int) -> Mesh:
    """Returns the first so many devices as one axis.

    Raises:
        UserError: there are fewer.
    """
    found = jax.devices()
    if len(found) < count:
        raise UserError(
            f"schedule.devices={count}, but JAX finds {len(found)} ({found[0].platform}); take schedule.devices="
            f"{len(found)}, or where these are CPUs a process of its own (hydra/launcher=joblib in a sweep; in Python "
            f"jax.config.update('jax_num_cpu_devices', {count}) before anything is computed)"
        )
    return Mesh(np.array(found[:count]), (AXIS,))


def copied(count: int) -> NamedSharding:
    """Returns where arrays lie of which each of so many devices has a copy.

    Raises:
        UserError: there are fewer.
    """
    return NamedSharding(mesh(count), WHOLE)


def mapped(
    function: Callable[..., Array], count: int, *specs: Any, out: PartitionSpec
) -> Callable[..., Array]:
    """Returns the function of whole arrays of which every device computes its part; it can be differentiated.

    Args:
        function: of the arrays as each device sees them.
        count: devices.
        specs: of each argument, which part that is.
        out: of the result.

    Raises:
        UserError: there are fewer devices.
    """
    return jax.shard_map(function, mesh=mesh(count), in_specs=specs, out_specs=out, check_vma=False)


def consecutive(num_tokens: int, count: int) -> int:
    """Returns how many tokens of such rows a device holds one after the other, padding aside: a chunk, or all alone."""
    return num_tokens if count == 1 else -(-num_tokens // (2 * count))


def device_index() -> Int[Array, ""]:
    """Returns the number of the device that asks, within a function that is mapped."""
    return jax.lax.axis_index(AXIS)


@dataclass(frozen=True)
class Shards:
    """How the tokens of rows are shared.

    Attributes:
        count: devices.
        chunk: tokens of a chunk, of which each device holds two.
    """

    count: int
    chunk: int

    @classmethod
    def of(cls, num_tokens: int, count: int, block: int) -> "Shards":
        """Returns how rows of so many tokens are shared, padded so that chunks are whole blocks."""
        return cls(count, -(-consecutive(num_tokens, count) // block) * block)

    @property
    def num_tokens(self) -> int:
        """T, tokens of a row with its padding."""
        return 2 * self.count * self.chunk

    def place(self, tokens: Slice) -> Slice:
        """Returns where tokens of this device stand in their rows; they must lie within one chunk."""
        device = device_index()
        is_second = tokens.start >= self.chunk
        number = jnp.where(is_second, 2 * self.count - 1 - device, device)
        start = number * self.chunk + tokens.start - jnp.where(is_second, self.chunk, 0)
        return Slice(start, tokens.size)

    def gather(self, part: Float[Array, "B K C H"]) -> Float[Array, "B K T H"]:
        """Returns whole rows of what each device holds two chunks of."""
        B, K, _, H = part.shape
        parts = jax.lax.all_gather(part, AXIS, axis=2).reshape(B, K, self.count, 2, self.chunk, H)
        halves = (parts[:, :, :, 0], parts[:, :, ::-1, 1])
        return jnp.concatenate(halves, axis=2).reshape(B, K, self.num_tokens, H)

    def sum_scattered(self, whole: Float[Array, "B K T H"]) -> Float[Array, "B K C H"]:
        """Returns this device's tokens of the sum of all devices' whole rows."""
        B, K, _, H = whole.shape
        chunks = whole.reshape(B, K, 2 * self.count, self.chunk, H)
        pairs = jnp.stack((chunks[:, :, : self.count], chunks[:, :, : self.count - 1 : -1]), axis=3)
        mine = jax.lax.psum_scatter(pairs, AXIS, scatter_dimension=2)
        return mine.reshape(B, K, 2 * self.chunk, H)

    def split(self, x: Num[Array, "B T *D"]) -> Num[Array, "B T *D"]:
        """Puts the chunks of whole rows in the order in which equal parts go to the devices."""
        return self._chunks(x, self._order())

    def join(self, x: Num[Array, "B T *D"]) -> Num[Array, "B T *D"]:
        """Undoes `split`."""
        return self._chunks(x, np.argsort(self._order()))

    def _order(self) -> np.ndarray:
        first = np.arange(self.count)
        return np.stack((first, 2 * self.count - 1 - first), axis=1).ravel()

    def _chunks(self, x: Array, order: np.ndarray) -> Array:
        B, _, *rest = x.shape
        chunks = x.reshape(B, 2 * self.count, self.chunk, *rest)
        return jnp.concatenate([chunks[:, number] for number in order], axis=1)
