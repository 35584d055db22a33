"""A benchmark so small that only its arithmetic counts."""

import pytest

from experiments.measurements.config import MeasurementConfig
from experiments.measurements.job import Job


@pytest.fixture
def make_job(tmp_path):
    """Makes the job of a tiny stack with the options given."""

    def make(*, peers: str = "", **options) -> Job:
        tiny = {"num_layers": 1, "width": 8, "num_heads": 2, "repeats": 1, "policies": ["blockwise"]}
        tiny |= {"training_layers": 1, "training_width": 8, "training_heads": 2}
        return Job(MeasurementConfig(**(tiny | options)), tmp_path, peers)

    return make
