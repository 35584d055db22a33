"""Entry points: where agents, environments and data are joined, and the only place that knows Hydra.

Everything here runs from a checkout, as `python -m experiments.train` and the like.
"""

from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _require_this_checkout() -> None:
    """Refuses to go on with another project's `agents` or `envs`, which are common names in site-packages."""
    for name in ("agents", "envs", "bpt_rl"):
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found is None or found.parent != ROOT / name:
            raise ImportError(
                f"the package {name!r} is not the one of this checkout: expected it in {ROOT / name}, found "
                f"{found or 'none'}; run from {ROOT} (python -m experiments.train), or uninstall the other one"
            )


_require_this_checkout()
