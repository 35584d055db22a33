"""Other people's layers beside ours: in one process, in turns, at the same widths, each peer at its best block size.

A peers' file offers `compile_step(name, n=layers, L=tokens, D=width, H=heads, b=block)`, a compiled step
`(params, x, target)`, and `init(key, n, D)` for its parameters. Its layers have layer norm and gelu and no rotary
positions; ours are given the same.
"""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from bpt_rl.types import UserError
from experiments.measurements import timing
from experiments.measurements.job import Job
from experiments.measurements.policies import POLICIES, VANILLA
from experiments.measurements.processes import memory_limit_mib
from experiments.measurements.stacks import (
    MIB,
    Size,
    compiled_step,
    inputs,
    peak_bytes,
    scratch_bytes,
    temp_bytes,
)
from experiments.measurements.step_time import TOO_LARGE
from experiments.measurements.tables import Row, Table, crossed, listed, number, ratio, seconds, text

NEEDED = ("compile_step", "init")
INSTALL = "the peers' libraries come with pip install -e '.[peers]'"


class Entry(NamedTuple):
    """One layer, compiled.

    Attributes:
        block: tokens per block of a peer; 0 is ours.
        step: the compiled step, or None where there is none.
        arguments: of the step.
        note: why there is no step, or nothing.
    """

    block: int
    step: Any
    arguments: tuple[Any, ...] = ()
    note: str = ""


def load(path: Path) -> ModuleType:
    """Returns the module in a file.

    Raises:
        UserError: there is no such file, it cannot be imported, or it does not offer what is needed.
    """
    spec = importlib.util.spec_from_file_location("peers", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"peers={path} is no Python file; give one that offers {' and '.join(NEEDED)}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses look their module up.
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"peers={path} cannot be imported ({reason}); {INSTALL}") from error
    missing = [name for name in NEEDED if not callable(getattr(module, name, None))]
    if missing:
        raise UserError(f"peers={path} has no {missing[0]}; expected {' and '.join(NEEDED)}")
    return module


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per length and layer, ours and theirs.

    Raises:
        UserError: there are no peers.
    """
    if not job.peers:
        raise UserError("no peers are given; say peers=FILE, a Python file with other people's layers")
    module = load(Path(job.peers))
    size = Size.of(job.config)._replace(norm="layer", rotary_base=0.0)
    for num_tokens in job.config.time_lengths:
        yield from _rows(job, module, size, num_tokens)


def _rows(job: Job, module: ModuleType, size: Size, num_tokens: int) -> Iterator[dict[str, Any]]:
    config = job.config
    given = inputs(size, num_tokens)
    entries = {
        name: Entry(0, compiled_step(schedule, size, num_tokens), given)
        for name, schedule in job.policies.items()
    }
    for name in config.peer_names:
        entries[name] = _best(module, name, size, num_tokens, config.peer_blocks, given)
    limit = memory_limit_mib(config.memory_limit_mib) * MIB
    timings = timing.interleaved(
        {
            name: timing.ready(entry.step, *entry.arguments)
            for name, entry in entries.items()
            if entry.step is not None and peak_bytes(entry.step) <= limit
        },
        repeats=config.repeats,
        most_seconds=config.most_seconds,
    )
    vanilla = scratch_bytes(POLICIES[VANILLA], size, num_tokens)
    nothing = dict.fromkeys(timing.Timings([0.0], [0.0]).columns())
    for name, entry in entries.items():
        cpu = timing.median_cpu(timings, name)
        temp = None if entry.step is None else temp_bytes(entry.step)
        yield {
            "layer": name,
            "tokens": num_tokens,
            "block": entry.block or None,
            **(timings[name].columns() if name in timings else nothing),
            **{f"over_{peer}": ratio(cpu, timing.median_cpu(timings, peer)) for peer in config.peer_names},
            "temp_mib": None if temp is None else temp / MIB,
            "vanilla_memory_over_this": ratio(vanilla, temp),
            "note": entry.note or ("" if name in timings else TOO_LARGE),
        }


def _best(
    module: ModuleType, name: str, size: Size, num_tokens: int, blocks: Sequence[int], given: tuple[Any, ...]
) -> Entry:
    """Returns a peer at the block size at which one run of it takes least processor time."""
    import jax

    arguments = (module.init(jax.random.key(0), size.num_layers, size.width), *given[1:])
    found: list[tuple[float, Entry]] = []
    reason = "no block size to try"
    sizes = {"n": size.num_layers, "L": num_tokens, "D": size.width, "H": size.num_heads}
    for block in dict.fromkeys(min(block, num_tokens) for block in blocks):
        try:
            step = module.compile_step(name, **sizes, b=block)
            probe = timing.Timings()
            probe.add(timing.ready(step, *arguments))
        except Exception as error:  # Whatever keeps someone else's code from running: said, and gone on.
            reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
            continue
        found.append((probe.cpu[0], Entry(block, step, arguments)))
    if not found:
        return Entry(0, None, note=f"cannot be run ({reason}); {INSTALL}")
    return min(found, key=lambda pair: pair[0])[1]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns times, ratios to every peer, and memory, layers down and tokens across."""
    cross = lambda title, cell: crossed(title, rows, down="layer", across="tokens", cell=cell)
    found = [
        cross(
            "Beside peers: processor seconds of a training step, median [lowest, highest]", seconds("cpu_s")
        ),
        cross("Wall-clock seconds of the same", seconds("wall_s")),
        cross("Scratch memory, MiB", number("temp_mib", 1)),
        cross("How many times less memory than vanilla", number("vanilla_memory_over_this", 1)),
    ]
    peers = [key.removeprefix("over_") for key in rows[0] if key.startswith("over_")] if rows else []
    found += [cross(f"Processor time over that of {peer}", number(f"over_{peer}")) for peer in peers]
    blocks = [row for row in rows if row["block"]]
    if blocks:
        columns = {"peer": text("layer"), "tokens": number("tokens", 0), "block": text("block")}
        found.append(listed("Block size at which each peer was fastest", blocks, columns))
    return found
