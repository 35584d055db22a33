"""How attention is computed: a schedule is a value, not a model."""

from dataclasses import dataclass

SCHEDULES = ("vanilla", "memory_efficient", "blockwise")
SAVED = ("input", "output")


@dataclass(unsafe_hash=True)
class Schedule:
    """How attention and the feed-forward are computed; never what they compute.

    Attributes:
        name: `vanilla` (the oracle: all scores at once), `memory_efficient` (Rabe & Staats, arXiv:2112.05682:
            chunked attention, whole feed-forward) or `blockwise` (BPT, arXiv:2305.19370).
        query_block: queries per block, in tokens; 0 chooses for the device.
        key_block: keys per block, in tokens; 0 chooses for the device.
        save: what the blockwise backward pass keeps of a layer: its `input` only, or also the attention `output`
            and log-sum-exp (less time, one more stream of memory).
    """

    name: str = "blockwise"
    query_block: int = 0
    key_block: int = 0
    save: str = "input"

    def __post_init__(self) -> None:
        """Refuses unknown names and negative sizes."""
        if self.name not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.name!r}; known: {', '.join(SCHEDULES)}")
        if self.save not in SAVED:
            raise ValueError(f"unknown save {self.save!r}; known: {', '.join(SAVED)}")
        if self.query_block < 0 or self.key_block < 0:
            raise ValueError(
                f"block sizes are tokens, at least 1 (0 = automatic), got query_block={self.query_block}, "
                f"key_block={self.key_block}"
            )
