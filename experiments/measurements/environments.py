"""Environment steps per second of every kind of environment: one row, several in this process, several in workers.

Actions are random and drawn beforehand; a row that is over begins again at once, so that every step of every row
counts, and resets cost what they cost. Processor seconds are those of this process: what workers use is seen by the
clock alone.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bpt_rl.types import DiscreteActions, EnvSpec, UserError
from envs.config import FAMILIES, EnvConfig
from experiments.measurements import timing
from experiments.measurements.job import Job
from experiments.measurements.tables import Row, Table, listed, number, text

NAMES = (
    *FAMILIES,
    "CartPole-v1",
    "Pendulum-v1",
    "Hopper-v5",
    "HalfCheetah-v5",
    "Hopper-v4",
    "Ant-v5",
    "AdroitHandDoor-v1",
    "PointMaze_UMaze-v3",
    "AntMaze_UMaze-v5",
    "FrankaKitchen-v1",
    "dm_control:cartpole/swingup",
    "dm_control:walker/walk",
)
ROWS, WORKERS = 8, 2
# Roughly how long one timed run takes.
SECONDS = 0.4
_NUM_ACTIONS = 64


def require_there(names: Iterable[str]) -> None:
    """Makes every environment once.

    Raises:
        UserError: one of them cannot be made.
    """
    from envs import registry

    for name in names:
        try:
            registry.env_spec(EnvConfig(name))
        except (UserError, ValueError) as error:
            raise UserError(f"benchmark.environments: {error}") from error


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per environment; one that cannot be made is said, and left out."""
    for name in job.config.environments or NAMES:
        try:
            yield _measured(name, job)
        except UserError as error:
            print(f"left out: {name} ({error})", flush=True)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns one line per environment."""
    columns = {
        "environment": text("environment"),
        "observation": number("observation", 0),
        "action": text("action"),
        "1 row, per CPU-s": number("single_per_cpu_s", 0),
        f"{ROWS} rows, per CPU-s": number("rows_per_cpu_s", 0),
        f"{ROWS} rows, per s": number("rows_per_s", 0),
        f"{ROWS} rows in {WORKERS} processes, per s": number("workers_per_s", 0),
    }
    title = "Environment steps per second, all rows together: random actions, resets included, medians"
    return [listed(title, rows, columns)]


def play(env: Any, num_steps: int) -> None:
    """Plays so many steps of every row of a vector that has been reset."""
    for actions in itertools.islice(itertools.cycle(_actions(env)), num_steps):
        _, _, terminated, truncated, _ = env.step(actions)
        over = terminated | truncated
        if over.any():
            env.reset(options={"reset_mask": over})


def _measured(name: str, job: Job) -> dict[str, Any]:
    from envs import registry

    spec = registry.env_spec(EnvConfig(name))
    made = {"single": (1, 0), "rows": (ROWS, 0)}
    if name not in FAMILIES:  # The families advance all rows at once, and know no workers.
        made["workers"] = (ROWS, WORKERS)
    calls: dict[str, Callable[[], None]] = {}
    steps: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for way, (num_rows, workers) in made.items():
            env = registry.make_vector(EnvConfig(name, workers=workers), num_rows)
            stack.callback(env.close)
            env.reset(seed=0)
            num_steps = _steps_that_take(SECONDS, env)
            steps[way] = num_steps * num_rows
            calls[way] = lambda env=env, num_steps=num_steps: play(env, num_steps)
        timings = timing.interleaved(calls, repeats=job.config.repeats, most_seconds=job.config.most_seconds)
    rates = {way: _per_second(steps[way], timings[way]) for way in timings}
    return {
        "environment": name,
        "observation": spec.observation_size,
        "action": _action(spec),
        "single_per_cpu_s": rates["single"][0],
        "rows_per_cpu_s": rates["rows"][0],
        "single_per_s": rates["single"][1],
        "rows_per_s": rates["rows"][1],
        "workers_per_s": rates["workers"][1] if "workers" in rates else None,
        "runs": len(timings["rows"].wall),
    }


def _actions(env: Any) -> list[Any]:
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(_NUM_ACTIONS)]


def _steps_that_take(seconds: float, env: Any) -> int:
    """Returns how many steps of a vector take about so long; plays some to find out."""
    num_steps = 8
    while True:
        start = time.perf_counter()
        play(env, num_steps)
        taken = time.perf_counter() - start
        if taken >= seconds / 4:
            return max(1, round(num_steps * seconds / taken))
        num_steps *= 2


def _per_second(num_steps: int, timings: timing.Timings) -> tuple[float, float]:
    """Returns steps per processor second and per second of the clock, medians."""
    return num_steps / statistics.median(timings.cpu), num_steps / statistics.median(timings.wall)


def _action(spec: EnvSpec) -> str:
    discrete = isinstance(spec.actions, DiscreteActions)
    return f"1 of {spec.actions.width}" if discrete else str(spec.actions.width)
