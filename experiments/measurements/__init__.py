"""What the benchmark measures, one module per part; needs no more than jax, flax, optax and numpy.

Importing anything from here also makes the annotations of `bpt_rl` importable where jaxtyping is missing.
"""

from experiments.measurements import stand_in

stand_in.register_if_missing()
