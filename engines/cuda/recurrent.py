"""How ops that carry a state along each sequence become kernels."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from paddock.engines.cuda.device import Instruction
from paddock.engines.cuda.launching import grid_of
from paddock.engines.cuda_plugin import TYPE
from paddock.engines.protocol import BuildError
from paddock.graph import ops as F

if TYPE_CHECKING:
    from paddock.engines.cuda.gpu import GPU

LARGEST = 256
"""Numbers of a row of a state that a warp holds in registers."""


def _function(gpu: GPU, i: Instruction, name: str, state: int) -> Any:
    types = {"TYPE": TYPE[i.types[0].dtype], "STATE": TYPE[i.types[state].dtype]}
    return gpu.function("recurrent", name, **types)


def _check(i: Instruction, size: int) -> None:
    if size > LARGEST:
        raise BuildError(
            f"{i.name}: a row of the state has {size} numbers, the cuda engine's kernel holds"
            f" {LARGEST} at most; choose another engine"
        )


def causal_conv(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.CausalConv)
    x, weight, state, starts, past, slots, *bias = i.inputs
    tokens, channels = x.shape
    sequences, width = slots.shape[0], weight.shape[2]
    gpu.launch(
        _function(gpu, i, "causal_conv", 2),
        grid_of(gpu, tokens * channels),
        256,
        x,
        weight,
        bias[0] if bias else None,
        state,
        i.outputs[0],
        starts,
        past,
        slots,
        *(np.int32(n) for n in (sequences, tokens, channels, width)),
    )
    gpu.launch(
        _function(gpu, i, "keep_inputs", 2),
        (ceil(channels / 256), sequences),
        256,
        x,
        state,
        starts,
        past,
        slots,
        np.int32(channels),
        np.int32(width),
    )


def selective_scan(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.SelectiveScan)
    x, dt, a, b, c, d, state, starts, past, slots = i.inputs
    heads, size = x.shape[1:]
    groups, n = b.shape[1:]
    _check(i, n)
    gpu.launch(
        _function(gpu, i, "selective_scan", 6),
        (ceil(heads * size / 4), slots.shape[0]),
        128,
        *(x, dt, a, b, c, d, state, i.outputs[0], starts, past, slots),
        *(np.int32(m) for m in (heads, size, groups, n, a.ndim)),
    )


def real_gated_recurrence(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.RealGatedRecurrence)
    x, gate, rates, state, starts, past, slots = i.inputs
    channels = x.shape[1]
    gpu.launch(
        _function(gpu, i, "real_gated_recurrence", 3),
        (ceil(channels / 128), slots.shape[0]),
        128,
        *(x, gate, rates, state, i.outputs[0], starts, past, slots),
        np.int32(channels),
    )


def gated_delta_rule(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.GatedDeltaRule)
    q, k, v, gate, beta, state, starts, past, slots = i.inputs
    heads, value_size = v.shape[1:]
    key_heads, key_size = q.shape[1:]
    _check(i, key_size)
    gpu.launch(
        _function(gpu, i, "gated_delta_rule", 5),
        (ceil(heads * value_size / 4), slots.shape[0]),
        128,
        *(q, k, v, gate, beta, state, i.outputs[0], starts, past, slots),
        *(np.int32(m) for m in (heads, value_size, key_heads, key_size)),
    )
