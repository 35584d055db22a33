"""Tuning tries a grid with the rule's choice in it, and says what to paste."""

import pytest

from bpt_rl.ops.config import Schedule
from experiments.measurements import tuning
from experiments.measurements.tables import as_text


def test_the_rule_comes_first_and_sizes_beyond_the_row_are_left_out(make_job):
    job = make_job(block_sizes=[16, 24, 999])
    grid = tuning.candidates(Schedule("blockwise"), job, 40)
    rule, *others = grid
    assert rule == tuning.RULE
    pairs = [(schedule.query_block, schedule.key_block) for schedule in grid.values()]
    assert len(set(pairs)) == len(pairs)
    assert {(16, 16), (16, 24), (24, 16), (24, 24)} <= set(pairs)
    assert max(max(pair) for pair in pairs) <= 40
    assert others[0] == f"{pairs[1][0]} x {pairs[1][1]}"


@pytest.mark.parametrize(("width", "sizes"), [(64, (0, 0)), (8, (40, 40))])
def test_where_whole_rows_are_taken_the_rule_is_no_pair_of_sizes(make_job, width, sizes):
    job = make_job(width=width, num_heads=1, block_sizes=[16])
    rule = tuning.candidates(Schedule("blockwise"), job, 40)[tuning.RULE]
    assert (rule.query_block, rule.key_block) == sizes


def test_the_fastest_is_named_as_overrides_beside_the_rule():
    row = {"schedule": "blockwise", "tokens": 512, "cpu_s_lowest": 1, "cpu_s_highest": 2, "temp_mib": 3}
    rows = [
        {**row, "chosen_by": tuning.RULE, "query_block": 64, "key_block": 32, "cpu_s": 2.0},
        {**row, "chosen_by": "128 x 64", "query_block": 128, "key_block": 64, "cpu_s": 1.5},
        {**row, "chosen_by": "8 x 8", "query_block": 8, "key_block": 8, "cpu_s": None},
    ]
    (table,) = tuning.tables(as_text(rows))
    assert "the rule takes schedule.query_block=64 schedule.key_block=32" in table.title
    assert (
        "measured best: schedule.query_block=128 schedule.key_block=64 (0.75 of the rule's time)"
        in table.title
    )
    assert [line[0] for line in table.lines[1:]] == ["128 x 64", tuning.RULE, "8 x 8"]
