"""Which simulators, and which library of datasets, a result was made with."""

import importlib.metadata

_SIMULATORS = ("gymnasium", "gymnasium-robotics", "mujoco", "dm_control", "minari")


def simulator_versions() -> dict[str, str]:
    """Returns the version of every simulator package that is installed, without importing any."""
    versions = {}
    for name in _SIMULATORS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
