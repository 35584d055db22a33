"""In what runs differ: repetitions of one another, points of one series, or another series altogether."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from experiments.schema import TrainConfig

# Runs that differ in these alone are repetitions of one another.
SEEDS = ("seed", "env.split_seed", "dataset.seed")
# What decides where and how a run is made, and changes no number.
WITHOUT_EFFECT = (
    *("resume", "video", "tracker.kinds", "tracker.project", "training.keep_checkpoints"),
    *("dataset.cache", "dataset.workers", "env.workers", "env.worker_timeout"),
)
# No part of what is compared: the axis itself, and what changes no number.
SILENT = ("context.episodes", *WITHOUT_EFFECT)
AGENT = ("agent.name", "agent.top_fraction")
# Of agents that are called otherwise than their folder with spaces.
NAMES = {
    "agentic_transformer": "Agentic Transformer",
    "decision_transformer": "Decision Transformer",
}


def varying_keys(configs: Sequence[TrainConfig]) -> list[str]:
    """Returns the dotted keys in which the runs differ, besides seeds and context length."""
    every = [flat(config) for config in configs]
    keys = dict.fromkeys(key for values in every for key in values if key not in (*SEEDS, *SILENT))
    return [key for key in keys if any(values.get(key) != every[0].get(key) for values in every)]


def label(config: TrainConfig, varying: Iterable[str]) -> str:
    """Returns what sets a run's series apart, given the keys in which the runs differ; empty if there are none."""
    varying, values = list(varying), flat(config)
    parts = []
    if set(AGENT) & set(varying):
        share = config.agent.top_fraction
        parts.append(("" if share == 1 else f"{share:.0%} ") + _spoken(config.agent.name))
    parts += [f"{key}={values.get(key)}" for key in varying if key not in AGENT]
    return ", ".join(parts)


def flat(config: TrainConfig) -> dict[str, Any]:
    """Returns the configuration with dotted keys."""
    return _flat(asdict(config), "")


def _spoken(agent: str) -> str:
    return NAMES.get(agent, agent.replace("_", " "))


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flattened: dict[str, Any] = {}
    for key, value in values.items():
        flattened |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flattened
