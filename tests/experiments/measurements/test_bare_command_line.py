"""Without Hydra the benchmark reads the same options, and without the other libraries it runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from bpt_rl.types import UserError
from experiments import ROOT, command_line, schema
from experiments.measurements import bare_command_line as bare

OPTIONS = sorted(path.stem for path in (command_line.CONFIGS / "benchmark").glob("*.yaml"))
# What a machine with only jax, flax, optax and numpy does not have; rich and yaml come with flax.
MISSING = ("hydra", "omegaconf", "gymnasium", "jaxtyping", "matplotlib", "h5py", "beartype", "torch")
QUICK = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
BLOCKER = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {MISSING!r} else real(name, package)
sys.argv[0] = "experiments.benchmark"
from experiments import benchmark
benchmark.main()
"""


def composed(*arguments):
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(command_line.CONFIGS), version_base=command_line.VERSION_BASE):
        return command_line.composed("benchmark", arguments)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_means_the_same_with_and_without_hydra(option):
    config, _ = bare.parse([f"benchmark={option}"])
    assert config == composed(f"benchmark={option}")


def test_overrides_mean_the_same_with_and_without_hydra():
    arguments = [
        "device=cpu",
        "tune=true",
        "peers=a/b.py",
        "benchmark.lengths=[256,512]",
        "benchmark.parts=[time, memory]",
        "benchmark.longest_mib=3",
        "benchmark.dtype=bfloat16",
        "benchmark.policies=[]",
    ]
    config, _ = bare.parse(arguments)
    assert config == composed(*arguments)
    assert config == bare.parse(["benchmark=short", *arguments])[0]


def test_the_run_directory_is_chosen_as_with_hydra():
    assert str(bare.parse(["hydra.run.dir=a/b"])[1]) == "a/b"


def test_two_that_begin_in_the_same_second_have_a_folder_each():
    folders = {bare.parse([])[1] for _ in range(3)}
    assert len(folders) == 3
    text = OmegaConf.load(command_line.CONFIGS / "benchmark.yaml")
    pattern = OmegaConf.to_container(text, resolve=False)["hydra"]["run"]["dir"]
    assert pattern == "outputs/benchmark/${now:%Y-%m-%d}_${now:%H-%M-%S-%f}"
    assert {folder.parent for folder in folders} == {Path("outputs/benchmark")}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("benchmark.length=[1]", "no option is called 'benchmark.length'; did you mean 'benchmark.lengths'"),
        ("devise=gpu", "did you mean 'device'"),
        ("benchmark=shrt", "benchmark has no option 'shrt'; did you mean 'short'"),
        ("benchmark.repeats=1.5", "benchmark.repeats=1.5 does not fit; expected int"),
        ("benchmark.repeats=true", "benchmark.repeats=true does not fit; expected int"),
        ("benchmark.lengths=256", "benchmark.lengths=256 does not fit; expected list"),
        ("benchmark.lengths=[a]", "does not fit"),
        ("benchmark.repeats=0", "benchmark.repeats must be at least 1, got 0"),
        ("tune=maybe", "tune=maybe does not fit; expected bool"),
        ("device=tpu", "device must be auto, cpu or gpu, got 'tpu'"),
        ("tune", "cannot read the override 'tune'"),
    ],
)
def test_mistakes_end_in_one_message(argument, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[").replace("]", r"\]")):
        bare.parse([argument])


def test_the_help_names_every_option():
    text = bare.describe()
    assert "  device=auto\n" in text
    assert "  benchmark.lengths=[1024, 8192]\n" in text


@pytest.mark.slow
def test_it_runs_with_jax_flax_optax_and_numpy_only(tmp_path):
    arguments = [
        "device=cpu",
        "benchmark.parts=[accelerator,loader]",
        "benchmark.policies=[blockwise]",
        "benchmark.num_layers=1",
        "benchmark.width=8",
        "benchmark.num_heads=2",
        "benchmark.lengths=[24]",
        "benchmark.repeats=1",
        "benchmark.training_width=8",
        "benchmark.training_layers=1",
        "benchmark.training_heads=2",
        "benchmark.training_episode_steps=5",
        "benchmark.store_steps=[200]",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    found = subprocess.run(
        [sys.executable, "-c", BLOCKER, *arguments], cwd=ROOT, env=QUICK, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert "not measured" not in found.stdout
    assert "no figures: figures need matplotlib" in found.stdout
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.yaml", "environment.json", "accelerator.csv", "loader.csv", "table.md"}


def test_mistakes_are_one_message_with_exit_code_2_there_too(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", BLOCKER, "benchmark.parts=[tme]"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr.startswith("error: benchmark.parts: there is no 'tme'; known: exactness,")
    assert len(found.stderr.splitlines()) == 1
