"""A run says what memory it will take before it compiles, and what would fit where there was not enough."""

import json
import logging
import re

import jax
import pytest

from bpt_rl.training import compilation, memory_limits
from bpt_rl.training.memory import estimate
from bpt_rl.types import UserError
from experiments import memory_promise, pipeline
from tests.bpt_rl.training.test_memory_limits import ROWS

NANO = ("experiment=nano", "schedule=vanilla", "training.evaluate_every=0", "evaluation.episodes=1")
RAN_OUT = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes.")
PEAK = estimate(ROWS).peak_bytes
pytestmark = pytest.mark.usefixtures("compiled")


def _raises(error):
    def fail(*arguments, **options):
        del arguments, options
        raise error

    return fail


def test_the_estimate_and_the_largest_context_are_said_and_fit(monkeypatch, caplog):
    monkeypatch.setattr(memory_limits, "device_limit", lambda *_: 1 << 30)
    with caplog.at_level(logging.INFO):
        assert memory_promise.announce(ROWS) == estimate(ROWS)
    most = memory_limits.largest_context(ROWS, 1 << 30)
    assert caplog.messages == [
        f"expected memory of a gradient step: {PEAK / 2**20:.1f} MiB before compiling; the largest context that fits "
        f"1.0 GiB: {most:,} episodes"
    ]


def test_a_step_that_will_hardly_fit_is_warned_of_and_one_that_may_is_not(monkeypatch, caplog):
    for limit, warns in ((PEAK, False), (int(PEAK / 1.15), False), (int(PEAK / 1.25), True)):
        monkeypatch.setattr(memory_limits, "device_limit", lambda *_, limit=limit: limit)
        caplog.clear()
        memory_promise.announce(ROWS)
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert bool(warnings) == warns
        assert all("training.accumulate=2" in warning for warning in warnings)


def test_where_nobody_says_how_much_there_is_the_estimate_is_said_alone(monkeypatch, caplog):
    monkeypatch.setattr(memory_limits, "device_limit", lambda *_: None)
    with caplog.at_level(logging.INFO):
        memory_promise.announce(ROWS)
    assert caplog.messages == [f"expected memory of a gradient step: {PEAK / 2**20:.1f} MiB before compiling"]


@pytest.mark.parametrize("error", [RAN_OUT, MemoryError()])
def test_running_out_of_memory_names_estimate_limit_and_overrides_that_fit(error, monkeypatch):
    monkeypatch.setattr(memory_limits, "device_limit", lambda *_: PEAK // 3)
    with pytest.raises(UserError, match="out of memory") as raised, memory_promise.explained(ROWS):
        raise error
    for said in (memory_limits.in_words(PEAK), memory_limits.in_words(PEAK // 3), "training.accumulate="):
        assert said in str(raised.value)


def test_other_errors_stay_as_they_are():
    for error in (
        jax.errors.JaxRuntimeError("INTERNAL: no"),
        RuntimeError("RESOURCE_EXHAUSTED"),
        UserError("x"),
    ):
        with pytest.raises(type(error)) as raised, memory_promise.explained(ROWS):
            raise error
        assert raised.value is error


def test_an_evaluation_that_runs_out_is_not_taken_for_a_gradient_step():
    with (
        pytest.raises(UserError, match=r"evaluation after gradient step 7.*cache=int8"),
        memory_promise.explained(ROWS),
    ):
        memory_promise.of_evaluation(_raises(RAN_OUT))(None, 7)
    assert memory_promise.of_evaluation(lambda model, step: {"a": step})(None, 3) == {"a": 3}


def test_a_run_that_cannot_be_compiled_for_lack_of_memory_ends_with_advice(entry, tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "compile_train_step", _raises(RAN_OUT))
    result = entry("train", *NANO, f"hydra.run.dir={tmp_path / 'run'}")
    message = result.refusal()
    assert message.startswith("error: out of memory: a gradient step is expected to take")
    assert "schedule=blockwise" in message or "training.accumulate=" in message
    # What is expected comes first, when nothing is compiled yet.
    assert re.search(r"expected memory of a gradient step: [\d.]+ MiB before compiling", result.err)


@pytest.mark.slow
def test_a_run_leaves_the_estimate_and_one_that_runs_out_says_in_what(entry, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    result = entry("train", *NANO, f"hydra.run.dir={folder}")
    assert result.code == 0, result.err
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["estimated_memory_bytes"] == pytest.approx(summary["peak_memory_bytes"], rel=0.5)

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "play_all", _raises(RAN_OUT))
        result = entry("train", *NANO, f"hydra.run.dir={tmp_path / 'evaluated'}")
    assert "out of memory in the evaluation after gradient step 6" in result.refusal()

    real = compilation.compile_train_step
    monkeypatch.setattr(
        compilation, "compile_train_step", lambda *given: real(*given)._replace(step=_raises(RAN_OUT))
    )
    result = entry("train", *NANO, f"hydra.run.dir={tmp_path / 'other'}")
    assert "out of memory: a gradient step is expected to take" in result.refusal()
