"""Every row's steps are counted, resets included; what cannot be made is left out and said."""

import numpy as np
import pytest
from gymnasium.spaces import MultiDiscrete

from bpt_rl.types import UserError
from envs import registry
from envs.config import EnvConfig
from experiments.measurements import environments
from experiments.measurements.tables import as_text
from experiments.measurements.timing import Timings


class _Vector:
    """Rows that last one, two, three, ... steps."""

    def __init__(self, num_envs):
        self.action_space = MultiDiscrete([3] * num_envs)
        self._lengths = np.arange(1, num_envs + 1)
        self._t = np.zeros(num_envs, int)
        self.num_steps, self.num_resets = 0, 0
        self.seen = []

    def reset(self, *, seed=None, options=None):
        mask = options["reset_mask"] if options else np.ones(len(self._t), bool)
        self._t[mask] = 0
        self.num_resets += int(mask.sum())

    def step(self, actions):
        assert (self._t < self._lengths).all(), "stepped a row that is over"
        self.seen.append(actions.tolist())
        self._t += 1
        self.num_steps += 1
        return None, None, self._t >= self._lengths, np.zeros(len(self._t), bool), {}


def test_rows_begin_again_at_once():
    env = _Vector(3)
    env.reset()
    environments.play(env, 6)
    assert (env.num_steps, env.num_resets) == (6, 3 + 6 + 3 + 2)
    assert len({tuple(actions) for actions in env.seen}) > 1


def test_the_number_of_steps_suits_the_time_that_they_take(monkeypatch):
    clock = iter([0.0, 0.01, 1.0, 1.02, 2.0, 2.2])
    monkeypatch.setattr(environments.time, "perf_counter", lambda: next(clock))
    env = _Vector(1)
    env.reset()
    assert environments._steps_that_take(0.5, env) == round(32 * 0.5 / 0.2)
    assert env.num_steps == 8 + 16 + 32


def test_steps_of_all_rows_are_divided_by_the_median_run():
    timings = Timings(cpu=[2.0, 1.0, 9.0], wall=[3.0, 20.0, 5.0])
    assert environments._per_second(30, timings) == (15.0, 6.0)


def test_an_environment_is_measured_in_every_way_it_can_be_played(make_job, monkeypatch):
    monkeypatch.setattr(environments, "SECONDS", 0.001)
    made = []
    make_vector = registry.make_vector

    def spying(config, num_envs):
        made.append((config.name, num_envs, config.workers))
        return make_vector(config, num_envs)

    monkeypatch.setattr(registry, "make_vector", spying)
    rows = list(environments.measure(make_job(environments=["dark_room", "CartPole-v1"])))
    assert made == [
        ("dark_room", 1, 0),
        ("dark_room", 8, 0),
        ("CartPole-v1", 1, 0),
        ("CartPole-v1", 8, 0),
        ("CartPole-v1", 8, 2),
    ]
    room, pole = rows
    assert (room["observation"], room["action"], room["workers_per_s"], room["runs"]) == (
        14,
        "1 of 5",
        None,
        1,
    )
    assert (pole["observation"], pole["action"]) == (4, "1 of 2")
    assert min(pole[key] for key in pole if key.endswith("_s")) > 0
    (table,) = environments.tables(as_text(rows))
    assert [line[0] for line in table.lines] == ["environment", "dark_room", "CartPole-v1"]
    assert table.lines[1][-1] == "-"


def test_rates_are_of_all_rows_together(make_job, monkeypatch):
    monkeypatch.setattr(environments, "_steps_that_take", lambda seconds, env: 6)
    taken = Timings(cpu=[2.0], wall=[4.0])
    monkeypatch.setattr(environments.timing, "interleaved", lambda calls, **_: dict.fromkeys(calls, taken))
    (row,) = environments.measure(make_job(environments=["cue_bandit"]))
    assert (row["single_per_cpu_s"], row["single_per_s"]) == (3, 1.5)
    assert (row["rows_per_cpu_s"], row["rows_per_s"]) == (24, 12)


def test_what_cannot_be_made_is_left_out_and_said(make_job, monkeypatch, capsys):
    monkeypatch.setattr(environments, "SECONDS", 0.001)
    monkeypatch.setattr(environments, "NAMES", ["Hoper-v5", "cue_bandit"])
    assert [row["environment"] for row in environments.measure(make_job())] == ["cue_bandit"]
    assert "left out: Hoper-v5 (no environment is called 'Hoper-v5'; the nearest" in capsys.readouterr().out


def test_those_that_are_asked_for_by_name_must_be_there():
    environments.require_there(["cue_bandit", "CartPole-v1"])
    with pytest.raises(UserError, match=r"benchmark\.environments: no environment is called 'Hoper-v5'"):
        environments.require_there(["cue_bandit", "Hoper-v5"])
    with pytest.raises(UserError, match=r"benchmark\.environments: env\.name is empty"):
        environments.require_there([""])


def test_by_default_there_is_one_of_each_kind(make_job, monkeypatch):
    asked = []
    monkeypatch.setattr(
        environments, "_measured", lambda name, job: asked.append(name) or {"environment": name}
    )
    assert len(list(environments.measure(make_job()))) == len(environments.NAMES)
    assert asked[0] == "dark_room"
    assert asked[-1] == "dm_control:walker/walk"


@pytest.mark.parametrize("name", environments.NAMES)
def test_the_names_are_those_of_environments(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log into the current folder.
    for library in ("mujoco", "gymnasium_robotics", "dm_control"):
        pytest.importorskip(library)
    assert registry.env_spec(EnvConfig(name)).name == name
