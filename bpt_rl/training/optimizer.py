"""AdamW with clipping, warm-up and decay, from a configuration."""

from typing import Any

import jax
import optax

from bpt_rl.training.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the gradient steps done: a linear warm-up, then the decay.

    Args:
        config: the optimiser.
        num_steps: gradient steps in all; the cosine ends there. A warm-up longer than that is cut to it.
    """
    warmup = min(config.warmup_steps, num_steps)
    if config.decay == "cosine":
        decay = optax.cosine_decay_schedule(
            config.learning_rate, max(num_steps - warmup, 1), alpha=config.final_fraction
        )
    else:
        decay = optax.constant_schedule(config.learning_rate)
    # The first of the warm-up's steps already moves: a rate of exactly 0 would waste it.
    rise = optax.linear_schedule(config.learning_rate / (warmup + 1), config.learning_rate, warmup)
    return optax.join_schedules([rise, decay], [warmup])


def build_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Returns the whole gradient transformation; arguments as for `learning_rate_schedule`.

    References:
        Loshchilov & Hutter 2017, arXiv:1711.05101 (AdamW).
    """
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    adamw = optax.adamw(
        learning_rate_schedule(config, num_steps),
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=is_decayed,
    )
    return optax.chain(clip, adamw)


def is_decayed(params: Any) -> Any:
    """Returns for each parameter whether weight decay applies: matrices yes; scales, biases and other vectors no.

    Layers under `scan` hold their parameters stacked, a vector of each layer as one matrix: so the name counts too.
    """
    return jax.tree_util.tree_map_with_path(_is_matrix, params)


def _is_matrix(path: tuple, leaf: Any) -> bool:
    name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
    return leaf.ndim >= 2 and not name.endswith(("scale", "bias"))
