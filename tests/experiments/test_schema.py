"""The configurations are plain dataclasses that come and go through YAML unchanged, and need no JAX."""

import math
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace

import pytest

from envs.config import EnvConfig
from experiments import ROOT, help_text, overrides, schema
from experiments.schema import CollectConfig, EvaluateConfig, TrainConfig


def test_importing_the_schema_leaves_jax_out():
    code = "import sys, experiments.schema; assert not {'jax', 'numpy', 'hydra'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_another_projects_agents_are_refused_by_name(tmp_path):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import experiments"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode != 0
    assert "the package 'agents' is not the one of this checkout" in found.stderr


def test_a_configuration_survives_yaml():
    config = TrainConfig(env=EnvConfig("cue_bandit", num_cues=7), seed=3)
    config = replace(config, evaluation=replace(config.evaluation, target_returns=[1.5, 2.0]))
    assert schema.from_yaml(schema.to_yaml(config), TrainConfig) == config
    simulator = replace(
        config, env=EnvConfig("Ant-v4", options={"use_contact_forces": True, "x": [1, {"y": None}]})
    )
    assert schema.from_yaml(schema.to_yaml(simulator), TrainConfig) == simulator
    without = replace(config, env=None)
    assert schema.from_yaml(schema.to_yaml(without), TrainConfig) == without


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(seed=-1), "seed must be at least 0, got -1"),
        (lambda: TrainConfig(video=-1), "video must be at least 0, got -1"),
        (lambda: EvaluateConfig(), "expected run=RUN_DIR"),
        (lambda: EvaluateConfig(run="x", checkpoint="first"), "checkpoint must be last or best, got 'first'"),
        (lambda: CollectConfig(), "expected path=FOLDER"),
        (lambda: CollectConfig("x", noise=math.inf), "noise must be finite, got inf"),
        (lambda: CollectConfig("x", noise=math.nan), "noise must be at least 0, got nan"),
        (lambda: CollectConfig("x", temperature=math.inf), "temperature must be finite, got inf"),
        (lambda: CollectConfig("x", target_return=math.nan), "target_return must be finite, got nan"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("section", list(schema.SCHEMAS.values()))
def test_every_key_of_every_section_has_a_meaning_in_the_help(section):
    documented = help_text.attributes(section)
    assert set(documented) == {field.name for field in fields(section)}
    for inner in overrides.field_types(section).values():
        if is_dataclass(inner):
            test_every_key_of_every_section_has_a_meaning_in_the_help(inner)
