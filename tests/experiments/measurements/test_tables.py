"""Rows of CSV files become tables."""

from experiments.measurements import tables
from experiments.measurements.tables import crossed, listed, number, seconds, text

ROWS = [
    {"policy": "plain", "tokens": "1024", "mib": "1234.56", "note": ""},
    {"policy": "small", "tokens": "1024", "mib": "7", "note": ""},
    {"policy": "small", "tokens": "65536", "mib": "", "note": "does not fit"},
]


def test_a_crossed_table_has_a_blank_where_nothing_was_measured_and_a_dash_where_nothing_came_of_it():
    table = crossed("memory", ROWS, down="policy", across="tokens", cell=number("mib", 1))
    assert table.lines == [["policy", "1,024", "65,536"], ["plain", "1,234.6", ""], ["small", "7.0", "-"]]


def test_text_aligns_numbers_to_the_right_and_markdown_rules_off_the_header():
    table = listed("memory", ROWS[:2], {"policy": text("policy"), "MiB": number("mib", 0)})
    assert table.text() == "memory\npolicy    MiB\nplain   1,235\nsmall       7"
    assert table.markdown() == "memory\n\n| policy | MiB |\n|---|---|\n| plain | 1,235 |\n| small | 7 |"


def test_a_time_shows_its_spread_or_why_there_is_none():
    cell = seconds("cpu_s")
    assert cell({"cpu_s": "1.25", "cpu_s_lowest": "1", "cpu_s_highest": "2.5"}) == "1.250 [1.000, 2.500]"
    assert cell({"cpu_s": "12.34", "cpu_s_lowest": "12", "cpu_s_highest": "13"}) == "12.3 [12.0, 13.0]"
    assert cell(ROWS[2]) == "does not fit"


def test_rows_read_back_as_they_are_written():
    assert tables.as_text([{"a": None, "b": 3, "c": 0.5}]) == [{"a": "", "b": "3", "c": "0.5"}]


def test_a_ratio_needs_both_numbers():
    assert tables.ratio(3.0, 2.0) == 1.5
    assert tables.ratio(None, 2.0) is None
    assert tables.ratio(3.0, None) is None
