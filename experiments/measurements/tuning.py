"""Measures block sizes where the rule only guesses: a grid, with the rule's own choice among it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from bpt_rl.ops.config import Schedule
from experiments.measurements import policies, step_time
from experiments.measurements.job import Job
from experiments.measurements.stacks import Size
from experiments.measurements.tables import Row, Table, listed, number, seconds, text

RULE = "the rule"
TUNED = "blockwise"


def measure(job: Job) -> Iterator[dict[str, Any]]:
    """Yields a row per policy (other than vanilla), length and pair of block sizes, the rule's choice first."""
    tuned = policies.chosen(job.config.policies or [TUNED], job.config.num_heads)
    for name, schedule in tuned.items():
        if schedule.name == "vanilla":
            continue
        for num_tokens in job.config.time_lengths:
            grid = candidates(schedule, job, num_tokens)
            for row in step_time.timed(job, Size.of(job.config), num_tokens, grid):
                cut = grid[row["policy"]]
                chosen = {"query_block": cut.query_block, "key_block": cut.key_block}
                yield {"schedule": name, "chosen_by": row.pop("policy"), **chosen, **row}


def candidates(schedule: Schedule, job: Job, num_tokens: int) -> dict[str, Schedule]:
    """Returns the schedule as the rule cuts it, and under every other pair of sizes that are no longer than the row."""
    from bpt_rl.ops import block_sizes

    size = Size.of(job.config)
    ruled = block_sizes.choose_sizes(
        schedule,
        rows=size.batch,
        kv_heads=size.num_heads,
        groups=1,
        queries=num_tokens,
        keys=num_tokens,
        is_diagonal=True,
    )
    whole_rows = block_sizes.choose_rows(
        schedule,
        rows=size.batch,
        num_heads=size.num_heads,
        num_tokens=num_tokens,
        width=size.width,
        num_layers=size.num_layers,
    )
    # What takes whole rows takes no blocks of them: named sizes would be another way to compute it.
    rule = (0, 0) if whole_rows else (ruled.query, ruled.key)
    sides = [side for side in job.config.block_sizes if side <= num_tokens]
    pairs = [rule, *((query, key) for query in sides for key in sides if (query, key) != rule)]
    cut = lambda pair: replace(schedule, query_block=pair[0], key_block=pair[1])
    return {RULE if pair == rule else f"{pair[0]} x {pair[1]}": cut(pair) for pair in pairs}


def best(rows: Sequence[Row]) -> Row:
    """Returns the row of the least processor time among those that were run."""
    return min((row for row in rows if row["cpu_s"]), key=lambda row: float(row["cpu_s"]))


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns a table per policy and length, the fastest first, and under its title what to paste."""
    columns = {
        "chosen by": text("chosen_by"),
        "query block": text("query_block"),
        "key block": text("key_block"),
        "processor s": seconds("cpu_s"),
        "MiB": number("temp_mib", 1),
    }
    found = []
    for name, num_tokens in dict.fromkeys((row["schedule"], row["tokens"]) for row in rows):
        group = [row for row in rows if (row["schedule"], row["tokens"]) == (name, num_tokens)]
        group.sort(key=lambda row: float(row["cpu_s"] or "inf"))
        if not any(row["cpu_s"] for row in group):
            found.append(
                listed(f"{name}, {num_tokens} tokens: nothing fits in the memory limit", group, columns)
            )
            continue
        fastest, rule = best(group), next(row for row in group if row["chosen_by"] == RULE)
        title = (
            f"{name}, {num_tokens} tokens: the rule takes {_paste(rule)}; measured best: {_paste(fastest)} "
            f"({float(fastest['cpu_s']) / float(rule['cpu_s'] or 'nan'):.2f} of the rule's time)"
        )
        found.append(listed(title, group, columns))
    return found


def _paste(row: Row) -> str:
    return f"schedule.query_block={row['query_block']} schedule.key_block={row['key_block']}"
