"""A benchmark of nothing writes no tables."""


def test_tables_of_nothing_are_left_out(entry, tmp_path):
    result = entry("benchmark", "lengths=[]", "time_lengths=[]", "exactness=false", "hydra.run.dir=benchmark")
    assert result.code == 0, result.err
    assert {path.name for path in (tmp_path / "benchmark").iterdir()} == {"config.yaml", "environment.json"}
