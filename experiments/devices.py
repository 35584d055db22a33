"""CPUs as several devices: JAX must be told before it computes anything."""

import contextlib


def make_room(count: int) -> None:
    """Has JAX see so many CPUs as devices, if it has not begun.

    XLA hands every operation to threads of its own, which costs more than it gains where operations are short: one
    device per core uses them better.

    Raises:
        UserError: there are fewer devices, of whatever kind JAX uses.
    """
    import jax

    from bpt_rl.ops import shards

    if count > 1:
        with contextlib.suppress(RuntimeError):  # It has begun.
            jax.config.update("jax_num_cpu_devices", count)
        shards.mesh(count)
