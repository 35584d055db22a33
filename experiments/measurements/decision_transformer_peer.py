"""The Decision Transformer that Hugging Face's `transformers` ships (PyTorch), as a training step and as a policy.

The sizes are Chen et al.'s for Hopper: three layers of width 128, one head, relu, dropout 0.1; AdamW with clipping.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from bpt_rl.types import Window

NUM_LAYERS, WIDTH, NUM_HEADS, RATE = 3, 128, 1, 0.1
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-4, 1e-4, 0.25


def make_model(window_steps: int, max_timestep: int, *, observation_size: int, action_size: int) -> Any:
    """Returns the network for windows of so many environment steps; uses one thread."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()  # It warns of its own defaults.
    return transformers.DecisionTransformerModel(
        transformers.DecisionTransformerConfig(
            state_dim=observation_size,
            act_dim=action_size,
            hidden_size=WIDTH,
            max_ep_len=max_timestep,
            n_positions=3 * window_steps,
            n_layer=NUM_LAYERS,
            n_head=NUM_HEADS,
            n_inner=4 * WIDTH,
            activation_function="relu",
            resid_pdrop=RATE,
            embd_pdrop=RATE,
            attn_pdrop=RATE,
        )
    )


def training_step(model: Any, batch: Window) -> Callable[[], None]:
    """Returns one gradient step on a batch without padding: mean squared error of the actions, clipping, AdamW."""
    import torch  # pyright: ignore[reportMissingImports]

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    given = {name: torch.from_numpy(np.array(values)) for name, values in _columns(batch).items()}
    mask = torch.ones(given["timesteps"].shape, dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        predicted = model(**given, attention_mask=mask, return_dict=True).action_preds
        torch.nn.functional.mse_loss(predicted, given["actions"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


class SlidingWindow:
    """Acts on the last so many environment steps, all of which the network reads again at every step.

    Args:
        model: from `make_model`.
        window: one row of past steps, as many as the window holds.
    """

    def __init__(self, model: Any, window: Window):
        import torch  # pyright: ignore[reportMissingImports]

        model.eval()
        self._torch, self._model = torch, model
        self._past = {name: torch.from_numpy(np.array(values)) for name, values in _columns(window).items()}
        self._mask = torch.ones(self._past["timesteps"].shape, dtype=torch.long)

    def act(
        self, observation: Float[np.ndarray, " O"], return_to_go: float, timestep: int
    ) -> Float[np.ndarray, " A"]:
        """Returns the action of one more step; the oldest leaves."""
        torch, past = self._torch, self._past
        new = {
            "states": torch.from_numpy(observation.astype(np.float32)),
            "actions": torch.zeros(past["actions"].shape[-1]),
            "rewards": torch.zeros(1),
            "returns_to_go": torch.tensor([return_to_go], dtype=torch.float32),
            "timesteps": torch.tensor(timestep),
        }
        with torch.inference_mode():
            for name, value in new.items():
                past[name] = torch.cat([past[name][:, 1:], value[None, None]], dim=1)
            found = self._model(**past, attention_mask=self._mask, return_dict=True).action_preds[:, -1]
            past["actions"][:, -1] = found
        return found[0].numpy()


def _columns(window: Window) -> dict[str, np.ndarray]:
    """Returns a window by the names that the network has for its columns."""
    return {
        "states": window.observations,
        "actions": window.actions,
        "rewards": window.rewards[..., None],
        "returns_to_go": window.returns_to_go[..., None],
        "timesteps": window.timesteps.astype(np.int64),
    }
