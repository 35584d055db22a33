"""Other people's layers are measured beside ours, each at its best block; what cannot be run is said."""

import pytest

from bpt_rl.types import UserError
from experiments.measurements import peers
from experiments.measurements.tables import as_text

# A layer that is slower by far in blocks of 4 than in blocks of 8, and one that cannot be built.
FILE = """
import time
import jax, jax.numpy as jnp
asked = []
def init(key, n, D):
    return jax.random.normal(key, (n, D, D))
def compile_step(name, n, L, D, H, b):
    asked.append((name, n, L, D, H, b))
    if name == "broken":
        raise ImportError("No module named 'elsewhere'")
    def slow(value):
        end = time.process_time() + (0.2 if b == 4 else 0.001)
        while time.process_time() < end:
            pass
        return value
    def loss(params, x, target):
        y = jnp.einsum("BTD,nDE->BTE", x, params)
        y = y + jax.pure_callback(lambda v: slow(v), jax.ShapeDtypeStruct((), y.dtype), jnp.zeros((), y.dtype))
        return jnp.square(y - target).mean()
    x = jax.ShapeDtypeStruct((1, L, D), jnp.float32)
    return jax.jit(loss).lower(jax.ShapeDtypeStruct((n, D, D), jnp.float32), x, x).compile()
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "others.py"
    path.write_text(FILE)
    return path


def test_each_peer_is_at_its_best_block_and_ratios_are_to_every_peer(make_job, file):
    job = make_job(
        peers=str(file), time_lengths=[12], peer_names=["plain", "broken"], peer_blocks=[4, 8, 99, 77]
    )
    ours, plain, broken = peers.measure(job)
    assert (ours["layer"], ours["block"], ours["note"]) == ("blockwise", None, "")
    assert ours["cpu_s"] > 0
    assert ours["over_plain"] == pytest.approx(ours["cpu_s"] / plain["cpu_s"])
    assert plain["block"] in (8, 12)  # 99 and 77 are cut to the row, and tried once.
    assert plain["over_plain"] == 1
    assert (broken["cpu_s"], broken["temp_mib"], ours["over_broken"]) == (None, None, None)
    assert "No module named 'elsewhere'" in broken["note"]
    assert "pip install -e '.[peers]'" in broken["note"]
    text = "\n".join(table.text() for table in peers.tables(as_text([ours, plain, broken])))
    assert "Processor time over that of plain" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no Python file"),
        ("import nowhere_at_all", "cannot be imported .ModuleNotFoundError"),
        ("def init(key, n, D): ...", "has no compile_step; expected compile_step and init"),
    ],
)
def test_a_file_that_is_of_no_use_is_refused(tmp_path, text, message):
    path = tmp_path / "others.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        peers.load(path)


def test_without_a_file_there_are_no_peers(make_job):
    with pytest.raises(UserError, match="say peers=FILE"):
        next(peers.measure(make_job()))
