"""Our Decision Transformer at the peer's sizes: the same tokens, widths and dropout, as a training step and acting."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpt_rl.data.normalisation import Normaliser
from bpt_rl.data.tokens import LAYOUTS, TokenReader, feature_width
from bpt_rl.types import StepInputs, Tokens, Window
from experiments.measurements import decision_transformer_peer as peer
from experiments.measurements import whole_steps
from experiments.measurements.whole_steps import SPEC

NUM_KINDS = 3
OUTCOME = LAYOUTS["interleaved"].index("outcome")


@dataclass(frozen=True, eq=False)
class ThreeTokens(TokenReader):
    """Leaves the token of rewards out of the interleaved layout, which carries nothing where rewards are not seen."""

    def read(self, inputs: StepInputs) -> Tokens:
        """Returns (action, return-to-go, state) of every step."""
        num_kinds = len(LAYOUTS["interleaved"])

        def without(column: Any) -> Any:
            groups = column.reshape(column.shape[0], -1, num_kinds, *column.shape[2:])
            kept = np.delete(np.arange(num_kinds), OUTCOME)
            return groups[:, :, kept].reshape(column.shape[0], -1, *column.shape[2:])

        tokens = Tokens(*map(without, super().read(inputs)))
        return tokens._replace(kinds=tokens.kinds - (tokens.kinds > OUTCOME))


def make_model(max_timestep: int, *, sees: int = 0) -> Any:
    """Returns the network; `sees` is the most tokens that a token sees, 0 all."""
    from flax import nnx

    from bpt_rl.nn.config import BackboneConfig
    from bpt_rl.nn.trajectory_transformer import TrajectoryShape, TrajectoryTransformer
    from bpt_rl.ops.config import Schedule

    backbone = BackboneConfig(
        num_layers=peer.NUM_LAYERS,
        width=peer.WIDTH,
        num_heads=peer.NUM_HEADS,
        norm="layer",
        activation="relu",
        rotary_base=0.0,
        window=sees,
        attention_dropout=peer.RATE,
        residual_dropout=peer.RATE,
        embedding_dropout=peer.RATE,
    )
    return TrajectoryTransformer(
        TrajectoryShape(feature_width(SPEC), NUM_KINDS, max_timestep, 1, SPEC.actions),
        backbone,
        Schedule(),
        timesteps="learned",
        convolution_taps=0,
        head="deterministic",
        num_bins=0,
        rngs=nnx.Rngs(params=0),
    )


def make_reader() -> TokenReader:
    """Returns the reader of the three tokens."""
    one = np.ones(SPEC.observation_size, np.float32)
    return ThreeTokens(SPEC, Normaliser(0 * one, one, 1.0, 1.0), "interleaved", sees_rewards=False)


def training_step(batch: Window) -> Callable[[], None]:
    """Returns one gradient step: the agent's loss with dropout, clipping, AdamW."""
    from agents.decision_transformer.loss import loss

    reader = make_reader()
    return whole_steps.gradient_step(
        make_model(batch.rewards.shape[1]),
        lambda model, batch, key: loss(model, reader, batch, key),
        batch,
        learning_rate=peer.LEARNING_RATE,
        weight_decay=peer.WEIGHT_DECAY,
        clip=peer.CLIP,
    )


class Filled:
    """The cached policy in the middle of an episode: as many steps behind it as the window holds.

    Args:
        window_steps: environment steps that every step sees, itself included.
        more: environment steps that will follow.
        cache: type of the cached keys and values.
    """

    def __init__(self, window_steps: int, more: int, *, cache: str = "compute"):
        import jax

        from bpt_rl.evaluation.cached_policy import TransformerPolicy

        longest = window_steps + more
        self._policy = TransformerPolicy(
            make_model(longest, sees=NUM_KINDS * window_steps),
            make_reader(),
            num_episodes=1,
            max_episode_steps=longest,
            temperature=0.0,
            cache=cache,
        )
        self._state = self._policy.start(1, jax.random.key(0))
        self._active = np.ones(1, bool)
        self._state = self._policy.begin_episode(self._state, self._active, np.ones(1))
        rng = np.random.default_rng(0)
        for _ in range(window_steps):
            self.act(rng.standard_normal(SPEC.observation_size), 0.0)

    def act(self, observation: np.ndarray, reward: float) -> np.ndarray:
        """Returns the next action."""
        given = np.asarray(observation, np.float32)[None], np.full(1, reward), self._active
        self._state, actions = self._policy.act(self._state, *given)
        return actions[0]
