"""From CSV files to a Markdown table and figures, wherever the files come from."""

import re

import pytest

from experiments import run_directory
from experiments.measurements import report


@pytest.fixture
def folder(tmp_path):
    rows = [
        {
            "policy": name,
            "tokens": tokens,
            "temp_mib": tokens / divisor,
            "streams": 4.0,
            "vanilla_over_this": 2.0,
            "memory_efficient_over_this": None,
        }
        for tokens in (1024, 4096)
        for name, divisor in (("vanilla", 16), ("blockwise", 128))
    ]
    run_directory.write_csv(tmp_path / "memory.csv", rows)
    versions = {"jax": "1.2.3", "jaxlib": "1.2.4", "flax": "0.5"}
    environment = {"versions": versions, "commit": "0123456789ab", "device": "cpu: cpu", "num_cores": 3}
    environment |= {"processor": "Abacus", "usable_cores": 2}
    run_directory.write_json(tmp_path / run_directory.ENVIRONMENT, environment)
    return tmp_path


def test_the_table_says_where_it_was_measured_and_what_was_not(folder):
    report.write(folder, {"peers": "no peers are given"})
    text = (folder / report.TABLE).read_text()
    assert text.startswith(
        "Measured on cpu: cpu (Abacus, 2 of 3 cores); jax 1.2.3, jaxlib 1.2.4, flax 0.5; commit 012345678.\n"
    )
    assert (
        "| policy | 1,024 | 4,096 |\n|---|---|---|\n| vanilla | 64.0 | 256.0 |\n| blockwise | 8.0 | 32.0 |"
        in text
    )
    assert text.endswith("Not measured: peers (no peers are given).\n")
    assert (folder / "memory.png").is_file()


def test_a_part_that_was_measured_elsewhere_says_where(folder):
    environment = run_directory.read_json(folder / run_directory.ENVIRONMENT)
    elsewhere = {**environment, "commit": "abcdef0123456789", "processor": "Slide rule"}
    run_directory.write_json(folder / "memory.environment.json", elsewhere)
    first, second, table = report.markdown(folder).split("\n\n")[:3]
    assert "(Abacus, 2 of 3 cores)" in first
    assert second == first.replace("Abacus", "Slide rule").replace("012345678", "abcdef012")
    assert table.startswith("Scratch memory")
    (folder / "memory.environment.json").rename(folder / "loader.environment.json")
    assert "Slide rule" not in report.markdown(folder)


def test_the_entry_point_draws_from_files_that_are_there(folder, capsys):
    report.main([str(folder)])
    assert f"tables in {folder / report.TABLE}" in capsys.readouterr().out


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        report.main([str(tmp_path)])
    assert stop.value.code == 2
    assert "holds no results of the benchmark" in capsys.readouterr().err


def test_every_part_offers_rows_and_tables():
    for name in (*report.PARTS, report.TUNING):
        module = report.part(name)
        assert callable(module.measure)
        assert module.tables([]) is not None


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        (
            "memory.csv",
            lambda text: text[:-9],
            r"memory\.csv, line 5: not as many cells as there are columns",
        ),
        (
            "memory.csv",
            lambda text: text.replace("64.0", "sixty"),
            r"memory\.csv is not what .*ValueError: .*'sixty'",
        ),
        (
            "memory.csv",
            lambda text: text.replace("tokens", "lengths"),
            r"memory\.csv is not what .*KeyError: 'tokens'",
        ),
        (
            "memory.csv",
            lambda text: text.replace("4096", "4k"),
            "is not what the benchmark of this version writes",
        ),
        ("memory.csv", lambda text: text.replace("policy", "pol\0icy"), "memory"),
        ("environment.json", lambda text: text[:20], r"environment\.json is not JSON"),
        ("environment.json", lambda text: '{"versions": 3}', r"environment\.json is not what .*TypeError"),
    ],
)
def test_a_damaged_file_is_one_message(folder, capsys, file, change, expected):
    (folder / file).write_text(change((folder / file).read_text()))
    with pytest.raises(SystemExit, match="2"):
        report.main([str(folder)])
    message = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*{expected}.*\n", message), message
