"""What a configuration may not hold: names of code to run, values of the environment, files of elsewhere.

Hydra calls whatever `_target_` names in its launcher, sweeper and callbacks, and Python's logging whatever `()`,
`class` and `ext://` name. So of Hydra's own options only those listed here can be chosen, everything is looked at
before Hydra instantiates anything, and a configuration that a run left behind is read as plain values and nothing else.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpt_rl.types import UserError
from experiments import messages

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Options of Hydra's groups that this project ships with, or that the packages it depends on do.
GROUPS = {
    "hydra/launcher": ("basic", "joblib"),
    "hydra/sweeper": ("basic",),
    "hydra/job_logging": ("plain", "default", "stdout", "none", "disabled"),
    "hydra/hydra_logging": ("plain", "default", "hydra_debug", "none", "disabled"),
}
# Keys that choose a place, an amount or a name. Not among them: what brings code (`_target_`, callbacks, logging),
# configurations (searchpath, sweeper.params) or environment variables (job.env_set), nor Hydra's own files
# (output_subdir): config.yaml of a run says all that they do.
KEYS = (
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.verbose"),
    *("hydra.job.name", "hydra.job.chdir", "hydra.sweeper.max_batch_size"),
    *("hydra.launcher.n_jobs", "hydra.launcher.verbose", "hydra.launcher.pre_dispatch"),
)
PREFIXES = ("hydra.job.config.override_dirname.",)
LAUNCHERS = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
}
SWEEPERS = {"hydra._internal.core_plugins.basic_sweeper.BasicSweeper"}
LOGGING_CLASSES = {"logging.StreamHandler", "logging.FileHandler", "logging.Formatter"}
LOGGING_STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}
FLAGS = {
    "config_dir": "--config-dir",
    "config_path": "--config-path",
    "config_name": "--config-name",
}
# Another key of the configuration, the date, or what Hydra says of the job; never the environment.
_HARMLESS = re.compile(r"\$\{\s*(?:(?:now|hydra|python_version)\s*:|[\w.\[\]]+\s*\})")
# A configuration of a run takes some kilobytes.
MOST_BYTES = 256 * 1024
MOST_DEPTH = 20
MOST_MISSING = 3


def require_own(parsed: Any) -> None:
    """Refuses flags that have Hydra read configurations of elsewhere, or a pickle.

    Args:
        parsed: the flags, from Hydra's parser.

    Raises:
        UserError: one of them is given.
    """
    for name, flag in FLAGS.items():
        if getattr(parsed, name):
            raise UserError(
                f"{flag} brings configurations from elsewhere, which can name code to run; they are read from configs/ "
                f"only: put the file there, such as configs/experiment/mine.yaml, and say experiment=mine"
            )
    if parsed.experimental_rerun:
        raise UserError(
            "--experimental-rerun reads a pickle, which can run any code; give the overrides again"
        )


def require_harmless(overrides: Sequence["Override"]) -> None:
    """Refuses overrides that choose code, or that read the environment.

    Raises:
        UserError: the first of them; its value, which may be a secret, is not repeated.
    """
    for override in overrides:
        name, package = override.key_or_group, override.package
        if package is not None:
            raise UserError(
                f"{name}@{package}=... puts a group in another place, which is not supported here; say {name}=OPTION"
            )
        if name == "hydra" or name.startswith(("hydra.", "hydra/")):
            _require_setting(override)
        line = override.input_line or ""
        require_plain_references(line, name)
        if messages.without_secrets(line) != line:
            raise UserError(f"{name} holds the value of a key or a token, which would be written into files")


def require_plain_references(text: str, name: str) -> None:
    """Refuses `${...}` that is more than another key, the date, or a name that Hydra knows.

    Raises:
        UserError: says which key holds it.
    """
    for found in re.finditer(r"\$\{", text):
        if not _HARMLESS.match(text, found.start()):
            raise UserError(
                f"{name} holds ${{...}} that reads more than other keys, the environment for example, which would then "
                f"be written into files; have the shell fill it in: {name}=$NAME"
            )


def require_shipped(hydra: Any) -> None:
    """Looks once more at Hydra's composed node, whatever led to it, before anything in it is instantiated.

    Raises:
        UserError: it names code that this project does not ship, or brings environment variables or other folders.
    """
    from omegaconf import OmegaConf

    node: Any = OmegaConf.to_container(hydra, resolve=False)
    for name, known in (("launcher", LAUNCHERS), ("sweeper", SWEEPERS)):
        target = (node[name] or {}).get("_target_")
        if target not in known:
            raise UserError(f"hydra.{name} would run {target!r}; only {', '.join(sorted(known))} can be")
        node[name] = {key: value for key, value in node[name].items() if key != "_target_"}
    job = node["job"]
    for name, found in (
        ("callbacks", node["callbacks"]),
        ("searchpath", node["searchpath"]),
        ("sweeper.params", node["sweeper"].get("params")),
        ("job.env_set", job["env_set"]),
        ("job.env_copy", job["env_copy"]),
    ):
        if found:
            raise UserError(f"hydra.{name} must be empty; it brings code, configurations or variables")
    for name in ("job_logging", "hydra_logging"):
        _require_plain_logging(f"hydra.{name}", node[name])
    require_no_targets("hydra", node)


def require_places(hydra: Any) -> None:
    """Refuses to put a run, or the jobs of a sweep, where files would lie about, or outside of the sweep's folder.

    Args:
        hydra: Hydra's composed node, which knows the number of the job: references in it are followed.

    Raises:
        UserError: a folder has no name, or that of a job lies elsewhere.
    """
    for name, folder in (("run", hydra.run.dir), ("sweep", hydra.sweep.dir)):
        if not folder.strip():
            raise UserError(
                f"hydra.{name}.dir is empty, and files would lie about in the working directory; leave it out, or name "
                f"a folder, such as hydra.{name}.dir=outputs/mine"
            )
        if folder.startswith("~"):
            raise UserError(
                f"hydra.{name}.dir={folder} would be a folder called ~ in the working directory: shells leave it alone "
                f"there; write $HOME for it"
            )
    subdir = Path(hydra.sweep.subdir)
    if subdir.is_absolute() or ".." in subdir.parts or not subdir.parts:
        raise UserError(
            f"hydra.sweep.subdir={subdir} is no folder below hydra.sweep.dir, where each job must have one; leave it "
            f"out, or choose another name"
        )


def require_no_targets(name: str, value: Any) -> None:
    """Refuses keys that have Hydra call something.

    Raises:
        UserError: there is one.
    """
    for path, key, _ in _entries(name, value):
        if key in ("_target_", "_partial_", "_args_", "_convert_", "_recursive_"):
            raise UserError(f"{path} would have code run that a configuration names; nothing here is made so")


def read_stored(path: Path) -> str:
    """Returns the text of a configuration that a run left, if it may be one.

    Raises:
        ValueError: it is too large, no text, or holds more than plain values.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"it takes {size} bytes, a configuration at most {MOST_BYTES}")
    text = path.read_text(encoding="utf-8")
    require_plain(text)
    return text


def require_plain(text: str) -> None:
    """Refuses YAML with tags, anchors, references to elsewhere, or beyond reason in size or depth.

    Raises:
        ValueError: says what, and in which line.
        yaml.YAMLError: it is no YAML.
    """
    import yaml

    if len(text) > MOST_BYTES:
        raise ValueError(f"it takes {len(text)} characters, a configuration at most {MOST_BYTES}")
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        found = _not_plain(event)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            found = "lists or sections nested beyond reason"
        if found:
            raise ValueError(f"line {event.start_mark.line + 1} holds {found}")


def require_whole(stored: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
    """Refuses a stored configuration that lacks keys: what a default would stand for is not what was asked for.

    Args:
        stored: what was read.
        whole: the same with defaults filled in.

    Raises:
        ValueError: names the first keys that are missing.
    """
    missing = list(_missing("", stored, whole))
    if missing:
        more = len(missing) - MOST_MISSING
        raise ValueError(
            f"it lacks {', '.join(missing[:MOST_MISSING])}{f' and {more} more' if more > 0 else ''}: another version "
            f"wrote it, or it was cut off"
        )


def _missing(prefix: str, stored: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[str]:
    """Yields the dotted keys that are missing; of a section that is missing, that of the section."""
    for key, value in whole.items():
        if key not in stored:
            yield prefix + key
        elif isinstance(value, Mapping):
            yield from _missing(f"{prefix}{key}.", stored[key], value)


def _not_plain(event: Any) -> str:
    """Returns what a piece of YAML holds that a stored configuration never does; empty if there is nothing."""
    import yaml

    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        return "an anchor (& or *), which can stand for any number of values"
    if getattr(event, "tag", None):
        return f"the tag {event.tag!r}, which can stand for code"
    if isinstance(event, yaml.ScalarEvent):
        if "${" in event.value:
            return "${...}, which can read the environment; a run writes it resolved"
        if event.value == "_target_":
            return "_target_, which names code to run"
    return ""


def _require_setting(override: "Override") -> None:
    """Refuses what is neither a key that chooses a place or an amount, nor an option of a group that is shipped."""
    name = override.key_or_group
    is_setting = name in KEYS or name.startswith(PREFIXES)
    if override.is_delete() or not (is_setting or name in GROUPS):
        raise UserError(
            f"{name} cannot be set here, as Hydra's own options can run code; those that can be are {', '.join(KEYS)} "
            f"and the groups {', '.join(GROUPS)}"
        )
    if override.is_sweep_override():
        raise UserError(f"{name} is the same for all jobs of a sweep; give it one value")
    if name in GROUPS and override.value() not in GROUPS[name]:
        raise UserError(
            f"{name} must be {' or '.join(GROUPS[name])}; others can run code that this project does not know"
        )


def _require_plain_logging(name: str, config: Any) -> None:
    """Refuses what Python's logging would import or call, but for its own streams and files."""
    for path, key, value in _entries(name, config):
        is_foreign = isinstance(value, str) and (
            (value.startswith("ext://") and value not in LOGGING_STREAMS) or value.startswith("cfg://")
        )
        if key == "()" or is_foreign or (key == "class" and value not in LOGGING_CLASSES):
            raise UserError(
                f"{path} would have Python's logging import or call something of its own choice; choose "
                f"{' or '.join(GROUPS['hydra/job_logging'])}"
            )


def _entries(path: str, value: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields every entry of nested dictionaries and lists: its dotted path, its key and its value."""
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in items:
        yield f"{path}.{key}", key, inner
        yield from _entries(f"{path}.{key}", inner)
