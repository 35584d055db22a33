"""How much device memory a gradient step will take, counted before anything is compiled.

The arguments (parameters, AdamW's two moments, one batch) are exact. The scratch is that of the moment that takes most:
the backward pass of the layers, that of the head, or the optimiser's update. Within 15 % of what the compiled step says
(`compilation.StepMemory.peak_bytes`): `tests/bpt_rl/training/test_memory.py` holds it to that on CPUs. On GPUs the same
arrays are counted; nobody has compared them yet. With several devices it is what each of them takes: as good where each
has rows of its own, or shares the tokens and takes all heads at once; with fewer heads at once up to a third too low,
and with short interleaved rows of its own a third too high.
"""

from typing import NamedTuple

from bpt_rl.ops import token_blocks
from bpt_rl.training import _stack_memory
from bpt_rl.training.step_size import StepSize

# Numbers per token that are there all along: positions, segments, weights and losses.
PER_TOKEN = 6
# Arrays of one block of the head's backward pass: as wide as its outputs, as wide as the model.
HEAD_OUTPUTS, HEAD_WIDTH = 2, 4
# ... and of all of it, where rows are not cut: more fuses.
WHOLE_HEAD_WIDTH = 2
# Streams that the convolution over embeddings leaves for its backward pass, where rows are not cut.
CONVOLUTION = 7


class MemoryEstimate(NamedTuple):
    """Device memory of one gradient step, in bytes.

    Attributes:
        argument_bytes: parameters, the optimiser's state and one batch.
        scratch_bytes: activations, gradients, and what the backward pass keeps.
        moment: of the step that takes most scratch: `layers`, `head` or `optimiser`.
    """

    argument_bytes: int
    scratch_bytes: int
    moment: str

    @property
    def peak_bytes(self) -> int:
        """Both together."""
        return self.argument_bytes + self.scratch_bytes


def estimate(size: StepSize) -> MemoryEstimate:
    """Returns the memory of a gradient step of this size; takes next to no time."""
    batch_bytes = size.batch.num_rows * size.batch.row_steps * size.step_bytes
    stack = _stack_memory.of_stack(size)
    beside = 4 * PER_TOKEN * size.tokens_at_once + _embedding(size) + 4 * size.num_parameters
    # The sums of the gradients beside those of a part, and the batch cut in parts.
    if size.batch.accumulate > 1:
        beside += 4 * size.num_parameters + batch_bytes
    moments = {
        "layers": stack.most + beside,
        "head": stack.kept + 2 * stack.output + _head(size) + beside,
        # Clipping needs all gradients before the first update.
        "optimiser": 2 * 4 * size.num_parameters,
    }
    moment = max(moments, key=lambda name: moments[name])
    return MemoryEstimate(3 * 4 * size.num_parameters + batch_bytes, moments[moment], moment)


def _embedding(size: StepSize) -> int:
    """Of the embedding where rows are not cut, and automatic differentiation keeps what it likes."""
    width = size.backbone.width
    widest = size.tokens_per_step * max(size.num_features, width)
    if _block_steps(size, widest, size.tokens_per_step) < size.batch.row_steps:
        return 0
    numbers = size.num_features + (CONVOLUTION * width if size.convolution_taps else 0)
    return 4 * size.tokens_at_once * numbers


def _head(size: StepSize) -> int:
    """Of a block of head and loss, beside the stack's output and its gradient."""
    width = size.backbone.width
    block_steps = _block_steps(size, max(width, size.num_outputs), tokens_per_step=1)
    steps = min(block_steps, size.batch.row_steps)
    streams = WHOLE_HEAD_WIDTH if block_steps >= size.batch.row_steps else HEAD_WIDTH
    return 4 * size.rows_at_once * steps * (HEAD_OUTPUTS * size.num_outputs + streams * width)


def _block_steps(size: StepSize, widest: int, tokens_per_step: int) -> int:
    return token_blocks.choose_steps(
        num_rows=size.rows_at_once,
        num_steps=size.batch.row_steps,
        tokens_per_step=tokens_per_step,
        widest=widest,
    )
