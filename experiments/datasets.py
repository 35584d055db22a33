"""Looks at datasets and moves them: `python -m experiments.datasets COMMAND`.

The commands are list, show, convert, relabel, download and export.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bpt_rl.data import ids
from bpt_rl.data.config import TRAILING, DatasetConfig
from bpt_rl.types import UserError
from envs.config import FAMILIES, EnvConfig
from experiments import command_line, interruption, overrides, sources

if TYPE_CHECKING:
    from bpt_rl.data.episodes import EpisodeStore
    from bpt_rl.data.recording import Recording

ID_HELP = (
    "id or path: hopper-medium-v2, d4rl:ID, minari:ID, exorl:walker/proto?task=walk, ogbench:ID, FILE, FOLDER; or the "
    f"name of an embedded family ({', '.join(FAMILIES)}) for the histories of its learners"
)
LOG = logging.getLogger(__name__)
MINARI = "minari:"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the entry point."""
    with command_line.reported_errors():
        command_line.log_plainly()
        options = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
        options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.datasets",
        description="Looks at datasets, converts and fetches them. `COMMAND --help` says more.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_list(commands)
    _add_show(commands)
    _add_convert(commands)
    _add_relabel(commands)
    _add_download(commands)
    _add_export(commands)
    return parser


def _add_list(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("list", help="says which datasets are on this machine, and which there are")
    command.add_argument("--all", action="store_true", help="also those of D4RL that are not on this machine")
    command.add_argument(
        "--remote", action="store_true", help="also those on Minari's server (needs a network)"
    )
    command.add_argument("--json", action="store_true", help="prints one list for programs")
    _add_cache(command)
    command.set_defaults(run=_list)


def _add_show(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "show", help="says what a dataset holds (converts it first, into the cache)"
    )
    command.add_argument("id", help=ID_HELP)
    command.add_argument("--json", action="store_true", help="prints one object for programs")
    _add_reading(command)
    command.set_defaults(run=_show)


def _add_convert(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("convert", help="writes a dataset as a store, into a folder of your own")
    command.add_argument("id", help=ID_HELP)
    command.add_argument("folder", type=Path, help="to write; for dataset.id=FOLDER")
    _add_reading(command)
    command.set_defaults(run=_convert)


def _add_relabel(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("relabel", help="recomputes the rewards of ExoRL episodes for other tasks")
    command.add_argument("id", help="exorl:DOMAIN/ALGORITHM, or the folder of the episodes")
    command.add_argument("folder", type=Path, help="to write, a store; for dataset.id=FOLDER")
    command.add_argument(
        "--tasks", nargs="+", default=[ids.ALL_TASKS], help="of the domain; all of them by default"
    )
    command.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that compute rewards; 0 for none"
    )
    command.set_defaults(run=_relabel)


def _add_download(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("download", help="fetches a dataset to where its id is looked for; resumes")
    command.add_argument("id", help="d4rl:ID, minari:ID, exorl:DOMAIN/ALGORITHM or ogbench:ID")
    command.add_argument("--sha256", help="refuses a file with another checksum")
    command.set_defaults(run=_download)


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "export", help="writes a dataset for others: to Minari, or in D4RL's layout"
    )
    command.add_argument("id", help=ID_HELP)
    command.add_argument("to", help="minari:NAMESPACE/NAME-v0, or FILE.hdf5")
    command.add_argument("--author", default="", help="for Minari")
    _add_reading(command)
    command.set_defaults(run=_export)


def _add_reading(command: argparse.ArgumentParser) -> None:
    usual = DatasetConfig()
    command.add_argument(
        "--trailing", choices=TRAILING, default=usual.trailing, help="an episode cut off at the end"
    )
    command.add_argument(
        "--max-episode-steps", type=int, default=0, help="where a file without time-outs is cut"
    )
    command.add_argument("--rewards", default=usual.rewards, help="of OGBench: stored, zero or goal")
    command.add_argument(
        "--goal", type=float, nargs=2, default=[], metavar=("X", "Y"), help="for --rewards goal"
    )
    command.add_argument(
        "--reference-scores", action="store_true", help="D4RL's for Minari's mujoco/*, which have none"
    )
    command.add_argument("--workers", type=int, default=usual.workers, help="processes that compute rewards")
    _add_cache(command)


def _add_cache(command: argparse.ArgumentParser) -> None:
    command.add_argument("--cache", default=DatasetConfig().cache, help="where conversions are kept")


def _list(options: argparse.Namespace) -> None:
    from experiments import dataset_list

    found = dataset_list.find(Path(options.cache), is_all=options.all, is_remote=options.remote)
    if options.json:
        print(json.dumps([vars(entry) for entry in found], indent=1))
        return
    for line in dataset_list.lines(found):
        print(line)


def _show(options: argparse.Namespace) -> None:
    from experiments.dataset_report import report

    found = report(options.id, _opened(options))
    print(json.dumps(found.to_json(), indent=1) if options.json else "\n".join(found.lines()))


def _convert(options: argparse.Namespace) -> None:
    named, env = _named(options.id)
    if named.scheme == "store":
        raise UserError(f"{options.id} is a store already; train on it with dataset.id={options.id}")
    _write(sources.recording_of(named, _config(options), env, None), options.folder)


def _relabel(options: argparse.Namespace) -> None:
    if "?" in options.id:
        raise UserError(f"{options.id}: name the tasks with --tasks")
    ids.parse(options.id)
    named = ids.parse(f"{options.id}?task={'+'.join(options.tasks)}")
    if named.scheme != "exorl":
        raise UserError(
            f"{options.id} is no ExoRL dataset; only those hold the simulator's states to compute rewards from"
        )
    config = _checked_config(id=options.id, workers=options.workers)
    _write(sources.recording_of(named, config, None, None), options.folder)


def _download(options: argparse.Namespace) -> None:
    from experiments import dataset_downloads

    print(f"{options.id} is in {dataset_downloads.fetch(options.id, sha256=options.sha256)}")


def _export(options: argparse.Namespace) -> None:
    store = _opened(options)
    facts = store.metadata.get("facts", {})
    if options.to.startswith(MINARI):
        from bpt_rl.data.minari_export import export_minari
        from envs.simulators import is_registered

        name = options.to.removeprefix(MINARI)
        environment = str(facts.get("environment", ""))
        is_known = is_registered(environment)
        if not is_known:
            LOG.info(
                f"{environment or 'the environment'} is none of Gymnasium's: the dataset is written without it"
            )
        export_minari(
            store,
            name,
            env_id=environment if is_known else None,
            env_options=(facts.get("environment_options") or {}) if is_known else {},
            description="" if is_known else f"Recorded in {environment or 'an unknown environment'}.",
            author=options.author,
        )
        print(f"{len(store):,} episodes in Minari's dataset {name}: minari.load_dataset({name!r})")
        return
    from bpt_rl.data.d4rl_export import export_d4rl

    if not options.to.endswith(ids.HDF5_SUFFIXES):
        raise UserError(
            f"cannot tell what to write to {options.to!r}; expected minari:NAMESPACE/NAME-v0, or a file that ends in "
            f"{', '.join(ids.HDF5_SUFFIXES)}"
        )
    export_d4rl(store, Path(options.to))
    print(f"{len(store):,} episodes in {options.to}, in D4RL's layout")


def _opened(options: argparse.Namespace) -> "EpisodeStore":
    named, env = _named(options.id)
    return sources.open_store(named.text, _config(options), env, None)


def _named(text: str) -> tuple[ids.DatasetId, EnvConfig | None]:
    """The id, and the embedded family if it is the name of one."""
    if text in FAMILIES:
        return ids.parse(ids.GENERATED), EnvConfig(text)
    if text == ids.GENERATED:
        raise UserError(f"whose histories? Name the family: {', '.join(FAMILIES)}")
    return ids.parse(text), None


def _config(options: argparse.Namespace) -> DatasetConfig:
    return _checked_config(
        id=options.id,
        trailing=options.trailing,
        max_episode_steps=options.max_episode_steps,
        rewards=options.rewards,
        goal=list(options.goal),
        reference_scores=options.reference_scores,
        workers=options.workers,
        cache=options.cache,
    )


def _checked_config(**options: object) -> DatasetConfig:
    try:
        return DatasetConfig(**options)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(str(error)) from error


def _write(recording: "Recording", folder: Path) -> None:
    """Writes a store where there is none yet, or finds that it is there already."""
    from bpt_rl.data.recording import convert, is_converted

    if folder.exists() and any(folder.iterdir()) and not is_converted(recording, folder):
        raise UserError(
            f"{folder} is there already and holds something else; name another folder, or remove it"
        )
    store = convert(recording, folder, replaces=False)
    print(
        f"{len(store):,} episodes, {int(store.lengths.sum()):,} steps in {folder}; train on them with "
        f"dataset=recorded {overrides.for_shell('dataset.id', str(folder))}"
    )


if __name__ == "__main__":
    interruption.run_process(main)
