"""CPUs as several devices: JAX must be told before it computes anything."""

import contextlib


def make_room(count: int) -> None:
    """Has JAX see so many CPUs as devices, if it has not begun; where it has, training says what is missing.

    XLA hands every operation to threads of its own, which costs more than it gains where operations are short: one
    device per core uses them better.
    """
    import jax

    if count > 1:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)
