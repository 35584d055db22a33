"""Run directories of a stranger: nothing in them runs, and each is refused with one message that says why.

Command lines of a stranger are in test_configuration_checks.py.
"""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bpt_rl.training import checkpoint_files
from bpt_rl.training.checkpoint import checkpoint_step, restore_params, save_checkpoint
from bpt_rl.training.state import TrainState
from bpt_rl.types import UserError
from experiments import dataset_facts, run_directory
from tests.experiments import fake_runs
from tests.experiments.malicious.strangers import NESTED, SECRET

IDENTITY = {"agent": "tiny"}
PARAMS = {"weight": jnp.zeros((3, 2))}


@pytest.fixture
def run(tmp_path):
    """A run directory with everything but checkpoints."""
    folder = tmp_path / "run"
    return fake_runs.write(folder, fake_runs.config(episodes=2), {4.0: fake_runs.rising(top=3)})


@pytest.fixture
def checkpoints(tmp_path):
    state = TrainState(PARAMS, {"moment": jnp.zeros(2)}, jnp.asarray(4))
    save_checkpoint(tmp_path / "checkpoints", state, IDENTITY)
    return tmp_path / "checkpoints"


def _change(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Pickles under other names.


def test_a_pickle_in_place_of_a_configuration(entry, run, pickled):
    (run / "config.yaml").write_bytes(pickled)
    assert "is not the configuration of a run" in entry("evaluate", f"run={run}").refusal()


def test_a_pickle_that_hydra_would_run_again(entry, tmp_path, pickled):
    (tmp_path / "config.pickle").write_bytes(pickled)
    message = entry("train", "--experimental-rerun", "config.pickle", cached=False).refusal()
    assert "reads a pickle" in message


# Checkpoints.


def _restored(folder: Path, **more):
    return restore_params(folder, PARAMS | more, IDENTITY)


def test_a_checkpoint_that_lies_elsewhere(checkpoints, tmp_path):
    outside = checkpoints / "step_00000004"
    outside.rename(tmp_path / "elsewhere")
    for name in ("../elsewhere", str(tmp_path / "elsewhere"), "step_00000004/../../elsewhere", 4, ["a"]):
        _change(checkpoints / "index.json", names={"last": name})
        for read in (_restored, checkpoint_step):
            with pytest.raises(UserError, match="does not name checkpoints beside it"):
                read(checkpoints)


def test_a_checkpoint_with_more_arrays_than_the_agent_has(checkpoints):
    path = checkpoints / "step_00000004" / checkpoint_files.MANIFEST
    arrays = json.loads(path.read_text())["arrays"]
    _change(path, arrays=arrays | {"params": arrays["params"] | {"os.system": "float32[1]"}})
    with pytest.raises(UserError, match=r"os\.system: checkpoint 'float32"):
        _restored(checkpoints)


def _digest_again(checkpoints: Path) -> None:
    """The stranger gives the right digests, too."""
    checkpoint = checkpoints / "step_00000004"
    files = checkpoint_files.digests(checkpoint, checkpoint_files.paths(checkpoint))
    _change(checkpoint / checkpoint_files.MANIFEST, files=files)


def test_a_checkpoint_whose_arrays_are_pickles(checkpoints, pickled):
    (checkpoints / "step_00000004" / "params.safetensors").write_bytes(pickled)
    _digest_again(checkpoints)
    with pytest.raises(UserError, match="cannot be read"):
        _restored(checkpoints)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "0 arrays of other names"),
        ({"weight": np.zeros((3, 2), np.float32), "os.system": np.zeros(1)}, "2 arrays of other names"),
        ({"weight": np.zeros((2, 3), np.float32)}, r"weight is of shape \[2, 3\]"),
        ({"weight": np.zeros((3, 2), np.int32)}, "weight holds int32"),
        ({"weight": np.zeros((3, 2), jnp.float8_e4m3fn)}, "cannot be read .*float8_e4m3fn"),
    ],
)
def test_a_checkpoint_whose_arrays_are_not_those_it_describes(checkpoints, arrays, message):
    checkpoint_files.write_arrays(checkpoints / "step_00000004" / "params.safetensors", arrays)
    _digest_again(checkpoints)
    with pytest.raises(UserError, match=message):
        _restored(checkpoints)


def test_a_checkpoint_that_does_not_list_its_arrays(checkpoints):
    _change(checkpoints / "step_00000004" / checkpoint_files.MANIFEST, files={})
    with pytest.raises(UserError, match=r"params\.safetensors differs from what was written"):
        _restored(checkpoints)


@pytest.mark.parametrize("header", [b"\xff" * 8, (2**40).to_bytes(8, "little"), b"\x02" + bytes(7) + b"{]"])
def test_a_checkpoint_whose_arrays_have_a_wild_header(checkpoints, header):
    (checkpoints / "step_00000004" / "params.safetensors").write_bytes(header + bytes(64))
    _digest_again(checkpoints)
    with pytest.raises(UserError, match="cannot be read"):
        _restored(checkpoints)


@pytest.mark.parametrize(
    "text", [NESTED, "[]", '{"names": []}', "\x00"], ids=["deep", "list", "names", "nul"]
)
def test_an_index_of_checkpoints_that_is_none(checkpoints, text):
    (checkpoints / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json"):
        _restored(checkpoints)


@pytest.mark.parametrize(
    "changes",
    [
        {"arrays": []},
        {"arrays": {}},
        {"files": 3},
        {"files": {"params/../../../secret": "0"}},
        {"files": {"/etc/passwd": "0"}},
        {"identity": [1]},
        {"notes": "x"},
        {"step": "x"},
    ],
    ids=str,
)
def test_a_checkpoint_whose_description_is_of_other_kinds(checkpoints, changes):
    _change(checkpoints / "step_00000004" / checkpoint_files.MANIFEST, **changes)
    for read in (_restored, checkpoint_step):
        with pytest.raises(UserError, match="describes no checkpoint"):
            read(checkpoints)


# Run directories.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\n_target_: os.system\n", "_target_, which names code to run"),
        ("env:\n  options:\n    _target_: os.system\n", "_target_, which names code to run"),
        ("dataset:\n  id: ${oc.env:BPT_TEST_SECRET_KEY}\n", "can read the environment"),
        ("seed: ${seed}\n", "can read the environment"),
        ("seed: !!python/object/apply:pathlib.Path.touch [marker]\n", "which can stand for code"),
        ("seed: !!python/name:os.system ''\n", "which can stand for code"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "an anchor"),
        ("seed: " + NESTED, "nested beyond reason"),
        ("seed: 1\n" + "# nothing\n" * 100_000, "bytes, a configuration at most"),
        ("seed: 1\nos.system: 2\n", "Key 'os.system' not in 'TrainConfig'"),
        ("- 1\n- 2\n", "not the configuration of a run"),
        ("seed: [1", "not the configuration of a run"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value),
)
def test_a_configuration_that_is_more_than_values(entry, run, text, message):
    path = run / "config.yaml"
    path.write_text(path.read_text() + text if text.startswith("a: ") else text)
    for result in (entry("evaluate", f"run={run}"), entry("plot", str(run))):
        assert message in result.refusal()
        assert SECRET not in result.err + result.out


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (r".*", "it lacks agent, context, dataset and 10 more: another version"),
        (r"  rescale_actions.*", "it lacks env.rescale_actions, env.workers, env.worker_timeout and 7 more"),
        (r"  width: \d+\n", "it lacks backbone.width: another version"),
        (r"env:.*(?=optimizer:)", "it lacks env: another version"),
    ],
)
def test_a_configuration_that_lacks_keys(entry, run, lost, message):
    """Were defaults to fill in for them, it would be another run."""
    path = run / "config.yaml"
    path.write_text(re.sub(lost, "", path.read_text(), count=1, flags=re.DOTALL))
    for command in (["evaluate", f"run={run}"], ["train", "resume=auto", f"hydra.run.dir={run}"]):
        assert message in entry(*command, cached=False).refusal()


def test_a_billion_laughs_cost_nothing(entry, run):
    lines = ["a0: &a0 [1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    (run / "config.yaml").write_text("\n".join(lines))
    assert "line 1 holds an anchor" in entry("evaluate", f"run={run}").refusal()


def test_an_environment_of_a_stranger_is_not_imported(entry, tmp_path, marker, monkeypatch):
    (tmp_path / "strange_envs.py").write_text(f"import pathlib; pathlib.Path({str(marker)!r}).touch()")
    monkeypatch.syspath_prepend(tmp_path)
    config = fake_runs.config(episodes=2, env="strange_envs:Maze-v0")
    folder = fake_runs.write(tmp_path / "run", config, {4.0: fake_runs.rising(top=3)})
    message = entry("evaluate", f"run={folder}").refusal()
    assert "has Gymnasium import the module 'strange_envs'" in message
    assert "env.name=strange_envs:Maze-v0" in message


@pytest.mark.parametrize("text", [NESTED, "{" * 50, '{"context_episodes": "__import__(\'os\')"}', "[NaN]"])
def test_a_summary_that_is_none(entry, run, text):
    (run / run_directory.SUMMARY).write_text(text)
    assert "summary.json" in entry("plot", str(run)).refusal()


@pytest.mark.parametrize("text", [NESTED, '{"facts": 3}', '{"facts": {"spec": []}}', "[]"])
def test_facts_of_a_dataset_that_are_none(run, text):
    (run / dataset_facts.FILE).write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json cannot be read"):
        dataset_facts.read(run)
