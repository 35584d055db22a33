"""Entry points called in this process, as a user would call them from an empty folder."""

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import fitting, run_directory


class Result(NamedTuple):
    """What an entry point left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    def refusal(self) -> str:
        """Returns the one message of a command that was refused before anything happened."""
        assert self.code == 2, self
        lines = self.err.strip().splitlines()
        assert sum(line.startswith("error: ") for line in lines) == 1, self.err
        assert "Traceback" not in self.err + self.out
        return lines[-1] if lines[-1].startswith("error: ") else "\n".join(lines)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder for generated and converted datasets that all tests share."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Runs of one configuration compile the same functions; within a module all but the first find them on disk."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for values in (options, before):
        compilation_cache.reset_cache()  # JAX looks at the options once, at its first compilation.
        for name, value in values.items():
            jax.config.update(name, value)
        if values is options:
            yield


@pytest.fixture
def entry(monkeypatch, capsys, tmp_path, cache):
    """Runs an entry point by name, with overrides, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str, cached: bool = True) -> Result:
        shares = cached and name == "train" and "--help" not in arguments
        shared = [f"dataset.cache={cache}"] if shares else []
        monkeypatch.setattr(sys, "argv", [f"experiments.{name}", *arguments, *shared])
        code = 0
        try:
            importlib.import_module(f"experiments.{name}").main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def trained(entry):
    """Trains in a folder, or finds that this was done: what several tests look at is trained by the first of them."""

    def train(folder: Path, *overrides: str) -> Result | None:
        if (folder / run_directory.SUMMARY).exists():
            return None
        result = entry("train", *overrides, f"hydra.run.dir={folder}")
        assert result.code == 0, result.err
        return result

    return train


@pytest.fixture
def interrupted(entry, monkeypatch):
    """Trains, and sends this process Ctrl-C when a gradient step is done."""

    def train(step: int, *overrides: str) -> Result:
        real = fitting._Observer.see

        def see(self, record):
            real(self, record)
            if record.step == step:
                os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patched:
            patched.setattr(fitting._Observer, "see", see)
            return entry("train", *overrides)

    return train
