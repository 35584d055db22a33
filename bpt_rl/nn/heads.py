"""Action heads: what the network's last features say about the next action.

A head is a linear map to parameters, a loss per step in float32, and a way to choose: at temperature 0 the most
likely action, else a sample.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Num

from bpt_rl.types import ActionSpec, ContinuousActions, DiscreteActions, UserError, nearest

HEADS = ("categorical", "deterministic", "gaussian", "discretised")
LOG_STD_RANGE = (-5.0, 2.0)


@runtime_checkable
class ActionHead(Protocol):
    """Maps features to a distribution over actions.

    Attributes:
        num_outputs: P, numbers per step that it makes of features.
    """

    num_outputs: int

    def __call__(self, features: Float[Array, "B L D"]) -> Float[Array, "B L *P"]:
        """Returns the distribution's parameters, float32."""
        ...

    def loss(self, parameters: Float[Array, "B L *P"], actions: Num[Array, "B L *A"]) -> Float[Array, "B L"]:
        """Returns the loss of each action, float32."""
        ...

    def choose(
        self, parameters: Float[Array, "B L *P"], *, key: Key[Array, ""], temperature: float
    ) -> Num[Array, "B L *A"]:
        """Returns actions in the environment's units."""
        ...


def head_name(name: str, actions: ActionSpec) -> str:
    """Returns which head `name` stands for; `auto` is categorical for discrete actions, deterministic for continuous.

    Raises:
        UserError: the name is unknown, or does not suit the kind of actions.
    """
    is_discrete = isinstance(actions, DiscreteActions)
    if name == "auto":
        return "categorical" if is_discrete else "deterministic"
    if name not in HEADS:
        raise UserError(f"unknown agent.head {name!r}; {nearest(name, ['auto', *HEADS])}")
    if is_discrete != (name == "categorical"):
        kind = "discrete" if is_discrete else "continuous"
        raise UserError(f"agent.head={name} does not suit {kind} actions; set agent.head=auto")
    return name


def make_head(name: str, width: int, actions: ActionSpec, *, num_bins: int, rngs: nnx.Rngs) -> "ActionHead":
    """Returns the head called `name`, or `auto`; errors as for `head_name`."""
    name = head_name(name, actions)
    if isinstance(actions, DiscreteActions):
        return CategoricalHead(width, actions, rngs=rngs)
    if name == "discretised":
        return DiscretisedHead(width, actions, num_bins, rngs=rngs)
    return (DeterministicHead if name == "deterministic" else GaussianHead)(width, actions, rngs=rngs)


class CategoricalHead(nnx.Module):
    """Logits of discrete actions; the loss is the cross-entropy."""

    def __init__(self, width: int, actions: DiscreteActions, *, rngs: nnx.Rngs):
        self.num_outputs = actions.num_actions
        self.linear = _Linear(width, self.num_outputs, rngs=rngs)

    def __call__(self, features: Float[Array, "B L D"]) -> Float[Array, "B L P"]:
        """Returns logits."""
        return self.linear(features)

    def loss(self, parameters: Float[Array, "B L P"], actions: Num[Array, "B L"]) -> Float[Array, "B L"]:
        """Returns the cross-entropy in nats."""
        return _cross_entropy(parameters, actions)

    def choose(
        self, parameters: Float[Array, "B L P"], *, key: Key[Array, ""], temperature: float
    ) -> Num[Array, "B L"]:
        """Returns the most likely action, or a sample from softmax(logits / temperature)."""
        return _choose_category(parameters, key, temperature)


class DeterministicHead(nnx.Module):
    """One action inside the bounds, by tanh; the loss is the squared error in units of half the range."""

    def __init__(self, width: int, actions: ContinuousActions, *, rngs: nnx.Rngs):
        self.num_outputs = actions.width
        self.linear = _Linear(width, self.num_outputs, rngs=rngs)
        self.actions = actions

    def __call__(self, features: Float[Array, "B L D"]) -> Float[Array, "B L A"]:
        """Returns actions scaled to [-1, 1]."""
        return jnp.tanh(self.linear(features))

    def loss(self, parameters: Float[Array, "B L A"], actions: Num[Array, "B L A"]) -> Float[Array, "B L"]:
        """Returns the squared error, mean over components."""
        return jnp.square(parameters - _to_unit(actions, self.actions)).mean(axis=-1)

    def choose(
        self, parameters: Float[Array, "B L A"], *, key: Key[Array, ""], temperature: float
    ) -> Num[Array, "B L A"]:
        """Returns the action; there is nothing to sample."""
        del key, temperature
        return _from_unit(parameters, self.actions)


class GaussianHead(nnx.Module):
    """Mean (by tanh) and log standard deviation per component; the loss is the negative log-likelihood."""

    def __init__(self, width: int, actions: ContinuousActions, *, rngs: nnx.Rngs):
        self.num_outputs = 2 * actions.width
        self.linear = _Linear(width, self.num_outputs, rngs=rngs)
        self.actions = actions

    def __call__(self, features: Float[Array, "B L D"]) -> Float[Array, "B L P"]:
        """Returns means in [-1, 1] and clipped log standard deviations, side by side."""
        mean, log_std = jnp.split(self.linear(features), 2, axis=-1)
        return jnp.concatenate([jnp.tanh(mean), jnp.clip(log_std, *LOG_STD_RANGE)], axis=-1)

    def loss(self, parameters: Float[Array, "B L P"], actions: Num[Array, "B L A"]) -> Float[Array, "B L"]:
        """Returns the negative log-likelihood in nats, mean over components."""
        mean, log_std = jnp.split(parameters, 2, axis=-1)
        error = (_to_unit(actions, self.actions) - mean) * jnp.exp(-log_std)
        return (0.5 * jnp.square(error) + log_std + 0.5 * jnp.log(2 * jnp.pi)).mean(axis=-1)

    def choose(
        self, parameters: Float[Array, "B L P"], *, key: Key[Array, ""], temperature: float
    ) -> Num[Array, "B L A"]:
        """Returns the mean plus `temperature` standard deviations of noise, inside the bounds."""
        mean, log_std = jnp.split(parameters, 2, axis=-1)
        noise = temperature * jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return _from_unit(jnp.clip(mean + noise, -1, 1), self.actions)


class DiscretisedHead(nnx.Module):
    """Each component cut into equal bins, predicted independently; an action is the middle of its bin."""

    def __init__(self, width: int, actions: ContinuousActions, num_bins: int, *, rngs: nnx.Rngs):
        if num_bins < 2:
            raise ValueError(f"a discretised head needs at least 2 bins, got {num_bins}")
        self.num_outputs = actions.width * num_bins
        self.linear = _Linear(width, self.num_outputs, rngs=rngs)
        self.actions = actions
        self.num_bins = num_bins

    def __call__(self, features: Float[Array, "B L D"]) -> Float[Array, "B L A P"]:
        """Returns the logits of each component's bins."""
        logits = self.linear(features)
        return logits.reshape(*logits.shape[:2], self.actions.width, self.num_bins)

    def loss(self, parameters: Float[Array, "B L A P"], actions: Num[Array, "B L A"]) -> Float[Array, "B L"]:
        """Returns the cross-entropy in nats, mean over components."""
        unit = _to_unit(actions, self.actions)
        bins = jnp.clip((0.5 * (unit + 1) * self.num_bins).astype(jnp.int32), 0, self.num_bins - 1)
        return _cross_entropy(parameters, bins).mean(axis=-1)

    def choose(
        self, parameters: Float[Array, "B L A P"], *, key: Key[Array, ""], temperature: float
    ) -> Num[Array, "B L A"]:
        """Returns bin centres, the most likely or sampled."""
        bins = _choose_category(parameters, key, temperature)
        return _from_unit((2 * bins.astype(jnp.float32) + 1) / self.num_bins - 1, self.actions)


class _Linear(nnx.Module):
    """Features to parameters, in float32 whatever the features' type; starts near zero."""

    def __init__(self, width: int, num_outputs: int, *, rngs: nnx.Rngs):
        shape = (width, num_outputs)
        self.kernel = nnx.Param(0.1 * width**-0.5 * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_outputs, jnp.float32))

    def __call__(self, features: Float[Array, "B L D"]) -> Float[Array, "B L P"]:
        return features.astype(jnp.float32) @ self.kernel[...] + self.bias[...][None, None]


def _cross_entropy(logits: Float[Array, "*shape P"], labels: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    chosen = jnp.take_along_axis(logits, labels[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def _choose_category(
    logits: Float[Array, "*shape P"], key: Key[Array, ""], temperature: float
) -> Num[Array, "*shape"]:
    if temperature == 0:
        return logits.argmax(axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, logits / temperature, axis=-1).astype(jnp.int32)


def _to_unit(actions: Num[Array, "B L A"], spec: ContinuousActions) -> Float[Array, "B L A"]:
    low, high = _bounds(spec)
    return (2 * actions.astype(jnp.float32) - low - high) / jnp.maximum(high - low, 1e-6)


def _from_unit(unit: Float[Array, "B L A"], spec: ContinuousActions) -> Float[Array, "B L A"]:
    low, high = _bounds(spec)
    return 0.5 * (unit * (high - low) + low + high)


def _bounds(spec: ContinuousActions) -> tuple[Float[Array, "1 1 A"], Float[Array, "1 1 A"]]:
    return jnp.asarray(spec.low, jnp.float32)[None, None], jnp.asarray(spec.high, jnp.float32)[None, None]
