"""The YAML files: everything composes, and runs that are compared differ in their context alone."""

import shlex
import string
from dataclasses import replace

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from omegaconf import OmegaConf

from envs import registry
from envs.config import FAMILIES, EnvConfig
from experiments import collect, command_line, differences, overrides, schema

EXPERIMENTS = sorted(path.stem for path in (command_line.CONFIGS / "experiment").glob("*.yaml"))
SIMULATORS = {
    "ant_d4rl": (111, 8, 1000),
    "antmaze": (31, 8, 700),
    "cartpole": (4, 2, 500),
    "cartpole_swingup": (5, 1, 1000),
    "door": (39, 28, 200),
    "halfcheetah": (17, 6, 1000),
    "hammer": (46, 26, 200),
    "hopper": (11, 3, 1000),
    "kitchen": (93, 9, 280),
    "pen": (45, 24, 100),
    "pendulum": (3, 1, 200),
    "pointmaze": (8, 2, 300),
    "relocate": (39, 30, 200),
    "walker2d": (17, 6, 1000),
    "walker_walk": (24, 6, 1000),
}
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in command_line.CONFIGS.glob("*/*.yaml")
    if path.parent.name not in ("experiment", "benchmark", "hydra")
)


@pytest.fixture(scope="module")
def compose():
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(command_line.CONFIGS), version_base=command_line.VERSION_BASE):
        yield lambda *tokens: command_line.composed("train", tokens)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(compose, experiment):
    config = compose(f"experiment={experiment}")
    assert config.training.steps >= 1
    assert config.env is not None


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes(compose, group, option):
    more = ("env.name=Pendulum-v1",) if option == "gymnasium" else ()
    compose(f"{group}={option}", *more)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_runs_with_other_contexts_differ_in_nothing_else(compose, experiment):
    # Data, steps per batch, gradient steps, optimiser, temperature and target: all equal, and the seeds too.
    configs = {
        n: compose(f"experiment={experiment}", f"context.episodes={n}", "seed=5") for n in (1, 2, 8, 32)
    }
    for episodes, config in configs.items():
        assert config.context.episodes == episodes
        assert replace(config, context=replace(config.context, episodes=1)) == configs[1]


@pytest.mark.parametrize(
    "env",
    [
        EnvConfig("dark_room", split_seed=3, grid_size=5, training_goals=7),
        EnvConfig("dark_key_to_door"),
        EnvConfig("dark_key_to_door", grid_size=5, held_out_goals=3, max_episode_steps=9, workers=2),
        EnvConfig("cue_bandit", split_seed=1, num_cues=5, num_arms=3, training_maps=9, held_out_maps=4),
        EnvConfig("hidden_goal", split_seed=2, training_goals=30),
        EnvConfig("AdroitHandDoor-v1", max_episode_steps=300, d4rl_rewards=False, rescale_actions=True),
        EnvConfig(
            "Some-v0",
            options={
                "text": 'it\'s "here\\", a: {b}',
                "end": "1\\",
                "empty": "",
                "rows": ["SFFG", "F H"],
                "deep": {"scale": 1e-9, "is_on": False, "nothing": None, "pair": [1, -2.5]},
            },
        ),
    ],
    ids=lambda env: env.name,
)
def test_what_a_collection_says_to_train_on_is_its_environment(compose, env):
    tokens = shlex.split(" ".join(collect._overrides(env)))
    assert not any(token.startswith("env.workers") for token in tokens)
    assert compose("seed=8", *overrides.quoted(tokens)).env == replace(env.resolved(), workers=0)


@pytest.mark.parametrize("path", ["store", "/a/b-c/d.1", "a b", "it's, [mine]", "d=e", "été"])
def test_the_path_of_a_collection_survives_the_shell(compose, path):
    (token,) = shlex.split(overrides.for_shell("dataset.id", path))
    assert compose("dataset=recorded", *overrides.quoted([token])).dataset.id == path


@pytest.mark.parametrize("path", ["a b", "it (1)", "{d}", "[e]", "f#g", "h & i", "~/j", "it's", '"k" l'])
def test_places_need_no_quotes_of_hydras(compose, path):
    assert compose("dataset=recorded", *overrides.quoted([f"dataset.id={path}"])).dataset.id == path
    assert _names(f"path={path},a") == [path, "a"]


def _names(token):
    """Returns what Hydra reads in place of one name or more, of whatever types it is then."""
    (override,) = OverridesParser.create().parse_overrides(overrides.quoted([token]))
    names = override.sweep_iterator() if override.is_discrete_sweep() else [override.value()]
    return [name.text if isinstance(name, QuotedString) else name for name in names]


@pytest.mark.parametrize("pattern", ["{}a", "a{}a", "a{}"])
def test_a_name_with_any_sign_is_read_as_it_is(pattern):
    for sign in string.printable:
        name = pattern.format(sign)
        assert _names(*shlex.split(overrides.for_shell("path", name))) == [name]
        assert sign == "," or _names(f"path={name}") == [name]


@pytest.mark.parametrize(
    "name", ["2024_01", "1e3", "1E-3", "1.", ".5", "+5", "true", "NULL", "-Inf", "nan", "1_0/x"]
)
def test_a_name_that_could_be_a_number_is_none(name):
    assert _names(f"path={name}") == [name]
    assert _names(*shlex.split(overrides.for_shell("path", name))) == [name]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("it's,that's", ["it's", "that's"]),
        ("\"a, b\" , 'it\\'s',c d", ["a, b", "it's", "c d"]),
        ("'a,b", ["'a", "b"]),
        ('"a"b,c', ['"a"b', "c"]),
        ("a,,b,", ["a", "", "b", ""]),
        ("${now:%Y,%m}/it's,${seed}", ["${now:%Y,%m}/it's", "${seed}"]),
        ("", [""]),
    ],
)
def test_commas_outside_of_quotes_set_names_apart(value, names):
    assert _names(f"run={value}") == names


def test_quotes_of_ours_leave_references_to_other_keys(compose):
    assert compose("seed=7", *overrides.quoted(["dataset.id=it's ${seed}"])).dataset.id == "it's 7"


@pytest.mark.parametrize("key", differences.WITHOUT_EFFECT)
def test_what_changes_no_number_makes_no_series(compose, key):
    others = {"resume": "auto", "tracker.kinds": "[]", "dataset.cache": "elsewhere"}
    configs = [compose(), compose(f"{key}={others.get(key, 3)}")]
    assert configs[0] != configs[1]
    assert differences.varying_keys(configs) == []


def test_without_overrides_it_is_the_dark_room_with_eight_episodes(compose):
    config = compose()
    assert config == compose("experiment=dark_room")
    assert (config.env.name, config.context.episodes, config.evaluation.target_returns) == (
        "dark_room",
        8,
        [12.0],
    )
    assert (config.training.steps, config.training.batch_steps) == (600, 3840)


@pytest.mark.parametrize("experiment", ["dark_room", "cue_bandit"])
def test_every_seed_has_data_and_held_out_tasks_of_its_own(compose, experiment):
    config = compose(f"experiment={experiment}", "seed=4")
    assert (config.seed, config.env.split_seed, config.dataset.seed) == (4, 4, 4)
    assert config.evaluation.seed == compose(f"experiment={experiment}").evaluation.seed


@pytest.mark.parametrize("agent", ["behavior_cloning", "ten_percent_bc", "decision_transformer"])
def test_agents_of_one_episode_bring_their_context(compose, agent):
    assert compose(f"agent={agent}").context.episodes == 1


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_without_environment_there_is_none(compose, experiment):
    assert compose("env=none").env is None
    assert compose(f"experiment={experiment}", "env=none").env is None


def test_an_environment_of_another_kind_leaves_no_target_behind(compose):
    assert compose("env=hopper").evaluation.target_returns == []
    assert compose("env=hopper", "experiment=dark_room").evaluation.rollouts_per_task == 16
    assert compose("env=cue_bandit").evaluation.target_returns == [4.0]


@pytest.mark.parametrize("env", ["gymnasium", *SIMULATORS])
def test_a_simulator_is_played_in_for_few_episodes(compose, env):
    evaluation = compose(f"env={env}", "env.name=Pendulum-v1").evaluation
    assert (evaluation.episodes, evaluation.rollouts_per_task) == (4, 10)
    assert (evaluation.temperature, evaluation.target_returns) == (0.5, [])
    kept = compose("experiment=hopper_medium_replay", f"env={env}", "env.name=Pendulum-v1").evaluation
    assert kept.target_returns == [400.0, 800.0, 1600.0, 2400.0]


@pytest.mark.parametrize("env", SIMULATORS)
def test_a_simulator_is_what_its_datasets_were_recorded_in(compose, env, tmp_path, monkeypatch):
    for library in ("mujoco", "gymnasium_robotics", "dm_control"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log into the current folder.
    spec = registry.env_spec(compose(f"env={env}").env)
    assert (spec.observation_size, spec.actions.width, spec.max_episode_steps) == SIMULATORS[env]


def test_every_environment_of_a_simulator_is_among_them():
    names = {
        path.stem: OmegaConf.load(path).get("name") for path in (command_line.CONFIGS / "env").glob("*.yaml")
    }
    assert {option for option, name in names.items() if name and name not in FAMILIES} == set(SIMULATORS)
