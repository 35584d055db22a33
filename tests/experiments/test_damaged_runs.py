"""A run whose files were damaged goes on from what is whole, says what is gone, or is refused with one message."""

import json
import shutil
from types import SimpleNamespace

import pytest

from bpt_rl.training import checkpoint, checkpoint_files
from bpt_rl.types import UserError
from experiments import resuming, run_directory
from tests.experiments import fake_runs, killing

NANO = ("experiment=nano", "schedule=vanilla", "training.steps=4", "training.log_every=1")
OFTEN = (*NANO, "training.evaluate_every=2", "training.checkpoint_every=1")

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture
def undisturbed(trained, folder):
    trained(folder / "undisturbed", *OFTEN)
    return folder / "undisturbed"


@pytest.fixture
def unfinished(undisturbed, tmp_path):
    """The same run, as it is when its last evaluation was not written down."""
    copied = shutil.copytree(undisturbed, tmp_path / "run")
    (copied / run_directory.SUMMARY).unlink()
    return copied


def _last_of(run):
    index = json.loads((run / run_directory.CHECKPOINTS / "index.json").read_text())
    return run / run_directory.CHECKPOINTS / index["names"]["last"]


def _tear_the_newest(run):
    (_last_of(run) / "params.safetensors").write_bytes(b"")


def _tear_the_index(run):
    path = run / run_directory.CHECKPOINTS / "index.json"
    path.write_text(path.read_text()[:30])


def _save_with_a_spreadsheet(run):
    for name in (run_directory.METRICS, run_directory.EPISODES):
        text = (run / name).read_text().replace("\n", "\r\n")
        (run / name).write_bytes(b"\xef\xbb\xbf" + text.encode())


@pytest.mark.parametrize(
    "damage",
    [_tear_the_newest, _tear_the_index, pytest.param(_save_with_a_spreadsheet, marks=pytest.mark.slow)],
)
def test_what_can_be_made_good_is(entry, undisturbed, unfinished, damage):
    damage(unfinished)
    result = entry("train", *OFTEN, f"hydra.run.dir={unfinished}", "resume=auto")
    assert result.code == 0, result.err
    assert killing.differences(unfinished, undisturbed) == []
    assert "lacks the rows" not in result.err


def test_rows_that_are_gone_are_said(entry, unfinished):
    metrics, episodes = (unfinished / name for name in (run_directory.METRICS, run_directory.EPISODES))
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([lines[0], "x" + lines[1], *lines[2:]]))
    episodes.unlink()
    result = entry("train", *OFTEN, f"hydra.run.dir={unfinished}", "resume=auto")
    assert result.code == 0, result.err
    assert "run/metrics.csv lacks the rows of 1 gradient steps up to 3, the first of them 1" in result.err
    assert "run/evaluation.csv lacks the rows of 1 gradient steps up to 3, the first of them 2" in result.err


def test_a_checkpoint_of_another_run_is_refused(entry, unfinished):
    path = _last_of(unfinished) / checkpoint_files.MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"notes": manifest["notes"] | {"run": "0" * 64}}))
    message = entry("train", *OFTEN, f"hydra.run.dir={unfinished}", "resume=auto").refusal()
    assert "is of another run: of other options, another seed or other data" in message
    assert "resume=auto" not in message


@pytest.mark.parametrize("went_back", [False, True])
def test_after_going_back_the_evaluation_is_done_again_though_its_row_is_there(
    tmp_path, monkeypatch, went_back
):
    notes = {"row": {"loss": 1.0}, "run": "a"}
    restored = checkpoint.Restored(SimpleNamespace(step=2), notes, None, went_back)
    monkeypatch.setattr(checkpoint, "restore_newest", lambda *_: restored)
    (tmp_path / run_directory.METRICS).write_text("step,loss\n1,2\n2,1\n")
    trainable = SimpleNamespace(state=None, agent=SimpleNamespace(identity={}))
    found = resuming.past(fake_runs.config(episodes=1), trainable, tmp_path, identity="a")
    assert found.is_settled == (not went_back)


@pytest.mark.parametrize(
    "notes",
    [
        {"seconds": "abc"},
        {"seconds": [None]},
        {"stretch": [1]},
        {"skipped": "x"},
        {"row": {"loss": "low"}},
        {"run": 3},
        {"more": 1},
    ],
    ids=str,
)
def test_notes_that_no_training_writes_are_refused(tmp_path, notes):
    with pytest.raises(UserError, match=f"has a note '{next(iter(notes))}' as no training writes it"):
        resuming._require_notes(tmp_path, {"run": "a"} | notes, "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1,2,3\n", "begins with '1,2,3.n', expected a column gradient_step"),
        (b"gradient_step,\xff\n", "is not CSV"),
    ],
)
def test_a_table_of_episodes_that_is_none_is_refused(tmp_path, content, message):
    path = tmp_path / run_directory.EPISODES
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{message}.*restore it, or remove it"):
        run_directory.keep_episodes(path, 3)
    assert path.read_bytes() == content


def test_a_checkpoint_that_was_never_whole_makes_no_run(tmp_path):
    target = tmp_path / "run"
    (target / run_directory.CHECKPOINTS / "step_00000001.partial").mkdir(parents=True)
    (target / run_directory.CONFIG).touch()
    assert not run_directory.holds_run(target)
    (target / run_directory.CHECKPOINTS / "step_00000001").mkdir()
    assert run_directory.holds_run(target)
