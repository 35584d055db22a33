"""Small files in D4RL's layout for Gymnasium's Pendulum-v1, whole or broken in one way."""

from pathlib import Path

import h5py
import numpy as np

NUM_STEPS = 60


def columns() -> dict[str, np.ndarray]:
    """Returns three episodes of 20 steps: observations of 3 components, one action within -2 .. 2."""
    rng = np.random.default_rng(0)
    timeouts = np.arange(NUM_STEPS) % 20 == 19
    return {
        "observations": rng.normal(size=(NUM_STEPS, 3)).astype(np.float32),
        "actions": rng.uniform(-2, 2, (NUM_STEPS, 1)).astype(np.float32),
        "rewards": -rng.random(NUM_STEPS).astype(np.float32),
        "terminals": np.zeros(NUM_STEPS, bool),
        "timeouts": timeouts,
    }


def write(path: Path, data: dict[str, np.ndarray]) -> Path:
    """Writes the columns and returns the path."""
    with h5py.File(path, "w") as file:
        for name, values in data.items():
            file[name] = values
    return path
