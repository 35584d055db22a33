"""What every part of the benchmark is given."""

from dataclasses import dataclass
from pathlib import Path

from bpt_rl.ops.config import Schedule
from experiments.measurements import policies
from experiments.measurements.config import MeasurementConfig


@dataclass(frozen=True)
class Job:
    """One run of the benchmark.

    Attributes:
        config: what is measured.
        folder: where scratch files may be put; they are removed again.
        peers: a Python file with other people's layers, or nothing.
    """

    config: MeasurementConfig
    folder: Path
    peers: str = ""

    @property
    def policies(self) -> dict[str, Schedule]:
        """The schedules and saving policies to measure, by name."""
        return policies.chosen(self.config.policies, self.config.num_heads)
