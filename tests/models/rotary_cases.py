"""Rotary settings of checkpoints that people run, as their config.json has them."""

from dataclasses import dataclass
from typing import Any

Fields = dict[str, Any]

# microsoft/Phi-3-mini-128k-instruct
_PHI3_LONG = [
    *(1.0700000524520874, 1.1200000047683716, 1.149999976158142, 1.4199999570846558),
    *(1.5699999332427979, 1.7999999523162842, 2.129999876022339, 2.129999876022339),
    *(3.009999990463257, 5.910000324249268, 6.950000286102295, 9.070000648498535),
    *(9.930000305175781, 10.710000038146973, 11.130000114440918, 14.609999656677246),
    *(15.409998893737793, 19.809999465942383, 37.279998779296875, 38.279998779296875),
    *(38.599998474121094, 40.12000274658203, 46.20000457763672, 50.940006256103516),
    *(53.66000747680664, 54.9373893737793, 56.89738845825195, 57.28738784790039),
    *(59.98738479614258, 60.86738586425781, 60.887386322021484, 61.71739196777344),
    *(62.91739273071289, 62.957393646240234, 63.41739273071289, 63.8173942565918),
    *(63.83739471435547, 63.897396087646484, 63.93739700317383, 64.06739807128906),
    *(64.11434936523438, 64.12435150146484, 64.15435028076172, 64.19435119628906),
    *(64.24435424804688, 64.57435607910156, 64.69000244140625, 64.76000213623047),
]
_PHI3_SHORT = [1.1, 1.1, 1.1, 1.3, 1.35, 1.35, 1.4, 1.55, *[2.0] * 17, *[2.05] * 6, *[2.1] * 17]


@dataclass(frozen=True)
class RotaryCase:
    """`fields` are those of a config.json of the Llama family; `length` is the longest context."""

    head_dim: int
    fields: Fields
    length: int


def _case(head_dim: int, positions: int, length: int | None = None, **fields: Any) -> RotaryCase:
    fields |= {"max_position_embeddings": positions}
    return RotaryCase(head_dim, fields, length or positions)


_LLAMA3: Fields = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_YARN: Fields = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
_PHI3: Fields = {
    "type": "longrope",
    "long_factor": _PHI3_LONG,
    "short_factor": _PHI3_SHORT,
    "original_max_position_embeddings": 4096,
}

ROTARY_CASES: dict[str, RotaryCase] = {
    "llama-2-7b": _case(128, 4096),
    "llama-3.1-8b": _case(
        128, 131072, rope_theta=500000.0, rope_scaling={"factor": 8.0, **_LLAMA3}
    ),
    "llama-3.2-1b": _case(
        64, 131072, rope_theta=500000.0, rope_scaling={"factor": 32.0, **_LLAMA3}
    ),
    "qwen2.5-7b": _case(128, 32768, rope_theta=1000000.0),
    "qwen2.5-7b-yarn": _case(128, 131072, rope_theta=1000000.0, rope_scaling=_YARN),
    "qwen3-8b-yarn": _case(
        128,
        131072,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1000000,
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    ),
    "smollm3-3b": _case(128, 65536, rope_theta=5000000.0),
    "deepseek-coder-6.7b": _case(
        128, 16384, rope_theta=100000, rope_scaling={"factor": 4.0, "type": "linear"}
    ),
    "dynamic-within": _case(128, 4096, 4096, rope_scaling={"type": "dynamic", "factor": 2.0}),
    "dynamic-beyond": _case(128, 4096, 10000, rope_scaling={"type": "dynamic", "factor": 2.0}),
    "phi-3-mini-128k": _case(96, 131072, rope_theta=10000.0, rope_scaling=_PHI3),
    "phi-3-mini-128k-short": _case(96, 131072, 4096, rope_theta=10000.0, rope_scaling=_PHI3),
    "gpt-oss-yarn": _case(
        64,
        131072,
        rope_theta=150000,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    ),
}
