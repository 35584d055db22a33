"""From a command line to one call per job: help, checks before anything starts, and errors as one message.

What the user can mend, and what the operating system refuses, comes out as one message and exit code 2, without a
traceback; BPT_RL_TRACEBACK=1 brings it back. Other errors are ours: a traceback and exit code 1.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bpt_rl.types import UserError
from experiments import (
    ROOT,
    configuration_checks,
    help_text,
    interruption,
    job_process,
    messages,
    overrides,
    schema,
    streams,
    sweep_devices,
    sweep_plan,
    sweeps,
)
from experiments.job_process import Crew
from experiments.messages import TRACEBACK
from experiments.sweep_plan import Sweep

CONFIGS = ROOT / "configs"
EXIT_OUR_ERROR = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = interruption.EXIT_INTERRUPTED
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
        sys.argv[1:], settings = sweep_devices.split(sys.argv[1:])
        sweep = check(name, sys.argv[1:], settings)
        # Hydra ends the process with a traceback of its own otherwise, such as where it cannot make a directory.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        if sweep is None:
            _hydra_main(name, job, None, None)()
            return
        sys.argv[1:] = _with_overrides(sys.argv[1:], sweep.overrides())
        sweep_plan.run_all(sweep, lambda crew: _hydra_main(name, job, sweep, crew)())


def check(
    name: str, arguments: Sequence[str], settings: sweep_devices.SweepConfig | None = None
) -> Sweep | None:
    """Composes the configuration of every job: what is wrong is said before anything runs.

    Args:
        name: of the entry point.
        arguments: of the command line.
        settings: of devices and memory, where some were given.

    Returns:
        What a sweep will do; None where there is one job.

    Raises:
        UserError: a name is misspelt, a value is of the wrong type or out of range, or one is missing; or an option
            could run code.
    """
    from hydra import initialize_config_dir
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra

    parsed = get_args_parser().parse_args(arguments)
    configuration_checks.require_own(parsed)
    if settings and not parsed.multirun:
        raise UserError("sweep.* is for the jobs of a sweep; add --multirun")
    if parsed.shell_completion:
        return None  # Nothing is composed or run.
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base=VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        chosen = overrides.parse(parsed.overrides, loader)
        if name == "collect":
            overrides.require_environment(chosen)
        overrides.check_names(chosen, loader, overrides.schema_keys(schema.SCHEMAS[name]))
        configuration_checks.require_harmless(chosen)
        if not parsed.multirun:
            overrides.require_one_value(chosen)
            composed(name, parsed.overrides)
            return None
        jobs = list(overrides.jobs(chosen))
        return sweep_plan.plan(
            jobs, [_compose(name, job, number)[1] for number, job in enumerate(jobs)], settings
        )


def _with_overrides(arguments: Sequence[str], more: Sequence[str]) -> list[str]:
    """Returns a command line with more overrides after its own, which Hydra's parser wants side by side."""
    from hydra._internal.utils import get_args_parser

    given = get_args_parser().parse_args(arguments).overrides
    at = max(
        (place for place, token in enumerate(arguments, 1) if token in given[-1:]), default=len(arguments)
    )
    return [*arguments[:at], *more, *arguments[at:]]


def composed(name: str, tokens: Sequence[str]) -> Any:
    """Returns the configuration that the overrides make; Hydra must have been initialised.

    Raises:
        UserError: a value is of the wrong type or out of range, or one is missing.
    """
    return _compose(name, tokens)[0]


def _compose(name: str, tokens: Sequence[str], number: int = 0) -> tuple[Any, Any]:
    """Returns what `composed` does, and what Hydra itself is told of the job of that number."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict, read_write
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = compose(name, overrides=list(tokens), return_hydra_config=True)
        configuration_checks.require_shipped(config.hydra)
        with read_write(config.hydra.job), open_dict(config.hydra.job):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        HydraConfig.instance().set_config(config)  # What `${hydra:...}` asks.
        hydra = config.copy().hydra
        configuration_checks.require_places(hydra)
        with open_dict(config):
            del config["hydra"]
        configuration_checks.require_no_targets("the configuration", OmegaConf.to_container(config))
        missing = OmegaConf.missing_keys(config)
        if missing:
            first = min(missing)
            raise UserError(f"{first} has no value; give {first}=...")
        return schema.to_config(config, schema.SCHEMAS[name]), hydra
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(messages.without_secrets(_in_one_line(error))) from error
    except ValueError as error:
        raise UserError(str(error)) from error


def log_plainly() -> None:
    """Sends what is logged to standard error as plain lines, as Hydra's entry points do."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    for ours in ("bpt_rl", "experiments"):
        logging.getLogger(ours).setLevel(logging.INFO)


def log_as(config: Mapping[str, Any], verbose: Any) -> None:
    """Sends what is logged where Hydra's options say; those of a sweep, in the process of one of its jobs."""
    from hydra.core.utils import configure_log
    from omegaconf import OmegaConf

    configure_log(OmegaConf.create(dict(config)), verbose)


@contextmanager
def reported_errors() -> Iterator[None]:
    """Ends the process with one message where the user can mend what is wrong; without one where nobody reads it."""
    streams.fill()
    try:
        yield
        streams.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and streams.let_go():
            raise SystemExit(streams.EXIT_NOBODY_READS) from None
        if isinstance(error, UserError | OSError) and os.environ.get(TRACEBACK) != "1":
            streams.say(f"error: {messages.of_error(error)}")
            raise SystemExit(EXIT_USER_ERROR) from None
        # Python would print the error's message as it is, and there may be a key in it.
        streams.say(messages.with_traceback(error))
        raise SystemExit(EXIT_OUR_ERROR) from None
    except KeyboardInterrupt as stopped:
        streams.say("stopped before the end")
        raise SystemExit(interruption.exit_code(stopped)) from None


def _hydra_main(name: str, job: Job, sweep: Sweep | None, crew: Crew | None) -> Callable[[], None]:
    """Returns what has Hydra run the job, or the jobs of a sweep."""
    import hydra as library
    from hydra.core.hydra_config import HydraConfig

    def one_job(config: Any) -> None:
        # Inside Hydra, which would wrap the message in words and exit with code 1.
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        if sweep is None:
            with reported_errors(), _alone(name, folder):
                job(schema.to_config(config, schema.SCHEMAS[name]), folder)
            return
        planned = sweep.jobs[hydra.job.num]
        assert planned.folder == folder, (planned.folder, folder)
        if crew is None:
            sweeps.attempt(planned, schema.to_config(config, schema.SCHEMAS[name]), job)
        else:
            job_process.run(planned, crew, _request(name, config, hydra))

    # The job's name, which Hydra would derive from the function's module.
    one_job.__module__ = f"experiments.{name}"
    return library.main(version_base=VERSION_BASE, config_path=str(CONFIGS), config_name=name)(one_job)


def _request(name: str, config: Any, hydra: Any) -> dict[str, Any]:
    """Returns what the process of a job must be told, as JSON values."""
    from omegaconf import OmegaConf

    return {
        "name": name,
        "config": schema.to_yaml(schema.to_config(config, schema.SCHEMAS[name])),
        "logging": OmegaConf.to_container(hydra.job_logging, resolve=True),
        "verbose": hydra.verbose if isinstance(hydra.verbose, bool | str) else list(hydra.verbose),
    }


@contextmanager
def _alone(name: str, folder: Path) -> Iterator[None]:
    """Holds the folder of a training; another process that goes on with the same run would spoil it."""
    if name != "train":
        yield  # The others choose folders of their own.
        return
    with sweeps.claimed(folder) as is_free:
        if not is_free:
            raise UserError(f"another process is training in {folder}; wait for it, or choose another one")
        yield


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
