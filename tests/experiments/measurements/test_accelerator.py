"""The table by length goes on where something does not fit, and counts what it says it counts."""

import pytest

from experiments.measurements import accelerator
from experiments.measurements.stacks import Size
from experiments.measurements.tables import as_text


@pytest.fixture
def small_matrices(monkeypatch):
    monkeypatch.setitem(accelerator.MATRIX_SIDES, "cpu", 32)


@pytest.mark.usefixtures("small_matrices")
@pytest.mark.slow
def test_what_does_not_fit_is_said_and_the_rest_is_measured(make_job):
    options = {"lengths": [512, 24], "policies": ["vanilla"], "dtype": "bfloat16"}
    too_large, fits = accelerator.measure(make_job(**options, memory_limit_mib=1.0))
    assert (too_large["tokens"], fits["tokens"]) == (512, 24)
    assert (fits["note"], too_large["note"]) == ("", "does not fit")
    assert fits["peak_mib"] < 1
    assert too_large["peak_mib"] > 1
    assert too_large["wall_s"] is too_large["utilisation"] is None
    assert fits["tokens_per_second"] == pytest.approx(24 / fits["wall_s"])
    flops = Size(1, 8, 2).training_flops(24)
    assert fits["utilisation"] == pytest.approx(flops / fits["wall_s"] / fits["matrix_flops_per_second"])
    text = "\n".join(table.text() for table in accelerator.tables(as_text([too_large, fits])))
    assert "does not fit" in text


@pytest.mark.usefixtures("small_matrices")
def test_a_device_that_runs_out_of_memory_is_no_error(make_job, monkeypatch):
    import jax

    def exhausted(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes")

    monkeypatch.setattr(accelerator, "_training_step", exhausted)
    (row,) = accelerator.measure(make_job(lengths=[24], policies=["vanilla"]))
    assert row["note"] == "does not fit"


@pytest.mark.usefixtures("small_matrices")
def test_other_errors_of_the_device_are_errors(make_job, monkeypatch):
    import jax

    def broken(*arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: no")

    monkeypatch.setattr(accelerator, "_training_step", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        next(accelerator.measure(make_job(lengths=[24], policies=["vanilla"])))
