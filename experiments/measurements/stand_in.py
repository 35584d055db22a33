"""Stands in for jaxtyping on a machine that does not have it: its names exist, and say nothing.

Shapes in annotations are documentation at run time, and checks in the tests only; a benchmark can do without.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any

NAME = "jaxtyping"


class _Anything:
    """Any subscript of it is `Any`."""

    def __class_getitem__(cls, shape: Any) -> Any:
        del shape
        return Any


class _StandIn(ModuleType):
    """A module that has whatever it is asked for, other than what Python asks every module for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


def register_if_missing() -> None:
    """Makes `import jaxtyping` work; does nothing where it works already."""
    if NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
        sys.modules[NAME] = _StandIn(NAME, __doc__)
