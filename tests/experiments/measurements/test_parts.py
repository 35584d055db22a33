"""Parts that only arrange what others measure: what they leave out, and what they divide by what."""

import numpy as np
import pytest

from bpt_rl.ops.config import Schedule
from bpt_rl.types import UserError
from experiments.measurements import cores, exactness, longest, memory, processes, short_contexts, step_time
from experiments.measurements.stacks import MIB
from experiments.measurements.tables import as_text


def test_memory_is_compared_with_the_baselines_whatever_their_order(make_job, monkeypatch):
    sizes = {"vanilla": 64 * MIB, "memory_efficient": 16 * MIB, "blockwise": 4 * MIB}
    monkeypatch.setattr(memory, "scratch_bytes", lambda schedule, size, tokens: sizes[schedule.name])
    job = make_job(lengths=[32], policies=[*sizes])
    vanilla, _, blockwise = memory.measure(job)
    assert (vanilla["vanilla_over_this"], vanilla["memory_efficient_over_this"]) == (1, 0.25)
    assert (blockwise["temp_mib"], blockwise["vanilla_over_this"]) == (4, 16)
    assert blockwise["streams"] == 4 * MIB / (32 * 8 * 4)
    assert len(memory.tables(as_text([vanilla, blockwise]))) == 4


def test_the_longest_context_is_in_tokens_and_none_where_nothing_fits(make_job, monkeypatch):
    per_token = {"vanilla": MIB, "blockwise": 1024}
    monkeypatch.setattr(longest, "scratch_bytes", lambda schedule, size, n: n * per_token[schedule.name])
    vanilla, blockwise = longest.measure(make_job(longest_mib=5.0, policies=["vanilla", "blockwise"]))
    assert (vanilla["tokens"], vanilla["temp_mib"]) == (0, None)
    assert (blockwise["tokens"], blockwise["temp_mib"]) == (5120, 5)


def test_what_is_too_large_is_left_out_of_the_turns(make_job, monkeypatch):
    monkeypatch.setattr(step_time, "compiled_step", lambda schedule, size, tokens: schedule)
    monkeypatch.setattr(step_time, "peak_bytes", lambda step: MIB * (100 if step.name == "vanilla" else 1))
    monkeypatch.setattr(step_time, "temp_bytes", lambda step: MIB)
    monkeypatch.setattr(step_time, "inputs", lambda size, tokens: ())
    monkeypatch.setattr(step_time.timing, "ready", lambda step: lambda: sum(range(10_000)))
    job = make_job(
        memory_limit_mib=50.0, time_lengths=[7], policies=["vanilla", "memory_efficient", "blockwise"]
    )
    vanilla, efficient, blockwise = step_time.measure(job)
    assert (vanilla["cpu_s"], vanilla["note"], vanilla["temp_mib"]) == (None, "does not fit", 1)
    assert blockwise["over_vanilla"] is None
    assert blockwise["over_memory_efficient"] == pytest.approx(blockwise["cpu_s"] / efficient["cpu_s"])


def test_short_contexts_end_with_a_decision_transformer(make_job, monkeypatch):
    asked = []

    def timed(job, size, num_tokens, policies):
        asked.append((size.batch, size.num_layers, size.width, num_tokens, [*policies]))
        yield {"policy": "blockwise", "tokens": num_tokens}

    monkeypatch.setattr(short_contexts.step_time, "timed", timed)
    rows = list(short_contexts.measure(make_job(policies=["vanilla", "heads_4"])))
    assert asked[-1] == (64, 3, 128, 60, ["vanilla"])  # One head: four at a time do not come out even.
    assert [row["tokens"] for row in rows] == [512, 1024, 60]
    assert rows[-1]["stack"] == "60 tokens, batch 64, 3 x 128"


def test_one_core_is_compared_with_two_in_turns(make_job, monkeypatch):
    asked = []

    def in_child(function, schedule, *arguments, cores):
        asked.append((function, cores, schedule.devices))
        return [3.0, 4.0, 5.0] if len(cores) == 1 else [2.0] if schedule.devices == 2 else [3.0]

    monkeypatch.setattr(processes, "usable_cores", lambda: [4, 6, 7])
    monkeypatch.setattr(processes, "in_child", in_child)
    job = make_job(policies=["vanilla", "blockwise"], time_lengths=[9, 30])
    (row,) = cores.measure(job)
    kinds = (([4], 1), ([4, 6], 1), ([4, 6], 2))
    assert asked == [(cores.wall_seconds, *kind) for kind in kinds] * cores.ROUNDS
    assert (row["policy"], row["tokens"]) == ("blockwise", 30)
    assert (row["two_cores_over_one"], row["two_devices_over_one"]) == (0.75, 0.5)


def test_one_core_alone_is_refused(make_job, monkeypatch):
    monkeypatch.setattr(processes, "usable_cores", lambda: [0])
    with pytest.raises(UserError, match="needs two"):
        next(cores.measure(make_job()))


def test_differences_are_relative_to_the_largest_value_and_below_float32_to_vanillas_own(monkeypatch):
    exact = {"y": np.array([0.0, -4.0]), "dw": np.array([1.0])}

    def outputs(case, schedule):
        error = {"vanilla": 0.02, "blockwise": 0.03, "memory_efficient": 0.04}[schedule.name]
        if case.dtype == "float32":
            error = 0.0 if schedule.name == "vanilla" else error
        return {"y": exact["y"] + error, "dw": exact["dw"]}

    monkeypatch.setattr(exactness, "_outputs_and_gradients", outputs)
    tested = {"b": Schedule("blockwise"), "m": Schedule("memory_efficient")}
    plain = exactness.largest_differences(exactness.Case(), tested)
    assert plain == pytest.approx({"b": 0.03 / 4, "m": 0.01})
    rounded = exactness.largest_differences(exactness.Case(dtype="bfloat16"), tested)
    assert rounded == pytest.approx({"b": 1.5, "m": 2.0})


@pytest.mark.slow
def test_a_schedule_agrees_with_vanilla_on_a_small_case(make_job, monkeypatch):
    monkeypatch.setattr(exactness, "CASES", {"small": exactness.Case(num_tokens=17, blocks=(8, 4))})
    (row,) = exactness.measure(make_job(policies=["vanilla", "memory_efficient"]))
    assert (row["case"], row["policy"]) == ("small", "memory_efficient")
    assert 0 < row["difference"] < 1e-5
    assert exactness.tables(as_text([row]))[0].lines[0] == ["case", "memory_efficient"]
