"""A D4RL file of two million steps: converted in bounded memory, and opened again at once.

Run as a script it prints the figures: `python -m tests.bpt_rl.data.test_large_dataset [STEPS ...]`.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest

OBSERVATION_SIZE, ACTION_SIZE, EPISODE_STEPS, BLOCK_STEPS = 17, 6, 1000, 50_000
MIB = 2**20

CONVERT = """
import json, resource, sys, time
from pathlib import Path
from bpt_rl.data import d4rl, recording

start = time.perf_counter()
store = recording.convert(d4rl.recording(Path(sys.argv[1]), max_episode_steps=None), Path(sys.argv[2]))
print(json.dumps({
    "steps": int(store.lengths.sum()),
    "seconds": time.perf_counter() - start,
    "peak_resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""

# As a later run begins: find the conversion again, fit the normaliser, sample; then go on sampling.
FIRST_BATCH = """
import time
start = time.perf_counter()
import json, sys
from pathlib import Path
from bpt_rl.data import d4rl, recording
from bpt_rl.data.config import ContextConfig
from bpt_rl.data.normalisation import fit_normaliser
from bpt_rl.data.sampling import BatchSampler

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

store = recording.convert(d4rl.recording(Path(sys.argv[1]), max_episode_steps=None), Path(sys.argv[2]))
fit_normaliser(store, normalise_observations=True)
sampler = BatchSampler(store, ContextConfig(episodes=8), batch_steps=8000, loss_episodes="all", seed=0)
sampler.batch(0)
seconds = time.perf_counter() - start
for step in range(1, 300):
    sampler.batch(step)
print(json.dumps({"seconds_to_first_batch": seconds, "resident_mib": resident()}))
"""


def write_file(path: Path, num_steps: int) -> Path:
    """Writes random episodes of a thousand steps in D4RL's layout."""
    rng = np.random.default_rng(0)
    shapes = {"observations": (OBSERVATION_SIZE,), "actions": (ACTION_SIZE,), "rewards": ()}
    with h5py.File(path, "w") as file:
        for name, shape in shapes.items():
            file.create_dataset(name, (num_steps, *shape), "f4", chunks=(1000, *shape))
        for start in range(0, num_steps, BLOCK_STEPS):
            stop = min(start + BLOCK_STEPS, num_steps)
            for name, shape in shapes.items():
                file[name][start:stop] = rng.uniform(-1, 1, (stop - start, *shape)).astype(np.float32)
        file["terminals"] = np.zeros(num_steps, bool)
        file["timeouts"] = np.arange(1, num_steps + 1) % EPISODE_STEPS == 0
    return path


def measure(folder: Path, num_steps: int) -> dict[str, float]:
    """Writes a file, converts it in one process and begins to train on it in another; returns what both took."""
    file = write_file(folder / f"{num_steps}.hdf5", num_steps)
    found: dict[str, float] = {}
    for code in (CONVERT, FIRST_BATCH):
        command = [sys.executable, "-c", code, str(file), str(folder / f"store-{num_steps}")]
        found |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    "sizes", [(50_000, 600_000), pytest.param((200_000, 2_000_000), marks=pytest.mark.slow)]
)
def test_memory_is_bounded_when_converting_and_independent_of_size_when_reading(tmp_path, sizes):
    small, large = (measure(tmp_path, size) for size in sizes)
    assert large["steps"] == sizes[1]
    assert large["peak_resident_mib"] < 1024
    megabytes = (sizes[1] - sizes[0]) * 4 * (OBSERVATION_SIZE + ACTION_SIZE + 1) / MIB
    assert large["resident_mib"] - small["resident_mib"] < megabytes / 2


if __name__ == "__main__":
    for size in map(int, sys.argv[1:] or ("200000", "2000000")):
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(measure(Path(name), size)))
