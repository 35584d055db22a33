"""Recomputed rewards are those that were recorded; many episodes come back in order, and no process is left behind."""

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest

from bpt_rl.types import UserError
from envs import relabelling, suite, worker_process


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log into the current folder.


@pytest.fixture(autouse=True, scope="module")
def _dm_control():
    pytest.importorskip("dm_control")


def _episode(path):
    with np.load(path, allow_pickle=False) as file:
        return file["physics"], file["action"], file["reward"][:, 0]


def _files(shared_data, name):
    files = sorted((shared_data / "exorl" / name).glob("episode_*.npz"))
    assert len(files) >= 120
    return files


def _cartpole(num_rows, *, seed=0):
    """Physics and actions that nobody recorded."""
    generator = np.random.default_rng(seed)
    return generator.uniform(-1, 1, (num_rows, 4)), generator.uniform(-1, 1, (num_rows, 1)).astype(np.float32)


@pytest.mark.parametrize("name", ["cartpole_swingup", "walker_walk"])
@pytest.mark.parametrize("every", [30, pytest.param(1, marks=pytest.mark.slow)])
def test_the_rewards_of_the_recorded_task_are_those_in_the_files(shared_data, name, every):
    domain, task = name.split("_")
    for path in _files(shared_data, name)[::every]:
        physics, actions, rewards = _episode(path)
        # The first row is ExoRL's dummy, which no action led to.
        found = relabelling.relabel(domain, task, physics, actions)[1:]
        np.testing.assert_allclose(found, rewards[1:], rtol=0, atol=1e-5)


def test_the_control_counts_where_a_reward_charges_for_it(shared_data):
    physics, actions, rewards = _episode(_files(shared_data, "cartpole_swingup")[0])
    without = relabelling.relabel("cartpole", "swingup", physics, np.zeros_like(actions))
    assert np.abs(without[1:] - rewards[1:]).max() > 1e-2


def test_rewards_of_all_tasks_at_once_are_those_of_each_alone(shared_data):
    physics, actions, _ = _episode(_files(shared_data, "walker_walk")[7])
    tasks = ("run", "stand", "walk")
    rewards = relabelling.relabel_all("walker", tasks, physics[:50], actions[:50])
    assert rewards.shape == (3, 50)
    for row, task in enumerate(tasks):
        alone = relabelling.relabel("walker", task, physics[:50], actions[:50])
        assert rewards[row].tolist() == alone.tolist()
    run, stand, walk = rewards
    # Who runs walks, and who walks stands, and is paid for each.
    assert (run <= walk).all()
    assert (walk <= stand).all()
    assert run.sum() < walk.sum() < stand.sum()


class _Fake:
    """A task that pays the number of its model, whichever simulator is in the recorded state."""

    def __init__(self, model, reward):
        self.model, self.physics, self.task = model, [model], self
        self.get_reward = lambda physics: reward + physics[0]
        self.num_entered = 0

    def check(self, physics, actions):
        pass

    def enter(self, state, action):
        self.num_entered += 1


def test_tasks_that_share_a_model_share_a_simulator_and_others_have_their_own(monkeypatch):
    fakes = {"a": _Fake(100, 1), "b": _Fake(200, 2), "c": _Fake(100, 3)}
    monkeypatch.setattr(relabelling, "recorded_task", lambda domain, task: fakes[task])
    physics, actions = _cartpole(5)
    rewards = relabelling.relabel_all("any", ("a", "b", "c"), physics, actions)
    assert rewards.tolist() == [[101] * 5, [202] * 5, [103] * 5]
    assert sum(fake.num_entered for fake in fakes.values()) == 2 * 5


def test_tasks_are_listed_whole_or_by_what_physics_tells():
    assert relabelling.tasks_of("walker") == ("stand", "walk", "run")
    assert relabelling.relabellable("walker", 18) == (("stand", "walk", "run"), {})
    told, refused = relabelling.relabellable("cartpole", 4)
    assert told == ("balance", "balance_sparse", "swingup", "swingup_sparse")
    assert list(refused) == ["two_poles", "three_poles"]
    assert refused["three_poles"].endswith("three_poles: the recorded physics have 4 components, expected 8")
    assert relabelling.relabellable("cartpole", 6)[0] == ("two_poles",)
    told, refused = relabelling.relabellable("finger", 6)
    assert told == ("spin",)
    assert "drawn anew in every episode" in refused["turn_easy"]
    assert relabelling.relabellable("walker", 17)[0] == ()


@pytest.mark.parametrize("workers", [0, 3])
def test_many_episodes_come_back_in_order(workers):
    # Of other lengths, and more than there are workers.
    episodes = [_cartpole(length, seed=length) for length in (40, 3, 1, 25, 2)]
    tasks = ("swingup", "swingup_sparse")
    found = list(relabelling.relabel_many("cartpole", tasks, iter(episodes), workers=workers))
    assert [rewards.shape for rewards in found] == [(2, 40), (2, 3), (2, 1), (2, 25), (2, 2)]
    for rewards, (physics, actions) in zip(found, episodes, strict=True):
        assert rewards.tolist() == relabelling.relabel_all("cartpole", tasks, physics, actions).tolist()
    assert not multiprocessing.active_children()


def test_no_more_episodes_are_asked_for_than_workers_can_use():
    asked = []

    def episodes():
        for number in range(9):
            asked.append(number)
            yield _cartpole(2)

    found = relabelling.relabel_many("cartpole", ("balance",), episodes(), workers=2)
    assert asked == []
    next(found)
    assert asked == [0, 1, 2]
    next(found)
    assert asked == [0, 1, 2, 3]
    assert len(multiprocessing.active_children()) == 2
    begun = time.monotonic()
    found.close()
    assert not multiprocessing.active_children()
    assert time.monotonic() - begun < worker_process.SECONDS_TO_LEAVE  # They left, and were not ended.


def test_an_error_in_a_worker_is_the_consumers():
    episodes = [_cartpole(2), (np.full((2, 4), np.nan), np.zeros((2, 1), np.float32)), _cartpole(2)]
    found = relabelling.relabel_many("cartpole", ("balance",), episodes, workers=2)
    next(found)
    with pytest.raises(UserError, match="physics or actions are not finite"):
        next(found)
    assert not multiprocessing.active_children()


def test_an_error_in_the_episodes_ends_the_workers():
    def episodes():
        yield _cartpole(2)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(relabelling.relabel_many("cartpole", ("balance",), episodes(), workers=2))
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_said():
    def episodes():
        yield _cartpole(2)
        (child,) = multiprocessing.active_children()
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        yield _cartpole(2)

    with pytest.raises(
        UserError, match=r"process 0, which computes rewards of cartpole, has died \(exit code -9\)"
    ):
        list(relabelling.relabel_many("cartpole", ("balance",), episodes(), workers=1))


def test_a_worker_that_hangs_is_named_and_ended(monkeypatch):
    monkeypatch.setattr(relabelling, "SECONDS_TO_ANSWER", 1.0)

    def episodes():
        yield _cartpole(2)
        yield _cartpole(3)
        (child,) = multiprocessing.active_children()
        os.kill(child.pid, signal.SIGSTOP)
        yield _cartpole(2)

    found = relabelling.relabel_many("cartpole", ("balance",), episodes(), workers=1)
    next(found)
    with pytest.raises(
        UserError,
        match=r"process 0, which computes rewards of cartpole, hangs: .* for 1 seconds.*dataset\.workers=0",
    ):
        list(found)  # The episode before may have come back in time.
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_physics_without_an_axis_of_components_are_refused(workers):
    physics, actions = _cartpole(3)
    for episode in ((physics[:, 0], actions), (physics, actions[:, 0])):
        with pytest.raises(UserError, match=r"are of shape \(3,\), expected one row per step"):
            list(relabelling.relabel_many("cartpole", ("balance",), iter([episode]), workers=workers))


def test_what_goes_wrong_in_a_worker_is_said_in_one_line(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no room")

    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr(relabelling, "relabel_all", fail)
    ours.send(_cartpole(2))
    ours.send(_cartpole(2))
    worker = threading.Thread(target=relabelling._work, args=(theirs, "cartpole", ("balance",)))
    worker.start()
    is_well, answer = ours.recv()
    ours.recv()
    ours.close()
    worker.join(5)
    assert not is_well
    assert "RuntimeError: no room" in answer
    assert "\n" not in answer


def test_a_task_that_is_not_there_is_refused_before_any_episode():
    with pytest.raises(UserError, match="no task 'wlk'; did you mean 'walk'"):
        relabelling.relabel_many("walker", ("stand", "wlk"), [], workers=2)
    assert suite.tasks_of is relabelling.tasks_of
