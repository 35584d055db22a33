"""D4RL's ids, files and limits against sums of the original's table, and against the original where it is installed."""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpt_rl.data import d4rl_catalogue
from bpt_rl.data.d4rl_catalogue import DATASETS, find, find_file, local_path
from bpt_rl.types import UserError

HOST = "http://rail.eecs.berkeley.edu/datasets/offline_rl"


@pytest.mark.parametrize(
    ("dataset_id", "file"),
    [
        ("hopper-medium-v2", "gym_mujoco_v2/hopper_medium-v2"),
        ("walker2d-full-replay-v1", "gym_mujoco_v1/walker2d_full_replay-v1"),
        ("walker2d-medium-replay-v0", "gym_mujoco/walker_mixed"),
        ("halfcheetah-medium-replay-v0", "gym_mujoco/halfcheetah_mixed"),
        ("ant-random-expert-v0", "gym_mujoco/ant_random_expert"),
        ("door-human-v1", "hand_dapg_v1/door-human-v1"),
        ("pen-cloned-v0", "hand_dapg/pen-demos-v0-bc-combined"),
        ("relocate-expert-v0", "hand_dapg/relocate-v0_expert_clipped"),
        (
            "antmaze-large-play-v2",
            "ant_maze_v2/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed",
        ),
        ("antmaze-umaze-v1", "ant_maze_v1/Ant_maze_umaze_noisy_multistart_False_multigoal_False_sparse"),
        ("maze2d-eval-large-dense-v1", "maze2d/maze2d-eval-large-dense-v1"),
        ("maze2d-open-v0", "maze2d/maze2d-open-sparse"),
        ("kitchen-complete-v0", "kitchen/mini_kitchen_microwave_kettle_light_slider-v0"),
        ("bullet-maze2d-umaze-v0", "bullet/bullet-maze2d-umaze-sparse"),
        ("bullet-ant-medium-expert-v0", "bullet/bullet-ant_medium_expert"),
        ("carla-town-v0", "carla/carla_town_subsamp_flat-v0"),
        ("flow-merge-controller-v0", "flow/flow-merge-v0-idm"),
        ("minigrid-fourrooms-random-v0", "minigrid/minigrid4rooms_random"),
    ],
)
def test_ids_have_the_files_of_d4rl(dataset_id, file):
    assert find(dataset_id).url == f"{HOST}/{file}.hdf5"


def test_the_table_adds_up():
    """SHA-256 over `id url` of all 155 of `d4rl.infos`, so that a slipped letter shows where d4rl is not installed."""
    assert len(DATASETS) == 161
    lines = sorted(f"{dataset.id} {dataset.url}\n" for dataset in DATASETS.values())
    listed = "".join(line for line in lines if not (line.startswith("antmaze") and "-v1 " in line))
    assert listed.count("\n") == 155
    digest = "edeb8c3beacfd98d8d752bde8c822ce9cc8e88d691b3e45eb75638c2359abaa8"
    assert hashlib.sha256(listed.encode()).hexdigest() == digest


def _package() -> Path:
    package = importlib.util.find_spec("d4rl")
    if package is None or package.origin is None:
        pytest.skip("d4rl is not installed: `make d4rl` brings it for this comparison")
    return Path(package.origin).parent


def test_every_id_of_d4rl_has_its_url():
    # Read as a file: importing the package itself warns, prints and needs gym.
    spec = importlib.util.spec_from_file_location("d4rl_infos", _package() / "infos.py")
    assert spec is not None
    assert spec.loader is not None
    infos = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(infos)
    urls = {dataset.id: dataset.url for dataset in DATASETS.values()}
    assert {name: urls.get(name) for name in infos.DATASET_URLS} == infos.DATASET_URLS
    left = set(urls) - set(infos.DATASET_URLS)
    assert {name for name in left if not (name.startswith("antmaze-") and name.endswith("-v1"))} == set()


def _registered(package: Path) -> Iterator[tuple[str, int]]:
    """Ids and limits of the environments that the package registers by name."""
    for path in package.glob("*/__init__.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "register":
                options = {
                    keyword.arg: keyword.value.value
                    for keyword in call.keywords
                    if isinstance(keyword.value, ast.Constant)
                }
                if {"id", "max_episode_steps"} <= options.keys():
                    yield options["id"], options["max_episode_steps"]


def test_limits_are_those_of_d4rl_s_environments():
    limits = {name: limit for name, limit in _registered(_package()) if name in DATASETS}
    assert len(limits) > 70
    ours = {name: DATASETS[name].max_episode_steps for name in limits}
    ours |= {name: limit - 1 for name, limit in ours.items() if name.startswith("minigrid-")}
    assert ours == limits


@pytest.mark.parametrize(
    ("dataset_id", "environment", "options", "limit"),
    [
        ("hopper-medium-replay-v2", "Hopper-v4", {}, 1000),
        ("ant-medium-v0", "Ant-v4", {"use_contact_forces": True}, 1000),
        ("pen-human-v1", "AdroitHandPen-v1", {"max_episode_steps": 100}, 100),
        ("hammer-expert-v0", "AdroitHandHammer-v1", {"max_episode_steps": 200}, 200),
        ("antmaze-umaze-diverse-v2", None, {}, 700),
        ("antmaze-large-play-v0", None, {}, 1000),
        ("maze2d-medium-v1", None, {}, 600),
        ("kitchen-mixed-v0", None, {}, 280),
        ("bullet-hopper-medium-v0", None, {}, 1000),
        ("minigrid-fourrooms-v0", None, {}, 51),
    ],
)
def test_where_to_act_and_for_how_long(dataset_id, environment, options, limit):
    dataset = find(dataset_id)
    assert (dataset.environment, dict(dataset.environment_options)) == (environment, options)
    assert dataset.max_episode_steps == limit


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
def test_environments_can_be_made_and_observe_what_was_recorded():
    """Widths of D4RL's observations and actions, from the specifications of its environments."""
    gymnasium = pytest.importorskip("gymnasium")
    gymnasium.register_envs(pytest.importorskip("gymnasium_robotics"))
    widths = {"hopper": (11, 3), "walker2d": (17, 6), "ant": (111, 8), "pen": (45, 24), "door": (39, 28)}
    for task, expected in widths.items():
        dataset = find(f"{task}-{'human-v1' if task in ('pen', 'door') else 'medium-v2'}")
        env = gymnasium.make(dataset.environment, disable_env_checker=True, **dataset.environment_options)
        assert (env.observation_space.shape[0], env.action_space.shape[0]) == expected
        assert env.spec is not None
        assert env.spec.max_episode_steps == dataset.max_episode_steps
        env.close()


@pytest.mark.parametrize(
    ("dataset_id", "threads"),
    [
        ("hopper-medium-v2", []),
        ("hopper-medium-replay-v2", ["D4RL#162"]),
        ("walker2d-full-replay-v2", ["D4RL#162"]),
        ("hopper-medium-replay-v0", ["D4RL#40"]),
        ("ant-expert-v2", ["D4RL#143"]),
        ("antmaze-medium-play-v0", ["D4RL#77", "D4RL#199"]),
        ("antmaze-medium-play-v2", ["D4RL#199"]),
        ("antmaze-umaze-diverse-v2", ["D4RL#199"]),
        ("maze2d-umaze-v1", ["D4RL#85", "D4RL#194"]),
        ("door-human-v1", ["D4RL#137"]),
        ("door-expert-v1", []),
        ("kitchen-mixed-v0", []),
        ("bullet-maze2d-open-v0", []),
    ],
)
def test_what_is_odd_is_said_with_its_source(dataset_id, threads):
    remarks = find(dataset_id).remarks
    assert [thread for thread in threads if not any(thread in remark for remark in remarks)] == []
    assert bool(remarks) == bool(threads)


def test_every_remark_is_said_of_some_dataset():
    said = {remark for dataset in DATASETS.values() for remark in dataset.remarks}
    assert said == {remark for _, remark in d4rl_catalogue._REMARKS}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("hoper-medium-v2", "the nearest are hopper-medium-v2, "),
        ("hopper-medium", "the nearest are hopper-medium-v2, "),
        ("Door-Human-v1", "door-human-v1"),
        ("antmaze-umaze-v3", "antmaze-umaze-v2"),
        ("???", "an id looks like hopper-medium-v2"),
        ("", "an id looks like"),
    ],
)
def test_an_id_that_nearly_matches(name, nearest):
    with pytest.raises(UserError) as caught:
        find(name)
    message = str(caught.value)
    assert nearest in message
    assert f"D4RL has no dataset {name!r}" in message
    assert message.count(",") <= 5


def test_files_are_where_d4rl_keeps_them(monkeypatch, tmp_path):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    assert local_path("walker2d-medium-replay-v0") == tmp_path / "walker_mixed.hdf5"
    monkeypatch.setenv("D4RL_DATASET_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("hopper-medium-v2") == tmp_path / ".d4rl" / "datasets" / "hopper_medium-v2.hdf5"
    with pytest.raises(UserError, match="no dataset 'hopper'"):
        local_path("hopper")


def test_a_file_tells_its_dataset_by_its_name():
    assert len({dataset.file_name for dataset in DATASETS.values()}) == len(DATASETS)
    for dataset in DATASETS.values():
        assert find_file(Path("anywhere") / dataset.file_name) is dataset
    assert find_file(Path("hopper-medium-v2.hdf5")) is None
