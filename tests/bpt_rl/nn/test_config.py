"""A backbone that cannot be built is refused when it is described."""

import pytest

from bpt_rl.nn.config import BackboneConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "backbone.num_layers must be at least 1, got 0"),
        ({"width": 16, "num_heads": 3}, "num_heads must divide width, got 3 and 16"),
        ({"width": 16, "num_heads": 4, "num_kv_heads": 3}, "num_kv_heads must divide num_heads, got 3 and 4"),
        ({"window": -1}, "backbone.window must be at least 0, got -1"),
        ({"rotary_base": float("nan")}, "backbone.rotary_base must be at least 0, got nan"),
        ({"residual_dropout": 1.0}, "residual_dropout must be at least 0 and below 1, got 1.0"),
        ({"norm": "batch"}, "unknown backbone.norm 'batch'; known: rms, layer"),
        ({"activation": "tanh"}, "unknown backbone.activation 'tanh'; known: gelu, relu, silu"),
        ({"dtype": "float16"}, "unknown backbone.dtype 'float16'; known: float32, bfloat16"),
    ],
)
def test_values_that_make_no_network_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BackboneConfig(**options)
