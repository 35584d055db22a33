"""Configurations name no code: ours do not, and others are not read."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict

from bpt_rl.types import UserError
from experiments import ROOT, command_line, configuration_checks, messages, schema

FILES = sorted(command_line.CONFIGS.rglob("*.yaml"))
NAMES = [path.relative_to(command_line.CONFIGS).as_posix() for path in FILES]
EXPERIMENTS = sorted(path.stem for path in (command_line.CONFIGS / "experiment").glob("*.yaml"))
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def loader():
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(command_line.CONFIGS), version_base=command_line.VERSION_BASE):
        yield GlobalHydra.instance().config_loader()


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_configuration_of_ours_names_code_or_reads_the_environment(path):
    text = path.read_text()
    assert not re.search(r"_target_|_partial_|_args_|!!|oc\.env", text)
    assert "()" not in re.sub(r"#.*", "", text)
    configuration_checks.require_plain_references(text, path.name)
    for event in yaml.parse(text):
        assert not getattr(event, "anchor", None)
        assert not getattr(event, "tag", None)


def test_every_option_of_hydra_that_may_be_chosen_passes_the_second_look(loader):
    for group, options in configuration_checks.GROUPS.items():
        assert set(options) <= set(loader.get_group_options(group)), group
        for option in options:
            hydra = compose("train", [f"{group}={option}"], return_hydra_config=True).hydra
            configuration_checks.require_shipped(hydra)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("launcher._target_", "os.system"),
        ("launcher._target_", None),
        ("launcher.extra", {"_target_": "os.system"}),
        ("sweeper._target_", "os.system"),
        ("sweeper.params", {"a": "b"}),
        ("callbacks.x", {"_target_": "os.system"}),
        ("searchpath", ["file:///tmp"]),
        ("job.env_set.LD_PRELOAD", "x.so"),
        ("job_logging.handlers.console.class", "os.system"),
        ("job_logging.handlers.console.stream", "ext://os.environ"),
        ("job_logging.handlers.console.stream", "cfg://handlers"),
        ("job_logging.handlers.more", {"()": "os.system"}),
        ("hydra_logging.filters", [{"()": "os.system"}]),
        ("hydra_logging.formatters.plain.class", "os.system"),
        ("help.header", {"_target_": "os.system"}),
    ],
)
def test_the_second_look_finds_code_however_it_came_there(loader, key, value):
    del loader
    hydra = compose("train", return_hydra_config=True).hydra
    with open_dict(hydra):
        node = OmegaConf.create(OmegaConf.to_container(hydra, resolve=False))
    OmegaConf.update(node, key, value, force_add=True)
    with pytest.raises(UserError, match=r"hydra\."):
        configuration_checks.require_shipped(node)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_a_run_writes_may_be_read_again(loader, tmp_path, experiment):
    del loader
    config = command_line.composed("train", [f"experiment={experiment}"])
    path = tmp_path / "config.yaml"
    path.write_text(schema.to_yaml(config))
    assert schema.from_yaml(configuration_checks.read_stored(path), schema.TrainConfig) == config


def test_what_a_run_writes_is_read_alike_in_every_locale(tmp_path):
    config = schema.TrainConfig()
    config.dataset.id = "été"
    path = tmp_path / "config.yaml"
    path.write_text(schema.to_yaml(config), encoding="utf-8")
    code = (
        "import pathlib, sys; from experiments import configuration_checks as checks; "
        "print(ascii(checks.read_stored(pathlib.Path(sys.argv[1]))))"
    )
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, str(path)]
    read = subprocess.check_output(command, cwd=ROOT, env=ascii_only, text=True)
    assert read.strip() == ascii(schema.to_yaml(config))


@pytest.mark.parametrize(
    "text",
    [
        "${seed}",
        "${.seed}",
        "a${now:%Y}",
        "${hydra.job.num}_${hydra:job.id}",
        "\\${oc.env",
        "$HOME",
        "${ env }",
    ],
)
def test_references_to_other_keys_may_stay(text):
    if "\\$" in text:
        text = text.replace("\\${", "$ {")
    configuration_checks.require_plain_references(text, "key")


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:A}",
        "${ oc.env :A}",
        "${${a}:B}",
        "${now:${oc.env:A}}",
        "${a",
        "${}",
        "${x.${y}}",
        "${env:A}",
    ],
)
def test_references_to_elsewhere_may_not(text):
    with pytest.raises(UserError, match="key holds"):
        configuration_checks.require_plain_references(text, "key")


# Keys.


@pytest.fixture
def wandb(monkeypatch):
    """A library that sends nothing, and a key in the environment for it to find."""
    library = types.ModuleType("wandb")
    library.init = MagicMock()
    library.init.return_value.id = "run0"
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return library


def _holds_key(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "override",
    [
        f"WANDB_API_KEY={KEY}",
        f"+wandb.api_key={KEY}",
        f"+hydra.job.env_set.WANDB_API_KEY={KEY}",
        "hydra.job.env_copy=[WANDB_API_KEY]",
        "tracker.project=${oc.env:WANDB_API_KEY}",
        f"tracker.project={KEY}",
        f"api_key={KEY}[",
        f"training.steps={KEY}",
    ],
)
def test_a_key_in_an_override_is_refused_and_not_repeated(entry, wandb, tmp_path, override):
    result = entry("train", override, cached=False)
    result.refusal()
    assert KEY not in result.err + result.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_a_key_reaches_no_file_and_no_message(entry, wandb, tmp_path):
    """Not even where the library's own error repeats it."""
    nano = ("experiment=nano", "schedule=vanilla", "training.steps=1", "evaluation.episodes=1")
    wandb.init.side_effect = [wandb.init.return_value, RuntimeError(f"the key {KEY} is not known")]
    result = entry("train", "-m", *nano, "tracker=wandb", "seed=0,1", "hydra.sweep.dir=s")
    assert result.code == 2
    assert (
        f"RuntimeError: the key {messages.HIDDEN} is not known" in (tmp_path / "s" / "sweep.csv").read_text()
    )
    assert (tmp_path / "s" / "0" / "summary.json").exists()
    assert KEY not in repr(wandb.init.call_args_list)
    assert KEY not in result.err + result.out
    assert _holds_key(tmp_path) == []


def test_what_is_no_key_is_said(monkeypatch):
    for name, value in (("SSH_KEY", "~/keys/mine.pem"), ("A_TOKEN", "short"), ("EDITOR", KEY)):
        monkeypatch.setenv(name, value)
    text = f"~/keys/mine.pem short {KEY}"
    assert messages.without_secrets(text) == text


# Command lines of a stranger.


@pytest.mark.parametrize(
    "override",
    [
        "hydra.launcher._target_=os.system",
        "hydra.sweeper._target_=os.system",
        "hydra.launcher={_target_: os.system}",
        "hydra.sweeper.params={+hydra.callbacks.x._target_: os.system}",
        "+hydra.callbacks.x._target_=os.system",
        "++hydra.callbacks={x: {_target_: os.system}}",
        "hydra.job_logging.handlers.console.class=os.system",
        "+hydra.job_logging.handlers.console.()=os.system",
        "hydra.hydra_logging.handlers.console.stream=ext://os.environ",
        "hydra.searchpath=[/tmp]",
        "hydra.job.env_set.LD_PRELOAD=x.so",
        "hydra.job.env_copy=[WANDB_API_KEY]",
        "~hydra.launcher",
        "hydra={launcher: {_target_: os.system}}",
        "+hydra={launcher: {_target_: os.system}}",
        "env@hydra.launcher=hopper",
        "hydra/job_logging@hydra.callbacks=plain",
        "hydra.mode=MULTIRUN",
        "hydra.run.dir=${oc.env:WANDB_API_KEY}",
        "dataset.id=${oc.env:WANDB_API_KEY}",
        "dataset.id=${oc.decode:${oc.env:WANDB_API_KEY}}",
        "dataset.id=${${agent.name}:WANDB_API_KEY}",
        "+env.options._target_=os.system",
    ],
)
@pytest.mark.parametrize("flags", [(), ("-m",)], ids=["one job", "sweep"])
def test_an_override_that_would_run_something(entry, wandb, tmp_path, override, flags):
    result = entry("train", *flags, override, cached=False)
    result.refusal()
    assert KEY not in result.err + result.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--config-dir", "--config-path", "--config-name", "-cd", "--config-d"])
def test_a_configuration_of_elsewhere(entry, tmp_path, flag):
    group = tmp_path / "strange" / "hydra" / "launcher"
    group.mkdir(parents=True)
    (group / "strange.yaml").write_text("_target_: pathlib.Path.touch\n")
    result = entry("train", flag, str(tmp_path / "strange"), "hydra/launcher=strange", cached=False)
    assert "configurations from elsewhere" in result.refusal()


@pytest.mark.parametrize("override", ["env@hydra.launcher=hopper", "agent@callbacks=decision_transformer"])
def test_a_group_in_another_place(entry, override):
    assert "puts a group in another place" in entry("train", override, cached=False).refusal()
