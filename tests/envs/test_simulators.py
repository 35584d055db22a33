"""MuJoCo environments behave as their own documentation and recorded data say; what cannot be made is explained."""

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest

from bpt_rl.types import ContinuousActions, EnvSpec, UserError
from envs import registry, simulators
from envs.config import EnvConfig


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log into the current folder.


@pytest.mark.usefixtures("mujoco")
@pytest.mark.parametrize(
    ("name", "observation_size", "action_width"),
    [
        ("Hopper-v4", 11, 3),
        ("Hopper-v5", 11, 3),
        ("HalfCheetah-v4", 17, 6),
        ("HalfCheetah-v5", 17, 6),
        ("Walker2d-v5", 17, 6),
        ("Ant-v5", 105, 8),
    ],
)
def test_locomotion_is_made_without_a_warning(name, observation_size, action_width):
    actions = ContinuousActions((-1.0,) * action_width, (1.0,) * action_width)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert registry.env_spec(EnvConfig(name)) == EnvSpec(name, observation_size, actions, 1000)
    assert not caught


@pytest.mark.usefixtures("robotics")
def test_adroit_and_dict_observations_are_made():
    spec = registry.env_spec(EnvConfig("AdroitHandDoor-v1", max_episode_steps=400))
    assert (spec.observation_size, spec.actions.width, spec.max_episode_steps) == (39, 28, 400)
    assert registry.env_spec(EnvConfig("PointMaze_UMaze-v3")).observation_size == 8


@pytest.mark.usefixtures("robotics")
@pytest.mark.parametrize(
    ("name", "observation_size", "limit"),
    [
        ("AntMaze_UMaze-v4", 27 + 2 + 2, 700),
        ("AntMaze_UMaze-v5", 105 + 2 + 2, 700),
        ("FrankaKitchen-v1", 93, 280),
    ],
)
def test_goals_are_part_of_what_is_observed(name, observation_size, limit):
    spec = registry.env_spec(EnvConfig(name))
    assert (spec.observation_size, spec.max_episode_steps) == (observation_size, limit)


@pytest.mark.usefixtures("robotics")
def test_goals_come_in_the_order_of_their_names():
    env = registry.make_vector(EnvConfig("PointMaze_UMaze-v3"), 1)
    env.reset(seed=0)
    before = None
    for _ in range(5):
        seen = env.step(np.array([[1.0, -1.0]], np.float32))[0][0]
        achieved, desired, position = seen[:2], seen[2:4], seen[4:6]
        assert achieved.tolist() == position.tolist()
        assert before is None or desired.tolist() == before
        before = desired.tolist()
    assert achieved.tolist() != desired.tolist()
    env.close()


@pytest.mark.usefixtures("mujoco")
def test_options_are_what_the_simulator_is_made_with():
    # D4RL's ant data have the contact forces among the observations.
    assert registry.env_spec(EnvConfig("Ant-v4")).observation_size == 27
    with_forces = EnvConfig("Ant-v4", options={"use_contact_forces": True})
    assert registry.env_spec(with_forces).observation_size == 111


@pytest.mark.usefixtures("mujoco")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "Hopper-v5",
            {"reset_noise_scale": 0.1, "terminate_when_unhealty": False},
            r"Hopper-v5 has no option 'terminate_when_unhealty' .*did you mean 'terminate_when_unhealthy'\?",
        ),
        (
            "CartPole-v1",
            {"gravity": 3},
            r"has no option 'gravity' \(env.options\); Known: sutton_barto_reward$",
        ),
        (
            "Hopper-v5",
            {"xml_file": "no.xml"},
            r"cannot be made with env.options=\{'xml_file': 'no.xml'\}: .*not exist",
        ),
    ],
)
def test_an_option_that_the_simulator_does_not_take_is_named(name, options, message):
    with pytest.raises(UserError, match=message):
        registry.env_spec(EnvConfig(name, options=options))


class _Demanding(gymnasium.Env):
    """Cannot be made."""

    def __init__(self, size=3, **options):
        del options
        raise TypeError(f"a size is a word, not {size}")


@pytest.fixture
def demanding(monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("Demanding-v0", entry_point=_Demanding)
    monkeypatch.setitem(gymnasium.registry, "Demanding-v0", spec)
    homeless = gymnasium.envs.registration.EnvSpec("Homeless-v0", entry_point="envs.oracle:NoSuchEnv")
    monkeypatch.setitem(gymnasium.registry, "Homeless-v0", homeless)


@pytest.mark.usefixtures("demanding")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "Demanding-v0",
            {},
            r"Demanding-v0 cannot be made: TypeError: a size is a word, not 3 \(BPT_RL_TRACEBACK=1",
        ),
        (
            "Demanding-v0",
            {"size": 5},
            r"made with env.options=\{'size': 5\}: TypeError: a size is a word, not 5 \(",
        ),
        ("Homeless-v0", {}, r"Homeless-v0 cannot be made: AttributeError: .*NoSuchEnv"),
    ],
)
def test_what_a_constructor_raises_is_said(name, options, message):
    with pytest.raises(UserError, match=message):
        registry.env_spec(EnvConfig(name, options=options))


def test_an_option_of_an_environment_that_a_module_registers_is_named(tmp_path, monkeypatch):
    (tmp_path / "registers_something.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('FromModule-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    config = EnvConfig("registers_something:FromModule-v0", options={"sutton_barto_rewards": True})
    with pytest.raises(UserError, match=r"no option 'sutton_barto_rewards' .*mean 'sutton_barto_reward'\?"):
        registry.env_spec(config)


@pytest.mark.usefixtures("robotics")
@pytest.mark.parametrize("name", ["AdroitHandDoor-v1", "gymnasium_robotics:AdroitHandDoor-v1"])
def test_nobody_is_told_of_rewards_that_are_mended(name):
    code = f"""
from envs import registry
from envs.config import EnvConfig
registry.make_vector(EnvConfig({name!r}, workers=1), 1).close()
print(registry.env_spec(EnvConfig({name!r})).observation_size)
"""
    root = str(simulators.__file__).rsplit("/", 2)[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "39\n"
    assert "reward functions" not in done.stderr


def test_actions_can_be_taken_in_minus_one_to_one():
    config = EnvConfig("Pendulum-v1", rescale_actions=True)  # Its own torque is -2 .. 2.
    assert registry.env_spec(config).actions == ContinuousActions((-1.0,), (1.0,))
    env = simulators.make_single(config)
    env.reset(seed=0)
    for action, torque in ((1.0, 2.0), (-0.25, -0.5), (-1.5, -2.0)):
        env.step(np.array([action], np.float32))
        assert env.unwrapped.last_u == torque


@pytest.mark.parametrize("num_steps", [7, 230])
def test_the_time_limit_can_be_shorter_and_longer_than_the_environments_own(num_steps):
    env = registry.make_vector(EnvConfig("Pendulum-v1", max_episode_steps=num_steps), 2)  # Its own is 200.
    env.reset(seed=0)
    ends = []
    for _ in range(num_steps):
        _, _, terminated, truncated, _ = env.step(np.zeros((2, 1), np.float32))
        assert not terminated.any()
        ends.append(truncated.all())
    assert np.flatnonzero(ends).tolist() == [num_steps - 1]


def test_environments_can_be_filmed():
    config = EnvConfig("FilmedForTests-v0")
    with pytest.MonkeyPatch.context() as patch:
        spec = gymnasium.envs.registration.EnvSpec("FilmedForTests-v0", entry_point=_Filmed)
        patch.setitem(gymnasium.registry, "FilmedForTests-v0", spec)
        env = registry.make_vector(config, 3, num_rendered=2)
    env.reset(seed=0)
    first, second, third = env.render()
    assert first.shape == second.shape == (4, 5, 3)
    assert third is None


@pytest.mark.usefixtures("mujoco")
def test_hoppers_fall_one_by_one_and_get_up_when_told():
    env = registry.make_vector(EnvConfig("Hopper-v5"), 3)
    env.reset(seed=0)
    env.action_space.seed(0)
    ends = []
    for t in range(200):
        _, rewards, terminated, _, _ = env.step(env.action_space.sample())
        for row in np.flatnonzero(terminated):
            ends.append((int(row), t))
        if terminated.all():
            break
    assert terminated.all()
    assert len({min(t for row, t in ends if row == which) for which in range(3)}) > 1
    env.reset(options={"reset_mask": np.array([False, True, False])})
    _, rewards, terminated, _, _ = env.step(env.action_space.sample())
    assert terminated.tolist() == [True, False, True]
    assert (rewards != 0).tolist() == [False, True, False]
    env.close()


class _SharesItsArray(gymnasium.Env):
    """Shows the same array at every step, changed in place, as FrankaKitchen does."""

    observation_space = gymnasium.spaces.Box(0, 9, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shown = np.zeros(2, np.float32)
        return self.shown, {}

    def step(self, action):
        self.shown += 1
        return self.shown, 0.0, False, False, {}


class _Filmed(_SharesItsArray):
    """Can be rendered."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        assert self.render_mode == "rgb_array"
        return np.zeros((4, 5, 3), np.uint8)


def test_an_environment_that_shares_its_array_shows_a_copy_and_raises_no_warning(monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("Shares-v0", entry_point=_SharesItsArray)
    monkeypatch.setitem(gymnasium.registry, "Shares-v0", spec)
    env = simulators.make_single(EnvConfig("Shares-v0"))
    seen = [env.reset()[0], *(env.step(0)[0] for _ in range(3))]
    assert [float(observation[0]) for observation in seen] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Hoper-v5", r"no environment is called 'Hoper-v5'; the nearest names are Hopper-v5"),
        ("dark_rom", r"nearest names are dark_room"),
        ("zzzqqq", r"known are dark_room, cue_bandit"),
        ("Hopper", r"nearest names are Hopper-v5"),
        (
            "no_such_module:Env-v0",
            r"Env-v0 cannot be made: No module named 'no_such_module'.*Install the package",
        ),
        (
            ":",
            r"env\.name=':' is no name of an environment; expected an id such as Hopper-v5, module:id, or dm_",
        ),
        (":Hopper-v4", r"env\.name=':Hopper-v4' is no name"),
        ("a:b:c", r"env\.name='a:b:c' is no name"),
        ("CarRacing-v99", r"no environment is called 'CarRacing-v99'"),
    ],
)
def test_a_name_that_nobody_knows_is_refused_with_the_nearest(name, message):
    with pytest.raises(UserError, match=message):
        registry.env_spec(EnvConfig(name))


@pytest.mark.usefixtures("robotics")
@pytest.mark.parametrize(
    ("name", "newer"),
    [
        ("Hopper-v2", "Hopper-v4, Hopper-v5"),
        ("Hopper-v3", "Hopper-v4, Hopper-v5"),
        ("HandReach-v0", "HandReach-v3"),
    ],
)
def test_an_environment_of_mujoco_py_is_refused_with_its_newer_versions(name, newer):
    with pytest.raises(UserError, match=rf"mujoco_py, .* take the newest of {newer}$"):
        registry.env_spec(EnvConfig(name))


def test_a_name_that_does_not_work_is_not_the_nearest():
    with pytest.raises(UserError, match=r"nearest names are Hopper-v5, Hopper-v4, (?!Hopper)"):
        registry.env_spec(EnvConfig("Hoper-v5"))


@pytest.mark.parametrize(
    ("missing", "name"), [("mujoco", "Hopper-v5"), ("gymnasium_robotics", "AdroitHandDoor-v1")]
)
def test_a_missing_simulator_is_named_with_its_extra(missing, name):
    code = f"""
import sys
sys.modules[{missing!r}] = None
from bpt_rl.types import UserError
from envs import registry
from envs.config import EnvConfig
try:
    registry.env_spec(EnvConfig({name!r}))
except UserError as error:
    print(error)
"""
    root = str(simulators.__file__).rsplit("/", 2)[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert "not installed" in done.stdout
    assert "pip install -e '.[mujoco]'" in done.stdout
