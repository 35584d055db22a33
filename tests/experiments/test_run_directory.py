"""A run directory is taken once, unless nothing came of the run that is there; what is damaged is named."""

import pytest

from bpt_rl.types import UserError
from experiments import comparison, run_directory
from tests.experiments import fake_runs


@pytest.fixture
def run(tmp_path):
    config = fake_runs.config(episodes=4)
    folder = fake_runs.write(tmp_path / "run", config, {4.0: fake_runs.rising(top=3)})
    return run_directory.Run(folder, config)


def _begin(folder, seed):
    run_directory.begin(folder, fake_runs.config(episodes=2, seed=seed), fingerprint="f")


def test_a_run_that_came_to_nothing_makes_room(tmp_path):
    _begin(tmp_path, 1)
    (tmp_path / run_directory.EPISODES).write_text("gradient_step\n")
    _begin(tmp_path, 2)
    assert run_directory.open_run(tmp_path).config.seed == 2
    assert not (tmp_path / run_directory.EPISODES).exists()


@pytest.mark.parametrize("name", ["checkpoints/step_00000003", run_directory.SUMMARY])
def test_a_run_that_came_to_something_is_kept(tmp_path, name):
    _begin(tmp_path, 1)
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match="already holds a run"):
        _begin(tmp_path, 2)
    assert run_directory.open_run(tmp_path).config.seed == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds a list, expected a JSON object"),
        ("{}", "has no number context_episodes"),
        ('{"context_episodes": 4, "target_return": "high"}', "has no number target_return"),
    ],
)
def test_a_damaged_summary_is_named(run, text, message):
    (run.folder / run_directory.SUMMARY).write_text(text)
    with pytest.raises(UserError, match=rf"summary\.json {message}"):
        comparison.compare([run])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", r"evaluation\.csv holds no episodes"),
        (lambda text: text.partition("\n")[0], r"evaluation\.csv holds no episodes"),
        (lambda text: text[:-4], r"evaluation\.csv, line 121: not an episode"),
        (lambda text: text[:-20], r"evaluation\.csv, line 121: not an episode"),
        (lambda text: text.rstrip().rpartition("\n")[0] + "\n", r"119 episodes .* no whole chains of 8"),
        (lambda text: text.replace("position", "place"), r"evaluation\.csv, line 2: not an episode"),
        (lambda text: "a,b\n1,2\n", r"evaluation\.csv, line 2: not an episode"),
        (
            lambda text: text.replace(",4.0,", ",3.0,"),
            r"evaluation\.csv holds no episodes with the target return 4",
        ),
    ],
)
def test_a_damaged_table_of_episodes_is_named(run, damage, message):
    path = run.folder / run_directory.EPISODES
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=message):
        comparison.compare([run])


def test_a_table_that_is_no_text_is_named(run):
    (run.folder / run_directory.EPISODES).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"evaluation\.csv is not CSV"):
        run.episodes()
