"""Mistakes on the command line: one message that names the nearest existing name, and exit code 2."""

import subprocess
import sys

import pytest

from bpt_rl.types import UserError
from experiments import ROOT, command_line, fitting, train
from tests.experiments import fake_runs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["context.episode=2"],
            "no option is called 'context.episode'; in context: did you mean 'episodes'?",
        ),
        (["trainng.steps=2"], "no option is called 'trainng.steps'; did you mean 'training.steps'?"),
        (["episodes=2"], "did you mean 'context.episodes' or 'evaluation.episodes'?"),
        (["+context.lenght=3"], "no option is called 'context.lenght'"),
        (["++optimizer.lr=3"], "no option is called 'optimizer.lr'"),
        (["~traker"], "did you mean 'tracker'?"),
        (["optimiser=adamw"], "did you mean 'optimizer'?"),
        (["zzz=1"], "known are agent, backbone, context,"),
        (["agent=agentic"], "agent has no option 'agentic'; did you mean 'agentic_transformer'?"),
        (["+experiment=darkroom"], "experiment has no option 'darkroom'; did you mean 'dark_room'?"),
        (["-m", "schedule=vanilla,block"], "schedule has no option 'block'; did you mean 'blockwise'?"),
        (["hydra/launcher=jobli"], "hydra/launcher has no option 'jobli'"),
        (["context.episodes"], "expected key=value or group=option"),
        (["training.steps=many"], "Value 'many' of type 'str' could not be converted to Integer"),
        (["training.steps=1.5"], "Value '1.5' of type 'float' could not be converted to Integer"),
        (["context.episodes=0"], "context.episodes must be at least 1, got 0"),
        (["-m", "context.episodes=4,2,-1"], "context.episodes must be at least 1, got -1"),
        (["context.episodes=1,2"], "add --multirun"),
        (["env=gymnasium"], "env.name is empty"),
        (["optimizer.learning_rate=0"], "optimizer.learning_rate must be above 0"),
        (["backbone.num_heads=null"], "backbone.num_heads"),
        (["experiment=null"], "experiment=null chooses no option; leave it out, or say ~experiment"),
        (["env=null"], "env=none does without"),
        (["env=none", "env.grid_size=3"], "env=none has no environment, so env.grid_size=3 says nothing"),
        (["-m", "env.grid_size=3", "env=dark_room,none"], "env=none has no environment"),
    ],
)
def test_a_mistake_ends_in_one_message(entry, arguments, message):
    assert message in entry("train", *arguments).refusal()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected run=RUN_DIR"),
        (["run=nowhere"], "nowhere holds no run"),
        (["rum=x"], "did you mean 'run'?"),
        (["run=x", "evaluation.episode=3"], "in evaluation: did you mean 'episodes'?"),
        (["run=x", "checkpoint=newest"], "checkpoint must be last or best, got 'newest'"),
    ],
)
def test_mistakes_of_an_evaluation(entry, arguments, message):
    assert message in entry("evaluate", *arguments).refusal()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected path=FOLDER"),
        (["path=x", "env=hopper"], "hidden_goal, not in Hopper-v5; choose policy=random"),
        (["path=."], "exists"),
        (["path=x", "policy=expert"], "unknown policy 'expert'; known: learners, random, scripted, agent"),
        (["path=x", "policy=agent"], "policy=agent goes with run=RUN_DIR"),
        (["path=x", "policy=random", "run=here"], "policy=agent goes with run=RUN_DIR"),
        (["path=x", "policy=random", "episodes=0"], "episodes must be at least 1, got 0"),
        (["path=x", "policy=agent", "run=nowhere"], "nowhere"),
    ],
)
def test_mistakes_of_a_collection(entry, arguments, message):
    assert message in entry("collect", *arguments).refusal()


def test_a_refused_command_leaves_nothing_behind(entry, tmp_path):
    entry("train", "context.episode=2").refusal()
    entry("evaluate", "run=nowhere").refusal()
    assert list(tmp_path.iterdir()) == []


def test_valid_overrides_pass():
    command_line.schema.register()
    command_line.check("train", ["-m", "context.episodes=1,2", "experiment=nano", "hydra.sweep.dir=x"])
    command_line.check("train", ["context={episodes: 3}", "evaluation.target_returns=[1,2]", "~tracker"])
    command_line.check("evaluate", ["run=x", "env.name=Hopper-v4", "evaluation.temperature=0"])


def test_a_traceback_comes_on_request(entry, monkeypatch):
    monkeypatch.setenv(command_line.TRACEBACK, "1")
    result = entry("train", "context.episode=2")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "did you mean" in result.err


@pytest.mark.parametrize(("error", "asked"), [(RuntimeError, ""), (UserError, "1")])
def test_a_traceback_tells_no_secrets(entry, monkeypatch, error, asked):
    def job(config, folder):
        raise error("refused with sesame-sesame") from ValueError("of sesame-sesame")

    monkeypatch.setenv("WANDB_API_KEY", "sesame-sesame")
    monkeypatch.setenv(command_line.TRACEBACK, asked)
    monkeypatch.setattr(train, "job", job)
    result = entry("train", "hydra.run.dir=run", cached=False)
    assert result.code == 1
    assert "refused with (hidden)" in result.err
    assert "Traceback" in result.err
    assert "sesame" not in result.err + result.out


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", ["hydra.run.dir={file}/x"]),
        ("train", ["-m", "hydra.sweep.dir={file}/x"]),
        ("train", ["hydra.run.dir=/proc/x"]),
        ("train", ["dataset.cache={file}/x", "env=tiny_room"]),
        ("collect", ["path={file}/x", "env=tiny_room"]),
        ("plot", ["{run}", "--out={file}/x"]),
    ],
)
def test_what_the_system_refuses_is_one_message_that_names_the_file(entry, tmp_path, name, arguments):
    file, run = tmp_path / "file", tmp_path / "run"
    file.write_text("")
    fake_runs.write(run, fake_runs.config(episodes=1), {4.0: fake_runs.rising(top=3)})
    result = entry(name, *(argument.format(file=file, run=run) for argument in arguments), cached=False)
    message = result.refusal()
    assert ("/proc/x" if "/proc" in arguments[0] else str(file)) in message
    assert "choose a place that can be read or written" in message


def test_an_interrupt_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop, command_line.reported_errors():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped before the end\n"


def test_an_interrupted_compilation_says_that_nothing_was_saved(entry, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "make_trainable", interrupt)
    result = entry("train", "experiment=nano", "hydra.run.dir=run")
    assert (result.code, result.out) == (130, "stopped before the first gradient step; nothing was saved\n")
    assert "Traceback" not in result.err


def test_a_sweep_goes_on_after_a_job_that_failed(entry, monkeypatch):
    done = []

    def job(config, folder):
        del folder
        done.append(config.context.episodes)
        if config.context.episodes == 2:
            raise UserError("two are one too many")
        if config.context.episodes == 3:
            raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr(train, "job", job)
    result = entry("train", "-m", "context.episodes=1,2,3,4", "hydra.sweep.dir=sweep", cached=False)
    assert (result.code, done) == (2, [1, 2, 3, 4])
    assert "error: two are one too many" in result.err
    assert "error: disk: No space left on device" in result.err
    last = result.err.splitlines()[-1]
    assert last.startswith("error: 2 of 4 jobs did not finish")
    assert "hydra.sweep.dir=sweep" in last


@pytest.mark.parametrize("name", list(command_line.schema.SCHEMAS))
def test_help_lists_keys_groups_and_examples(entry, name):
    result = entry(name, "--help")
    assert result.code == 0
    assert f"python -m experiments.{name}" in result.out
    assert max(len(line) for line in result.out.splitlines()) <= 120
    if name == "train":
        assert "context.episodes=8" in result.out
        assert "the headline knob" in result.out
        assert "agentic_transformer*" in result.out


def test_help_answers_at_once_as_it_needs_no_jax():
    code = (
        "import sys, time; sys.argv = ['train', '--help']; from experiments import train; train.main(); "
        "assert 'jax' not in sys.modules; assert time.process_time() < 2, time.process_time()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
