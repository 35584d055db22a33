"""From a command line to one call per job: help, checks before anything starts, and errors as one message.

What the user can mend comes out as one message and exit code 2, without a traceback; BPT_RL_TRACEBACK=1 brings it back.
"""

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
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(help_text.describe(name))
            return
        check(name, sys.argv[1:])
        _hydra_main(name, job)()


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


@contextmanager
def reported_errors() -> Iterator[None]:
    """Ends the process with one message where the user can mend what is wrong."""
    try:
        yield
    except UserError as error:
        if os.environ.get(TRACEBACK) == "1":
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_USER_ERROR) from None


def _hydra_main(name: str, job: Job) -> Callable[[], None]:
    import hydra
    from hydra.core.hydra_config import HydraConfig

    def one_job(config: Any) -> None:
        # Inside Hydra, which would wrap the message in words and exit with code 1.
        with reported_errors():
            real = schema.to_config(config, schema.SCHEMAS[name])
            job(real, Path(HydraConfig.get().runtime.output_dir))

    # The job's name, which Hydra would derive from the function's module.
    one_job.__module__ = f"experiments.{name}"
    return hydra.main(version_base=VERSION_BASE, config_path=str(CONFIGS), config_name=name)(one_job)


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
