"""From a command line to one call per job: help, checks before anything starts, and errors as one message.

What the user can mend, and what the operating system refuses, comes out as one message and exit code 2, without a
traceback; BPT_RL_TRACEBACK=1 brings it back.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bpt_rl.types import UserError
from experiments import ROOT, help_text, overrides, schema

CONFIGS = ROOT / "configs"
TRACEBACK = "BPT_RL_TRACEBACK"
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
VERSION_BASE = "1.3"

Job = Callable[[Any, Path], None]


def run(name: str, job: Job) -> None:
    """Runs an entry point: checks `sys.argv`, then has Hydra call `job` once, or once for each job of a sweep.

    Args:
        name: of the entry point, of its configuration `configs/NAME.yaml`, and of its schema.
        job: takes the configuration as a real dataclass, and the directory that Hydra chose for the job.
    """
    with reported_errors():
        schema.register()
        sys.argv[1:] = overrides.quoted(sys.argv[1:])
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(help_text.describe(name))
            return
        check(name, sys.argv[1:])
        # Hydra ends the process with a traceback of its own otherwise, such as where it cannot make a directory.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        failed: list[str] = []
        _hydra_main(name, job, failed)()
        if failed:
            raise UserError(f"{len(failed)} jobs of the sweep failed: {'; '.join(failed)}")


def check(name: str, arguments: Sequence[str]) -> None:
    """Composes the configuration of every job, and throws it away: what is wrong is said before anything runs.

    Raises:
        UserError: a name is misspelt, a value is of the wrong type or out of range, or one is missing.
    """
    from hydra import initialize_config_dir
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra

    parsed = get_args_parser().parse_args(arguments)
    if parsed.config_dir or parsed.config_path or parsed.config_name or parsed.shell_completion:
        return  # Other configurations than ours: Hydra's own checks must do.
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base=VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        chosen = overrides.parse(parsed.overrides, loader)
        overrides.check_names(chosen, loader, overrides.schema_keys(schema.SCHEMAS[name]))
        for job in overrides.jobs(chosen) if parsed.multirun else [parsed.overrides]:
            composed(name, job)


def composed(name: str, tokens: Sequence[str]) -> Any:
    """Returns the configuration that the overrides make; Hydra must have been initialised.

    Raises:
        UserError: a value is of the wrong type or out of range, or one is missing.
    """
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = compose(name, overrides=list(tokens))
        missing = OmegaConf.missing_keys(config)
        if missing:
            first = min(missing)
            raise UserError(f"{first} has no value; give {first}=...")
        return schema.to_config(config, schema.SCHEMAS[name])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_in_one_line(error)) from error
    except ValueError as error:
        raise UserError(str(error)) from error


def log_plainly() -> None:
    """Sends what is logged to standard error as plain lines, as Hydra's entry points do."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    for ours in ("bpt_rl", "experiments"):
        logging.getLogger(ours).setLevel(logging.INFO)


@contextmanager
def reported_errors() -> Iterator[None]:
    """Ends the process with one message where the user can mend what is wrong."""
    try:
        yield
    except (UserError, OSError) as error:
        if os.environ.get(TRACEBACK) == "1":
            raise
        message = _of_the_system(error) if isinstance(error, OSError) else error
        print(f"error: {message}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_USER_ERROR) from None
    except KeyboardInterrupt:
        print("stopped before the end", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_INTERRUPTED) from None


def _hydra_main(name: str, job: Job, failed: list[str]) -> Callable[[], None]:
    """Returns what has Hydra run the jobs; those of a sweep that end in a message are added to `failed`."""
    import hydra as library
    from hydra.core.hydra_config import HydraConfig

    def one_job(config: Any) -> None:
        # Inside Hydra, which would wrap the message in words and exit with code 1.
        hydra = HydraConfig.get()
        try:
            with reported_errors():
                job(schema.to_config(config, schema.SCHEMAS[name]), Path(hydra.runtime.output_dir))
        except SystemExit as stop:
            if stop.code != EXIT_USER_ERROR or not _goes_on(hydra):
                raise
            failed.append(" ".join(hydra.overrides.task))

    # The job's name, which Hydra would derive from the function's module.
    one_job.__module__ = f"experiments.{name}"
    return library.main(version_base=VERSION_BASE, config_path=str(CONFIGS), config_name=name)(one_job)


def _goes_on(hydra: Any) -> bool:
    """Tells whether other jobs of a sweep follow in this process, and it can say at the end which failed."""
    from hydra.types import RunMode

    return hydra.mode == RunMode.MULTIRUN and hydra.launcher._target_.endswith(".BasicLauncher")


def _of_the_system(error: OSError) -> str:
    """Returns what the operating system refused, of which file, and what to do."""
    name = error.filename2 or error.filename
    what = f"{name}: {error.strerror}" if name else str(error)
    return (
        f"{what}; choose a place that can be read or written, or make it so "
        f"({TRACEBACK}=1 shows where in the code this happened)"
    )


def _in_one_line(error: Exception) -> str:
    """Returns what Hydra says and what made it say so, without OmegaConf's lines about its own types."""
    parts = [str(error).strip(), str(error.__cause__ or "").strip()]
    lines = [line.strip() for part in parts for line in part.splitlines()]
    kept = [
        line
        for line in lines
        if line and not line.startswith(("full_key:", "object_type=", "reference_type="))
    ]
    return ": ".join(dict.fromkeys(kept))
