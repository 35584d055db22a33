"""What `--help` says: groups and their options, every key with its value and meaning, and examples."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from experiments import overrides, schema

INTRODUCTIONS = {
    "train": "Trains one agent on episodes that are there already, and evaluates it in its environment.",
    "evaluate": "Evaluates a run that is there already: other returns to ask for, more episodes, another temperature.",
    "collect": "Writes learning histories of an embedded family (dark_room, cue_bandit) as an ordinary store.",
    "benchmark": "Measures the layers on this machine: exactness, memory, time, rollouts, the loader, and peers.",
}
EXAMPLES = {
    "train": (
        "python -m experiments.train",
        "python -m experiments.train -m context.episodes=1,2,4,8 seed=0,1,2",
        "python -m experiments.train experiment=hopper_medium_replay dataset.id=FILE context.episodes=4",
        "python -m experiments.train env=gymnasium env.name=Pendulum-v1 dataset=recorded dataset.id=FILE",
    ),
    "evaluate": (
        "python -m experiments.evaluate run=outputs/DATE/TIME",
        "python -m experiments.evaluate run=RUN_DIR checkpoint=best evaluation.target_returns=[500,1000,2000]",
    ),
    "collect": (
        "python -m experiments.collect path=outputs/dark_room",
        "python -m experiments.collect path=outputs/bandit env=cue_bandit env.num_cues=16 seed=1",
    ),
    "benchmark": (
        "python -m experiments.benchmark",
        "python -m experiments.benchmark benchmark=full benchmark.parts=[memory,longest]",
        "python -m experiments.benchmark benchmark.parts=[peers] peers=FILE benchmark.time_lengths=[8192]",
        "python -m experiments.benchmark tune=true benchmark.time_lengths=[8192]",
        "python -m experiments.benchmark device=gpu",
    ),
}
FLAGS = (
    "-m runs every combination of comma-separated values, whatever becomes of one of them; sweep.csv says what did.",
    "hydra/launcher=joblib hydra.launcher.n_jobs=N runs N at a time, each in a process of its own, with one GPU each:",
    "  sweep.devices=0,1,3 (or none) says which; sweep.memory_fraction=0.4 has a job take so much of it at once.",
    "hydra.sweep.dir=DIR with the same sweep again does what is left of it (trainings with resume=auto).",
    "--cfg job prints the configuration and runs nothing; hydra.run.dir=DIR chooses the run directory.",
    "BPT_RL_TRACEBACK=1 shows where in the code an error came from.",
)
WIDTH = 118


def describe(name: str) -> str:
    """Returns the help of an entry point; needs no JAX, so that it answers at once."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from experiments.command_line import CONFIGS, VERSION_BASE

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base=VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        groups = {group: sorted(loader.get_group_options(group)) for group in loader.list_groups("")}
        config = compose(name, return_hydra_config=True)
        used = config.hydra.runtime.choices
    lines = [
        INTRODUCTIONS[name],
        "",
        f"  python -m experiments.{name} [-m] [group=option ...] [key=value ...]",
    ]
    used_groups = {group: options for group, options in groups.items() if group in used and options}
    if used_groups:
        lines += ["", "Groups, the option in use marked *:"]
        lines += _wrapped(
            (f"  {group}", _marked(options, used[group])) for group, options in used_groups.items()
        )
    lines += ["", "Keys, with the values in use:"]
    lines += _wrapped(_keys(schema.SCHEMAS[name], config, ""))
    lines += ["", "Examples:", *(f"  {example}" for example in EXAMPLES[name]), "", *FLAGS]
    return "\n".join(lines)


def _marked(options: list[str], used: str | None) -> str:
    return "  ".join(f"{option}*" if option == used else option for option in options)


def _keys(section: Any, values: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Yields `key=value` and its meaning, for every key that holds no other keys."""
    meanings = attributes(section)
    for name, kind in overrides.field_types(section).items():
        value = None if values is None else values[name]
        if dataclasses.is_dataclass(kind):
            yield from _keys(kind, value, f"{prefix}{name}.")
        else:
            yield f"  {prefix}{name}={_as_typed(value)}", meanings[name]


def _as_typed(value: Any) -> str:
    """Returns the value as it would be typed as an override."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace(" ", "")


def attributes(section: type) -> dict[str, str]:
    """Returns what the docstring of a dataclass says of each attribute, on one line each."""
    text = (inspect.getdoc(section) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, flags=re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def _wrapped(entries: Iterator[tuple[str, str]]) -> list[str]:
    """Returns the entries in two columns; an entry that is too wide for the first has a line of its own."""
    pairs = list(entries)
    widest = WIDTH // 2
    indent = 2 + max(len(left) for left, _ in pairs if len(left) <= widest)
    lines = []
    for left, right in pairs:
        if len(left) > widest:
            lines += textwrap.wrap(
                left.strip(), WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
            )
            left = ""
        lines += textwrap.wrap(
            right,
            WIDTH,
            initial_indent=left.ljust(indent),
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
    return lines
