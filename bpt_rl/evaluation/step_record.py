"""What an agent knows at one environment step as one line of numbers: one transfer to the device instead of a dozen."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float

from bpt_rl.types import Array, EnvSpec, StepInputs


@dataclass(frozen=True)
class StepRecord:
    """Where each field of `StepInputs` lies in a line; whole numbers and flags are exact in float32 up to 2^24.

    Attributes:
        observation_size: O.
        action_width: A.
    """

    observation_size: int
    action_width: int

    @classmethod
    def of(cls, spec: EnvSpec) -> "StepRecord":
        """Returns the record of an environment's steps."""
        return cls(spec.observation_size, spec.actions.width)

    @functools.cached_property
    def places(self) -> Mapping[str, slice | int]:
        """Where each field is: columns of a field with an axis of its own, else one column."""
        places: dict[str, slice | int] = {}
        start = 0
        sizes = {
            "observation": self.observation_size,
            "previous_observation": self.observation_size,
            "previous_action": self.action_width,
        }
        for name in StepInputs._fields:
            places[name] = slice(start, start + sizes[name]) if name in sizes else start
            start += sizes.get(name, 1)
        return MappingProxyType(places)

    @property
    def width(self) -> int:
        """Numbers in a line."""
        return 2 * self.observation_size + self.action_width + len(StepInputs._fields) - 3

    def unpack(self, lines: Array) -> StepInputs:
        """Returns the fields of lines, whose numbers are the last axis; arrays of NumPy or JAX."""
        kinds: dict[str, Any] = {
            "has_previous": np.bool_,
            "timestep": np.int32,
            "episode_index": np.int32,
            "segment": np.int32,
        }
        fields = {name: lines[..., place] for name, place in self.places.items()}
        return StepInputs(
            **{name: field.astype(kinds[name]) if name in kinds else field for name, field in fields.items()}
        )

    def pack(self, inputs: StepInputs) -> Float[np.ndarray, "*shape width"]:
        """Returns the fields as lines, on the host."""
        lines = np.zeros((*inputs.segment.shape, self.width), np.float32)
        for name, place in self.places.items():
            lines[..., place] = getattr(inputs, name)
        return lines
