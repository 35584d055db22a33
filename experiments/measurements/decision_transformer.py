"""Beside the Decision Transformer a user would otherwise pick: Hugging Face's, in one process on one core.

Both networks have the same sizes, read the same three tokens per environment step (return-to-go, state, action), drop
at the same rates in the same places, and take steps of AdamW. A rollout plays Hopper-v5 with a full window at every
timed step: theirs reads the window again, ours keeps keys and values and sees the same number of steps back. Theirs is
played first, once for a window, and ours once for each type of cache; how much a type changes the actions of an
untrained network is told beside its time.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from bpt_rl.types import UserError, Window
from experiments.measurements import decision_transformer_peer as peer
from experiments.measurements import our_decision_transformer as ours
from experiments.measurements import processes, timing
from experiments.measurements.config import MeasurementConfig
from experiments.measurements.job import Job
from experiments.measurements.tables import Row, Table, count, listed, number, ratio, text
from experiments.measurements.whole_steps import SPEC

NEEDED = ("torch", "transformers", "gymnasium", "mujoco")
BATCH_STEPS = 1280  # environment steps of a training batch, whatever the window
# Environment steps that are timed: many of ours, few of theirs where each takes seconds.
OUR_STEPS, THEIR_TOKENS = 400, 60_000
# Environment steps of a rollout that do not count; and at how many observations the actions of two caches are compared.
WARM_UP, COMPARED = 5, 100
BOTH = ("ours", "transformers")
# From an observation and the reward before it to an action.
Act = Callable[[np.ndarray, float], np.ndarray]


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per kind of work and window.

    Raises:
        UserError: a library is missing.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{missing[0]} is not installed; pip install torch transformers -e '.[mujoco]'")
    first = processes.usable_cores()[:1]
    for steps in job.config.windows:
        yield processes.in_child(train, job.config, steps, cores=first)
    for steps in job.config.rollout_windows:
        yield from processes.in_child(play, steps, job.config.rollout_caches, cores=first)


def train(config: MeasurementConfig, window_steps: int) -> dict[str, Any]:
    """Returns the processor seconds of a training step of both, taken in turns."""
    batch = noise(max(1, BATCH_STEPS // window_steps), window_steps)
    sizes = {"observation_size": SPEC.observation_size, "action_size": SPEC.actions.width}
    model = peer.make_model(window_steps, window_steps, **sizes)
    calls = {"ours": ours.training_step(batch), "transformers": peer.training_step(model, batch)}
    timings = timing.interleaved(calls, repeats=config.repeats, most_seconds=config.most_seconds)
    return _row("training step", window_steps, len(batch.rewards), timings)


def play(window_steps: int, caches: Sequence[str]) -> list[dict[str, Any]]:
    """Returns, per cache of ours, the processor seconds of an environment step of both: network and Hopper-v5."""
    few = max(5, min(OUR_STEPS, THEIR_TOKENS // window_steps // 3))
    theirs = _played(_theirs(window_steps), few)
    make = lambda cache: ours.Filled(window_steps, COMPARED + WARM_UP + OUR_STEPS, cache=cache)
    exact = make("compute")
    exact_actions = _actions(exact)
    rows = []
    for cache in dict.fromkeys(caches):
        player = exact if cache == "compute" else make(cache)
        actions = exact_actions if player is exact else _actions(player)
        timings = {"ours": _played(player.act, OUR_STEPS), "transformers": theirs}
        row = _row("environment step", window_steps, 1, timings)
        rows.append(
            {**row, "cache": cache, "largest_change_of_actions": largest_change(actions, exact_actions)}
        )
    return rows


def largest_change(actions: Float[np.ndarray, "steps A"], exact: Float[np.ndarray, "steps A"]) -> float:
    """Returns by how much any number of any action differs."""
    return float(np.abs(actions - exact).max())


def _row(work: str, window_steps: int, batch: int, timings: dict[str, timing.Timings]) -> dict[str, Any]:
    # Medians, and beside them how often the work is done in a second of processor time, over all runs.
    medians = {name: timing.median_cpu(timings, name) for name in BOTH}
    rates = {name: len(timings[name].cpu) / sum(timings[name].cpu) for name in BOTH}
    spreads = {f"{key}_{name}": value for name in BOTH for key, value in timings[name].columns().items()}
    return {
        "work": work,
        "cache": "",
        "window_steps": window_steps,
        "tokens": 3 * window_steps,
        "batch": batch,
        **spreads,
        "ours_over_transformers": ratio(medians["ours"], medians["transformers"]),
        **{f"per_cpu_second_{name}": rate for name, rate in rates.items()},
        "times_as_often": ratio(rates["ours"], rates["transformers"]),
        "largest_change_of_actions": None,
    }


def _actions(player: ours.Filled) -> Float[np.ndarray, "steps A"]:
    """Returns what a player does at observations that are the same for every player."""
    rng = np.random.default_rng(1)
    observations = rng.standard_normal((COMPARED, SPEC.observation_size))
    return np.stack([player.act(observation, 0.0) for observation in observations])


def _played(act: Act, steps: int) -> timing.Timings:
    """Returns the times of so many steps of one long episode; falling over does not end it."""
    import gymnasium

    limit = steps + WARM_UP
    env = gymnasium.make("Hopper-v5", terminate_when_unhealthy=False, max_episode_steps=limit + 1)
    at = {"observation": env.reset(seed=0)[0], "reward": 0.0}
    timings = timing.Timings()

    def step() -> None:
        action = act(at["observation"], at["reward"])
        at["observation"], at["reward"] = env.step(np.clip(action, -1, 1))[:2]

    for index in range(limit):
        step() if index < WARM_UP else timings.add(step)
    env.close()
    return timings


def _theirs(window_steps: int) -> Act:
    sizes = {"observation_size": SPEC.observation_size, "action_size": SPEC.actions.width}
    model = peer.make_model(window_steps, window_steps, **sizes)
    window = peer.SlidingWindow(model, noise(1, window_steps))
    return lambda observation, _: window.act(observation, 1.0, window_steps - 1)


def noise(num_rows: int, num_steps: int) -> Window:
    """Returns rows of one episode each, without padding."""
    rng, shape = np.random.default_rng(0), (num_rows, num_steps)
    ones = np.ones(shape, np.float32)
    return Window(
        observations=rng.standard_normal((*shape, SPEC.observation_size), np.float32),
        actions=rng.uniform(-1, 1, (*shape, SPEC.actions.width)).astype(np.float32),
        rewards=rng.standard_normal(shape, np.float32),
        returns_to_go=rng.standard_normal(shape, np.float32),
        completions=0 * ones,
        timesteps=np.broadcast_to(np.arange(num_steps, dtype=np.int32), shape).copy(),
        episode_index=np.zeros(shape, np.int32),
        segments=np.ones(shape, np.int32),
        loss_weights=ones,
    )


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns one table for training and one for rollouts."""
    found = []
    for work in dict.fromkeys(row["work"] for row in rows):
        caches = {"our cache": text("cache"), "action differs by": number("largest_change_of_actions", 5)}
        columns = {
            "window, steps": lambda row: count(row["window_steps"]),
            "tokens": number("tokens", 0),
            "batch": text("batch"),
            "ours, ms": number("cpu_s_ours", 2, 1e3),
            "transformers, ms": number("cpu_s_transformers", 2, 1e3),
            "ours / theirs": number("ours_over_transformers"),
            "ours, per s": number("per_cpu_second_ours", 1),
            "transformers, per s": number("per_cpu_second_transformers", 1),
            "times as often": number("times_as_often", 1),
            **(caches if work == "environment step" else {}),
        }
        title = f"Decision Transformer beside Hugging Face's, one core: processor milliseconds of one {work}, median"
        found.append(listed(title, [row for row in rows if row["work"] == work], columns))
    return found
