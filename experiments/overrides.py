"""Checks overrides before Hydra sees them: Hydra refuses a misspelt name too, but does not say which one was meant."""

import difflib
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from bpt_rl.types import UserError, nearest
from experiments.messages import shown, without_secrets

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override

# An id, or a path, that goes on with `?task=...`, and is not in quotes already.
_WITH_TASKS = re.compile(r"""(?<!["'\w:/.+-])[\w:/.+~-]+\?\w+=[\w+]+(?!["'])""")
_BEYOND_ASCII = re.compile(r"[^,\[\]{}()]*[^\x00-\x7f,\[\]{}()][^,\[\]{}()]*")
# Keys whose values are names of files, folders or datasets, with commas between several of them.
PLACES = ("dataset.id", "path", "run", "hydra.run.dir", "hydra.sweep.dir")
# One of them, with the comma before it: in quotes already, or not. A `${...}` may hold commas of its own.
_NAME = re.compile(
    r"""(?P<comma>\A|,)(?:
        [ \t]*(?P<quoted>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')[ \t]*(?=,|\Z)
        |(?P<bare>(?:\$\{[^}]*\}|[^,])*)
    )""",
    re.DOTALL | re.VERBOSE,
)
# What Hydra's grammar takes as it is, but for what could be a number or such: the folder 2024_01 would be 202401.
_PLAIN = re.compile(r"[\w/:.+@%*|-]+", re.ASCII)
_NO_TEXT = re.compile(r"[\d._e+-]+|[+-]?(?:inf|nan)|true|false|null", re.IGNORECASE)
SYNTAX = "expected key=value or group=option, such as context.episodes=4"
# Where the library that brings an option of Hydra's own groups is an extra of ours.
EXTRAS = {"joblib": "sweep"}


def quoted(tokens: Sequence[str]) -> list[str]:
    """Returns the tokens with quotes around what Hydra's grammar has no room for.

    That are ids of datasets with `?task=`, and names of files with spaces, brackets, quotes, a `~` or letters beyond
    ASCII. A comma stays what it is, the end of one value of a sweep; a name that holds one needs quotes of the user's.

    >>> quoted(["dataset.id=exorl:walker/proto?task=walk", "seed=1", "dataset.cache=été,data", "run=~/my run,b"])
    ['dataset.id="exorl:walker/proto?task=walk"', 'seed=1', 'dataset.cache="été",data', 'run="~/my run",b']
    """
    return [_quoted(*token.partition("=")) for token in tokens]


def _quoted(key: str, equals: str, value: str) -> str:
    if equals and key in PLACES:
        return f"{key}={_NAME.sub(_name, value)}"
    if key.startswith("dataset."):
        value = _WITH_TASKS.sub(_in_quotes, value)
    if not {"'", '"', "$"} & set(value):
        value = _BEYOND_ASCII.sub(_in_quotes, value)
    return f"{key}{equals}{value}"


def _name(match: re.Match[str]) -> str:
    """Returns one name of several, in quotes where it must be."""
    return match["comma"] + (match["quoted"] or _as_text(match["bare"]))


def for_shell(key: str, value: Any) -> str:
    """Returns `key=value` as it can be typed: in Hydra's grammar, and in the shell's.

    >>> print(for_shell("dataset.id", "my data"), for_shell("env.options", {"g": 9.8}))
    'dataset.id="my data"' 'env.options={g: 9.8}'
    """
    return shlex.quote(f"{key}={_as_text(value) if key in PLACES else _in_grammar(value)}")


def _as_text(name: str) -> str:
    """Returns a name as Hydra reads it as it is: in quotes where it must be."""
    return name if _PLAIN.fullmatch(name) and not _NO_TEXT.fullmatch(name) else _in_grammar(name)


def _in_grammar(value: Any) -> str:
    """Returns a value as an override has it; texts in quotes, so that they stay texts."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_in_grammar(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_in_grammar, value)) + "]"
    if value is None:
        return "null"
    if isinstance(value, str):
        # Backslashes are themselves, but before a quotation mark, which is escaped by one.
        return '"' + re.sub(r'(\\*)("|$)', lambda end: 2 * end[1] + end[2].replace('"', '\\"'), value) + '"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _in_quotes(match: re.Match[str]) -> str:
    return f'"{match[0]}"'


def parse(tokens: Sequence[str], loader: "ConfigLoader") -> list["Override"]:
    """Returns the tokens as Hydra reads them.

    Raises:
        UserError: a token is no override.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    parser = OverridesParser.create(config_loader=loader)
    parsed = []
    for token in tokens:
        try:
            parsed += parser.parse_overrides([token])
        except OverrideParseException as error:
            reason = without_secrets(str(error.__cause__ or error).splitlines()[0])
            raise UserError(f"cannot read the override {shown(token)!r} ({reason}); {SYNTAX}") from error
    return parsed


def require_one_value(overrides: Sequence["Override"]) -> None:
    """Refuses several names of files or datasets where there is one job; one name with commas needs quotes.

    Args:
        overrides: from `parse`.

    Raises:
        UserError: shows the name in quotes.
    """
    from hydra.core.override_parser.types import QuotedString

    for override in overrides:
        key = override.key_or_group
        if key in PLACES and override.is_discrete_sweep():
            names = [
                name.text if isinstance(name, QuotedString) else str(name)
                for name in override.sweep_iterator()
            ]
            raise UserError(
                f"{key} has {len(names)} values, with commas between them, for one job; add --multirun, to have one "
                f"job each, or quotes, if it is one name: {for_shell(key, ','.join(names))}"
            )


def check_names(
    overrides: Sequence["Override"], loader: "ConfigLoader", keys: Mapping[str, Sequence[str]]
) -> None:
    """Refuses a key, a group or an option that does not exist, with the nearest that does.

    Args:
        overrides: from `parse`.
        loader: knows the groups.
        keys: from `schema_keys`.

    Raises:
        UserError: the first misspelt name, or details of an environment beside `env=none`.
    """
    _refuse_details_of_nothing(overrides)
    # The groups of other entry points lie in the same folder.
    groups = {name for name in loader.list_groups("") if name in keys or name == "experiment"}
    groups |= {f"hydra/{name}" for name in loader.list_groups("hydra")}
    for override in overrides:
        name = override.key_or_group
        if name in groups and not _is_sub_config(override):
            _check_options(override, loader)
        elif not override.is_hydra_override() and name not in keys and not name.startswith("env.options."):
            raise UserError(f"no option is called {name!r}; {_nearest_key(name, keys, sorted(groups))}")


def jobs(overrides: Sequence["Override"]) -> Iterator[list[str]]:
    """Yields the overrides of every job of a sweep, in Hydra's order; one list where nothing is swept.

    Of a key that is given twice the last value counts, as it does for Hydra.
    """
    choices = {
        override.get_key_element(): (
            [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            if override.is_discrete_sweep()
            else [override.input_line or ""]
        )
        for override in overrides
    }
    return map(list, itertools.product(*choices.values()))


def schema_keys(schema: type) -> dict[str, list[str]]:
    """Returns every dotted key of a schema, sections included, and for each the names directly below it."""
    keys: dict[str, list[str]] = {}

    def visit(section: type, prefix: str) -> None:
        for name, inner in field_types(section).items():
            is_section = isinstance(inner, type) and is_dataclass(inner)
            keys[prefix + name] = list(field_types(inner)) if is_section else []
            if is_section:
                visit(inner, f"{prefix}{name}.")

    visit(schema, "")
    return keys


def field_types(schema: Any) -> dict[str, Any]:
    """Returns the type of every field of a dataclass; the dataclass itself where it is optional."""
    hints = get_type_hints(schema)
    return {
        name: next((part for part in get_args(hint) if is_dataclass(part)), hint)
        for name, hint in hints.items()
    }


def _is_sub_config(override: "Override") -> bool:
    """Tells whether the value is a whole section, `context={episodes: 2}`, and not the name of an option."""
    return isinstance(override.value(), dict)


def _without(group: str) -> str:
    """Returns how to do without a group."""
    return "env=none does without" if group == "env" else f"leave it out, or say ~{group}"


def _refuse_details_of_nothing(overrides: Sequence["Override"]) -> None:
    """Hydra stops at a failed assertion where a key lies below a section that is null."""
    choices = [override for override in overrides if override.key_or_group == "env"]
    details = [override.input_line for override in overrides if override.key_or_group.startswith("env.")]
    names = [name for override in choices if not _is_sub_config(override) for name in _chosen(override)]
    if "none" in names and details:
        raise UserError(
            f"env=none has no environment, so {details[0]} says nothing; leave one of the two out"
        )


def require_environment(overrides: Sequence["Override"]) -> None:
    """Refuses to do without an environment where everything happens in one.

    Raises:
        UserError: `env=none`, or null, is among the overrides.
    """
    for override in overrides:
        if override.key_or_group != "env" or _is_sub_config(override):
            continue
        if {"none", "null", None} & set(_chosen(override)):
            raise UserError(
                f"collecting needs an environment to play in, and {override.input_line} has none; choose another"
            )


def _chosen(override: "Override") -> list[Any]:
    """Returns the options that an override of a group names, one or more."""
    if override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    value = override.value()
    return value if isinstance(value, list) else [value]


def _check_options(override: "Override", loader: "ConfigLoader") -> None:
    known = sorted(loader.get_group_options(override.key_or_group))
    if override.is_delete() or not known:
        return
    if override.value() is None:
        raise UserError(f"{override.key_or_group}=null chooses no option; {_without(override.key_or_group)}")
    for option in _chosen(override):
        if str(option) not in known:
            extra = EXTRAS.get(str(option))
            hint = f"; it comes with the extra {extra!r}: pip install -e '.[{extra}]'" if extra else ""
            raise UserError(
                f"{override.key_or_group} has no option {option!r}; {nearest(str(option), known)}{hint}"
            )


def _nearest_key(name: str, keys: Mapping[str, Sequence[str]], groups: Sequence[str]) -> str:
    """Returns the nearest name, and what there is in the section that was meant."""
    section, _, last = name.rpartition(".")
    if keys.get(section):
        return f"in {section}: {nearest(last, keys[section])}"
    # A name that stands alone: perhaps the last part of a key was meant.
    same = [key for key in keys if key.rpartition(".")[2] == name]
    close = same or difflib.get_close_matches(name, [*keys, *groups], n=1, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(key) for key in close)}?"
    known = sorted({key for key in keys if "." not in key} | {name for name in groups if "/" not in name})
    return f"known are {', '.join(known)}; --help lists all"
