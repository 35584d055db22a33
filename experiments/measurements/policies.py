"""The ways of computing a layer that are measured against each other, by the name that tables and options use.

A new schedule or saving policy is measured everywhere once it has a line here.
"""

from collections.abc import Sequence

from bpt_rl.ops.config import Schedule

VANILLA = "vanilla"
MEMORY_EFFICIENT = "memory_efficient"
POLICIES: dict[str, Schedule] = {
    VANILLA: Schedule("vanilla"),
    MEMORY_EFFICIENT: Schedule("memory_efficient"),
    "blockwise": Schedule("blockwise"),
    "cudnn": Schedule("cudnn"),
    "hidden": Schedule("blockwise", save="hidden"),
    "output": Schedule("blockwise", save="output"),
    "input": Schedule("blockwise", save="input"),
    "heads_1": Schedule("blockwise", save="input", heads_at_once=1),
    "heads_4": Schedule("blockwise", save="input", heads_at_once=4),
    "bfloat16": Schedule("blockwise", save="input", saved_type="bfloat16"),
    "int8": Schedule("blockwise", save="input", saved_type="int8"),
    "segments_2": Schedule("blockwise", save="input", segment_layers=2),
    "offload": Schedule("blockwise", save="input", offload=True),
    "smallest": Schedule("blockwise", save="input", saved_type="int8", heads_at_once=1, segment_layers=2),
}
# Measured only where they are named: they are for accelerators.
ONLY_NAMED = ("cudnn", "offload")
# What ratios are taken against.
BASELINES = (VANILLA, MEMORY_EFFICIENT)


def chosen(names: Sequence[str], num_heads: int = 0) -> dict[str, Schedule]:
    """Returns the policies of these names in the order of the table; nearly all where no name is given.

    Args:
        names: of policies.
        num_heads: key-value heads of the layers; what takes so many at once that they do not come out even is left out.
            0 leaves nothing out.
    """
    wanted = names or [name for name in POLICIES if name not in ONLY_NAMED]
    return {
        name: schedule
        for name, schedule in POLICIES.items()
        if name in wanted and not (num_heads and num_heads % (schedule.heads_at_once or 1))
    }
