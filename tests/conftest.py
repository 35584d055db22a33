"""Eight virtual CPU devices, programs that are compiled in a hurry, and no silent rank promotion anywhere."""

import os
import sys
from pathlib import Path

import absl.logging
import jax
import pytest

os.environ.setdefault("MUJOCO_GL", "disabled")
# What tests compile runs for milliseconds. `make test-all` sets no options, and compiles as users do. Processes that
# tests start do as this one. XLA ends a process at an option that it does not know, as a later one may these.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

# absl closes the stream of its handler when Hydra sets logging up anew; pytest's own must not be the one.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

STRICT = ("tests/bpt_rl/ops", "tests/bpt_rl/nn")
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    """Mixing dtypes is an error in the numerical core; norms and softmax say where they use float32."""
    path = request.node.path.as_posix()
    if any(part in path for part in STRICT):
        with jax.numpy_dtype_promotion("strict"):
            yield
    else:
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real and generated datasets beside a developer's checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no datasets at {SHARED_DATA}: this test reads real files")
    return SHARED_DATA
