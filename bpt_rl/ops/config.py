"""How attention is computed: a schedule is a value, not a model."""

from dataclasses import dataclass

SCHEDULES = ("vanilla", "memory_efficient", "blockwise", "cudnn")
SAVED = ("auto", "hidden", "output", "input")
SAVED_TYPES = ("compute", "bfloat16", "int8")


@dataclass(unsafe_hash=True)
class Schedule:
    """How attention and the feed-forward are computed; never what they compute.

    All but the name and the blocks is for the blockwise backward pass; the others keep what JAX keeps.

    Attributes:
        name: `vanilla` (the oracle: all scores at once), `memory_efficient` (Rabe & Staats, arXiv:2112.05682:
            chunked attention, whole feed-forward), `blockwise` (BPT, arXiv:2305.19370), or `cudnn` (the same with
            attention by cuDNN's kernels: NVIDIA GPUs, bfloat16, no attention dropout; blockwise where it cannot).
        query_block: queries per block, in tokens; 0 chooses for the device.
        key_block: keys per block, in tokens; 0 chooses for the device.
        save: what the blockwise backward pass keeps of a layer: its `input` only, or also the attention `output` and
            log-sum-exp (a fifth less time, one more stream of memory per layer), or beside these the `hidden` units
            of the feed-forward (another tenth less, one stream more and those units). `auto` keeps the output where
            that of all layers takes at most 64 MiB, and hidden units where they take at most 32 MiB; in rows so short
            that a CPU takes whole ones at a time, and where other options ask for less memory, fewer of them.
        saved_type: how blockwise layers' inputs are kept: in the `compute` type, as `bfloat16`, or as `int8` with
            stochastic rounding (Mesa, arXiv:2111.11124). The forward pass is exact in each case.
        heads_at_once: key-value heads whose keys and values exist at a time, a divisor of them all; 0 takes all. Fewer
            take less memory; in bfloat16 the gradient is rounded once for every group.
        segment_layers: layers whose inputs exist at a time: the rest are computed again from the first of each such
            segment (nested rematerialisation); 0 takes all layers.
        devices: how many share a gradient step: the rows of a batch where these come out even (data parallelism), else
            the tokens of every row (context parallelism; each then holds keys and values of whole rows, one layer's at
            a time, and all else of its own tokens only).
        offload: keep the saved inputs in the host's memory. For accelerators; a CPU gains nothing by it.
    """

    name: str = "blockwise"
    query_block: int = 0
    key_block: int = 0
    save: str = "auto"
    saved_type: str = "compute"
    heads_at_once: int = 0
    segment_layers: int = 0
    offload: bool = False
    devices: int = 1

    def __post_init__(self) -> None:
        """Refuses unknown names and negative sizes."""
        for name, known in (("name", SCHEDULES), ("save", SAVED), ("saved_type", SAVED_TYPES)):
            value = getattr(self, name)
            if value not in known:
                what = "schedule" if name == "name" else name
                raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")
        if self.query_block < 0 or self.key_block < 0:
            raise ValueError(
                f"block sizes are tokens, at least 1 (0 = automatic), got query_block={self.query_block}, "
                f"key_block={self.key_block}"
            )
        if self.devices < 1:
            raise ValueError(f"devices must be at least 1, got {self.devices}")
        if self.devices > 1 and self.name not in ("blockwise", "cudnn"):
            raise ValueError(f"devices={self.devices} needs the blockwise schedule, got {self.name!r}")
        for name in ("heads_at_once", "segment_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 1 (0 = all), got {getattr(self, name)}")
