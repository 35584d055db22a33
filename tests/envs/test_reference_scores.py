"""Scores are normalised by D4RL's own references, and by nothing where it has none."""

import importlib.util
import math
from pathlib import Path

import pytest

from envs.reference_scores import D4RL_SCORES, normalised_score, reference_scores


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("hopper-medium-v2", (-20.272305, 3234.3)),
        ("hopper-full-replay-v1", (-20.272305, 3234.3)),
        ("halfcheetah-random-v0", (-280.178953, 12135.0)),
        ("walker2d-medium-expert-v2", (1.629008, 4592.3)),
        ("ant-medium-replay-v2", (-325.6, 3879.7)),
        ("door-human-v1", (-56.512833, 2880.5693087298737)),
        ("pen-cloned-v0", (96.262799, 3076.8331017826877)),
        ("antmaze-large-diverse-v2", (0, 1)),
        ("maze2d-umaze-v1", (23.85, 161.86)),
        ("kitchen-mixed-v0", (0, 4)),
    ],
)
def test_datasets_have_the_references_of_their_task(name, scores):
    assert reference_scores(name) == scores


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("Hopper-v5", "hopper-medium-v2"),
        ("HalfCheetah-v4", "halfcheetah-medium-v2"),
        ("Walker2d-v3", "walker2d-medium-v2"),
        ("Ant-v5", "ant-medium-v2"),
        ("AdroitHandDoor-v1", "door-human-v1"),
        ("AdroitHandPen-v1", "pen-human-v1"),
        ("AdroitHandHammer-v1", "hammer-human-v1"),
        ("gymnasium_robotics:AdroitHandRelocate-v12", "relocate-human-v1"),
    ],
)
def test_gymnasium_ids_of_the_same_task_share_its_references(name, dataset):
    assert reference_scores(name) == reference_scores(dataset) is not None


@pytest.mark.parametrize(
    "name",
    [
        "dark_room",
        "CartPole-v1",
        "hopper",  # Neither a dataset nor an environment.
        "Hopper",
        "hopper-medium-v3",
        "hopper-full-replay-v0",
        "hopper-simple-v0",
        "antmaze-umaze-v1",
        "maze2d-eval-umaze-v1",  # D4RL has the file, but no reference.
        "ant-random-expert-v0",
        "AdroitHandDoorSparse-v1",  # Pays otherwise.
        "PointMaze_UMaze-v3",
        "FrankaKitchen-v1",
        "Hopper-v5-mine",
        "",
    ],
)
def test_what_has_no_reference_has_no_score(name):
    assert reference_scores(name) is None
    assert normalised_score(name, 1.0) is None


def test_random_scores_zero_the_expert_a_hundred_and_others_may_lie_outside():
    assert normalised_score("hopper-medium-v2", -20.272305) == 0
    assert normalised_score("Hopper-v5", 3234.3) == 100
    assert normalised_score("hopper-medium-v2", 1000.0) == pytest.approx(31.349, abs=5e-4)
    assert normalised_score("kitchen-partial-v0", 1) == 25
    assert normalised_score("antmaze-umaze-v0", 0.5) == 50
    assert normalised_score("door-human-v1", -100.0) == pytest.approx(
        -100 * 43.487167 / 2937.082142, abs=1e-6
    )


def test_the_table_adds_up():
    """Sums over `d4rl.infos`, so that a slipped digit shows where d4rl is not installed, too."""
    assert len(D4RL_SCORES) == 147
    lowest, highest = zip(*D4RL_SCORES.values(), strict=True)
    assert math.fsum(lowest) == pytest.approx(-16344.342184998930, abs=1e-9)
    assert math.fsum(highest) == pytest.approx(590202.9289726249, abs=1e-8)


def test_every_id_of_d4rl_has_its_references_and_there_are_no_others():
    package = importlib.util.find_spec("d4rl")
    if package is None or package.origin is None:
        pytest.skip("d4rl is not installed: `make d4rl` brings it for this comparison")
    # Read as a file: importing the package itself warns, prints and needs gym.
    spec = importlib.util.spec_from_file_location("d4rl_infos", Path(package.origin).with_name("infos.py"))
    assert spec is not None
    assert spec.loader is not None
    infos = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(infos)
    expected = {name: (lowest, infos.REF_MAX_SCORE[name]) for name, lowest in infos.REF_MIN_SCORE.items()}
    assert dict(D4RL_SCORES) == expected
