"""The Adroit hand pays as D4RL recorded it: by hand, and on the demonstrations themselves."""

import numpy as np
import pytest

from envs import registry, simulators
from envs.config import EnvConfig


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log into the current folder.


@pytest.mark.usefixtures("robotics")
@pytest.mark.parametrize(
    "name",
    [
        "AdroitHandDoor-v1",
        "AdroitHandHammer-v1",
        "AdroitHandRelocate-v1",
        "gymnasium_robotics:AdroitHandDoor-v1",
    ],
)
def test_adroit_pays_minus_a_tenth_for_each_metre_to_the_object(name):
    palms = {
        "Door": ("grasp_site_id", "handle_site_id"),
        "Hammer": ("S_grasp_site_id",),
        "Relocate": ("S_grasp_site_id",),
    }
    as_d4rl, as_is = (simulators.make_single(EnvConfig(name, d4rl_rewards=flag)) for flag in (True, False))
    as_d4rl.reset(seed=3)
    as_is.reset(seed=3)
    as_d4rl.action_space.seed(0)
    for _ in range(4):
        action = as_d4rl.action_space.sample()
        mine, native = as_d4rl.step(action)[1], as_is.step(action)[1]
        simulator = as_is.unwrapped
        sites = palms[name.partition("AdroitHand")[2][:-3]]
        palm = simulator.data.site_xpos[getattr(simulator, sites[0])]
        if len(sites) == 2:
            target = simulator.data.site_xpos[getattr(simulator, sites[1])]
        else:
            target = simulator.data.xpos[simulator.obj_body_id]
        assert native - mine == pytest.approx(0.2 * np.linalg.norm(palm - target))
    as_d4rl.close()
    as_is.close()


@pytest.mark.usefixtures("robotics")
def test_sparse_rewards_of_adroit_stay_as_they_are():
    sparse = simulators.make_single(EnvConfig("AdroitHandDoor-v1", options={"reward_type": "sparse"}))
    sparse.reset(seed=0)
    assert sparse.step(np.zeros(28, np.float32))[1] == pytest.approx(-0.1)
    sparse.close()


@pytest.mark.usefixtures("robotics")
def test_the_pen_is_dropped_once_and_the_episode_over():
    lengths = []
    for flag in (True, False):
        env = registry.make_vector(EnvConfig("AdroitHandPen-v1", d4rl_rewards=flag), 1)
        env.reset(seed=0)
        env.action_space.seed(0)
        terminated, truncated, num_steps = [False], [False], 0
        while not (terminated[0] or truncated[0]):
            observation, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
            num_steps += 1
        lengths.append((num_steps, bool(terminated[0])))
        assert observation[0, 26] < 0.075  # By the end of 200 random steps it is down either way.
        assert (observation[0, 26] < 0.075) == (rewards[0] < -3)  # Minus 5 for a pen that lies below.
        env.close()
    assert lengths[0][1]
    assert 1 < lengths[0][0] < 200
    assert lengths[1] == (200, False)


def _replay(path, demos) -> tuple[list[float], list[float]]:
    """Plays recorded demonstrations of the door again; returns what they earn now and what the file says."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path) as file:
        ends = np.flatnonzero(file["terminals"][:] | file["timeouts"][:]) + 1
        starts = np.concatenate([[0], ends[:-1]])
        replayed, stored = [], []
        env = registry.make_vector(EnvConfig("AdroitHandDoor-v1", max_episode_steps=400), 1)
        for demo in demos:
            state = {key: file[f"metadata/init_{key}"][demo] for key in ("qpos", "qvel", "door_body_pos")}
            env.reset(seed=0, options={"initial_state_dict": state})
            steps = slice(starts[demo], ends[demo])
            replayed.append(sum(float(env.step(action[None])[1][0]) for action in file["actions"][steps]))
            stored.append(float(file["rewards"][steps].sum(dtype=np.float64)))
        env.close()
    return replayed, stored


@pytest.mark.usefixtures("robotics")
def test_recorded_demonstrations_of_the_door_earn_what_the_file_says(shared_data):
    # Two of those on which this version of MuJoCo stays with the recorded one; in others contacts go another way and
    # single returns differ by up to 38 %, though not their mean (below). The simulator's own sign would add 0.9 %.
    replayed, stored = _replay(shared_data / "real" / "door-human-dapg.hdf5", (9, 12))
    np.testing.assert_allclose(replayed, stored, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("robotics")
def test_all_demonstrations_of_the_door_earn_what_the_file_says(shared_data):
    replayed, stored = _replay(shared_data / "real" / "door-human-dapg.hdf5", range(25))
    assert np.mean(stored) == pytest.approx(794.1, abs=0.1)
    assert np.mean(replayed) == pytest.approx(795.9, abs=1.0)
