"""The benchmark's command line where Hydra is missing: the same options, groups and files, and nothing else of Hydra.

YAML is there without it: flax needs it too.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, get_args, get_origin

from bpt_rl.types import UserError, nearest
from experiments import command_line, help_text, overrides
from experiments.schema import BenchmarkConfig

GROUP = "benchmark"
DEFAULT_OPTION = "short"
RUN_DIR = "hydra.run.dir"


def run(job: Callable[[BenchmarkConfig, Path], None]) -> None:
    """Runs the job with what `sys.argv` says; errors and help as with Hydra."""
    arguments = sys.argv[1:]
    with command_line.reported_errors():
        if {"-h", "--help"} & set(arguments):
            print(describe())
            return
        config, folder = parse(arguments)
        job(config, folder)


def parse(arguments: Sequence[str]) -> tuple[BenchmarkConfig, Path]:
    """Returns the configuration and the run directory of a command line.

    Raises:
        UserError: a name is unknown, or a value is of the wrong type or out of range.
    """
    # As in configs/benchmark.yaml; to the microsecond, so that two that begin together have a folder each.
    option, folder = DEFAULT_OPTION, Path("outputs", "benchmark", f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    typed: dict[str, str] = {}
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if not sign:
            raise UserError(f"cannot read the override {argument!r}; {overrides.SYNTAX}")
        if key == GROUP:
            option = value
        elif key == RUN_DIR:
            folder = Path(value)
        else:
            typed[key] = value
    sections = {"": {}, GROUP: read_option(option)}
    kinds = {"": _kinds(BenchmarkConfig), GROUP: _kinds(overrides.field_types(BenchmarkConfig)[GROUP])}
    for key, value in typed.items():
        section, _, name = key.rpartition(".")
        if name not in kinds.get(section, {}):
            known = [*(f"{GROUP}.{name}" for name in kinds[GROUP]), *kinds[""]]
            raise UserError(f"no option is called {key!r}; {nearest(key, known)}")
        sections[section][name] = _converted(key, value, kinds[section][name])
    return build(sections), folder


def build(sections: Mapping[str, Mapping[str, Any]]) -> BenchmarkConfig:
    """Returns the configuration of plain values, the section `""` holding those that stand alone.

    Raises:
        UserError: a value is out of range.
    """
    try:
        measured = overrides.field_types(BenchmarkConfig)[GROUP](**sections[GROUP])
        return BenchmarkConfig(benchmark=measured, **sections[""])
    except ValueError as error:
        raise UserError(str(error)) from error


def read_option(name: str) -> dict[str, Any]:
    """Returns the values of an options file.

    Raises:
        UserError: there is no such option.
    """
    folder = command_line.CONFIGS / GROUP
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        raise UserError(f"{GROUP} has no option {name!r}; {nearest(name, known)}")
    return _value(path.read_text())


def describe() -> str:
    """Returns the help: every option with its default and meaning."""
    lines = [
        help_text.INTRODUCTIONS["benchmark"],
        "",
        "  python -m experiments.benchmark [benchmark=option] [key=value ...]",
    ]
    lines += [
        "",
        "Hydra is not installed; no sweeps and no --cfg. Options (benchmark=... chooses a set of values):",
    ]
    config = build({"": {}, GROUP: read_option(DEFAULT_OPTION)})
    sections = {"": config, f"{GROUP}.": config.benchmark}
    for prefix, section in sections.items():
        for name, meaning in help_text.attributes(type(section)).items():
            if prefix or name != GROUP:
                lines.append(f"  {prefix}{name}={getattr(section, name)}\n      {meaning}")
    return "\n".join([*lines, "", "Examples:", *(f"  {line}" for line in help_text.EXAMPLES["benchmark"])])


def _kinds(section: Any) -> dict[str, Any]:
    """Returns the types of those keys that hold a value."""
    types = overrides.field_types(section)
    return {name: kind for name, kind in types.items() if not dataclasses.is_dataclass(kind)}


def _converted(key: str, text: str, kind: Any) -> Any:
    """Returns a typed value as its key wants it.

    Raises:
        UserError: it cannot be.
    """
    if kind is str:
        return text
    value = _value(text)
    if kind is float and _is(value, float):
        return float(value)
    if get_origin(kind) is list:
        (inner,) = get_args(kind)
        fits = isinstance(value, list) and all(_is(item, inner) for item in value)
    else:
        fits = _is(value, kind)
    if not fits:
        raise UserError(f"{key}={text} does not fit; expected {getattr(kind, '__name__', kind)}")
    return value


def _is(value: Any, kind: type) -> bool:
    allowed = (int, float) if kind is float else kind
    return isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))


def _value(text: str) -> Any:
    """Returns what YAML reads in a text; the text itself where that is nothing."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
