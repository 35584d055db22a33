"""Damaged files give the right data or one clear error, whatever the damage; stores notice every flipped bit."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FINE = {"right data", "clear error"}
# Arrays of one kind: after they have traded names the file is another valid one, and only a checksum knows better.
ALIKE = {
    ("door-human-dapg.hdf5", "actions and observations"),
    ("door-human-dapg.hdf5", "terminals and timeouts"),
    ("cartpole-expert-imitation.hdf5", "terminals and timeouts"),
    ("cartpole-expert-imitation.hdf5", "actions and rewards"),
}


def _run(shared_data: Path, tmp_path: Path, *, files: int, checksums: int, stores: int, seed: int) -> dict:
    """Runs the script in a process of its own, which forks: this one has JAX and its threads."""
    report = tmp_path / "report.json"
    counts = (
        "--variants",
        files,
        "--checksum-variants",
        checksums,
        "--store-variants",
        stores,
        "--seed",
        seed,
    )
    command = [sys.executable, "-m", "tests.bpt_rl.data.corruption", "--data", shared_data, "--json", report]
    finished = subprocess.run([*map(str, (*command, *counts))], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    print(finished.stdout)
    return json.loads(report.read_text())


def _require_fine(found: dict) -> None:
    """No crash, hang, other exception or unpickling anywhere; nothing unnoticed where there are checksums."""
    for stage in ("files with checksums", "stores"):
        assert [variant for variant in found[stage] if variant["outcome"] not in FINE] == []
    odd = [variant for variant in found["files"] if variant["outcome"] not in FINE]
    assert {variant["outcome"] for variant in odd} <= {"undetected"}
    swaps = {
        (Path(variant["file"]).name, variant["detail"])
        for variant in odd
        if variant["kind"] == "swapped keys"
    }
    assert swaps <= ALIKE
    flips = [variant for variant in odd if variant["kind"].startswith("bit flips")]
    assert len(flips) <= 0.01 * len(found["files"])
    assert {variant["kind"] for variant in odd} - {variant["kind"] for variant in flips} <= {"swapped keys"}
    errors = [variant for stage in found.values() for variant in stage if variant["outcome"] == "clear error"]
    assert all(variant["message"] for variant in errors)


def test_damaged_files_in_short(shared_data, tmp_path):
    found = _run(shared_data, tmp_path, files=100, checksums=20, stores=40, seed=1000)
    _require_fine(found)
    assert len({variant["kind"] for variant in found["files"]}) == 10


@pytest.mark.slow
def test_five_hundred_damaged_files(shared_data, tmp_path):
    found = _run(shared_data, tmp_path, files=500, checksums=150, stores=300, seed=0)
    _require_fine(found)
    counts = Counter(variant["outcome"] for variant in found["files"])
    assert counts["clear error"] > 250
    assert counts["right data"] > 20
