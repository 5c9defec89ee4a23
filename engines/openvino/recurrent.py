"""Recurrent layers by the CPU plugin's own kernels, which have no place in OpenVINO's Python API.

They can be read from a file of OpenVINO's intermediate representation, where the plugin's ops go by
the opset "extension": so a graph of one op is written, read, and the op taken out of it. Their
operands are those of release 2026.4 (`PagedCausalConv1D`, `PagedSelectiveSSM`,
`PagedGatedDeltaNet` in OpenVINO's source, src/core/dev_api/openvino/op). Each updates rows of its
state in place: which row a sequence reads and which it writes is said by a table of blocks, here
its slot twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset16 as opset

from paddock.engines.protocol import BuildError

_LEAST_GATE = 1e-20  # what a division by the gate can bear; the channel forgets nothing by then
_NEVER = 2**31 - 1  # tokens between two states that are kept: only the last is


# What each takes before the step: the operands of two heads or channels, to try it with.
KERNELS: dict[str, tuple[tuple[int, ...], ...]] = {
    "PagedCausalConv1D": ((-1, 2), (-1, 2, 4), (2, 1, 4), (0,)),
    "PagedSelectiveSSM": ((2,), (-1, 2), (-1, 1, 4), (-1, 2, 3), (-1, 1, 4), (-1, 2, 3, 4)),
    "PagedGatedDeltaNet": ((-1, 1, 4), (-1, 1, 4), (-1, 2, 3), (-1, 2, 3, 4), (-1, 2), (-1, 2)),
}


@dataclass(frozen=True)
class Rows:
    """The step, as these kernels take it."""

    starts: Any  # i32 [sequences + 1]: each sequence's first token
    blocks: Any  # i32 [2 x sequences]: the slot that is read, and the one that is written
    block_starts: Any  # i32 [sequences + 1]
    past: Any  # i32 [sequences]
    interval: Any  # i32 [sequences]


def rows(starts: Any, past: Any, slots: Any) -> Rows:
    """From the step's `sequence_starts`, `past_lengths` and `sequence_slots`."""
    pair = opset.unsqueeze(slots, _i64([1]))
    blocks = opset.reshape(opset.concat([pair, pair], 1), _i64([-1]), False)
    ends = opset.gather(opset.shape_of(blocks), _i64(0), _i64(0))
    beyond = opset.add(opset.convert(ends, "i32"), _i32(1))
    block_starts = opset.range(_i32(0), beyond, _i32(2), "i32")
    interval = opset.broadcast(_i32(_NEVER), opset.shape_of(slots))
    return Rows(starts, blocks, block_starts, past, interval)


def causal_conv(x: Any, weight: Any, bias: Any | None, state: Any, step: Rows) -> Any:
    """x [tokens, channels], weight [channels, 1, width], state [slots, channels, width]."""
    if bias is None:
        bias = opset.constant(np.zeros(0, np.float32))
    return _kernel("PagedCausalConv1D", [x, state, weight, bias], step)


def selective_scan(x: Any, dt: Any, a: Any, b: Any, c: Any, state: Any, step: Rows) -> Any:
    """x [tokens, heads, size], dt [tokens, heads], a [heads], b and c [tokens, groups, n], state
    [slots, heads, size, n]."""
    return _kernel("PagedSelectiveSSM", [a, dt, b, x, c, state], step)


def real_gated_recurrence(x: Any, gate: Any, rates: Any, state: Any, step: Rows) -> Any:
    """x and gate [tokens, channels], rates [channels], state [slots, channels, 1, 1].

    The scan of Mamba with a head for each channel. That one multiplies its input by the gate too,
    so the input is divided by it first.
    """
    gate = opset.maximum(gate, opset.constant(np.float32(_LEAST_GATE)))
    one, none = opset.constant(np.float32(1)), opset.constant(np.float32(0))
    # 1 - exp(2 z) = 2 t / (t - 1) with t = tanh(z), which keeps its digits where z is small.
    t = opset.tanh(opset.multiply(gate, rates))
    share = opset.sqrt(opset.divide(opset.add(t, t), opset.subtract(t, one)))
    # 1 at the first token of a sequence without a past, whose input counts whole.
    tokens = opset.gather(opset.shape_of(x), _i64([0]), _i64(0))
    begins = opset.convert(opset.equal(step.past, _i32(0)), "f32")
    starts = opset.slice(step.starts, _i64([0]), _i64([-1]), _i64([1]))
    first = opset.scatter_elements_update(
        opset.broadcast(none, tokens), starts, begins, _i64(0), "max"
    )
    share = opset.maximum(share, opset.unsqueeze(first, _i64([1])))
    scaled = opset.unsqueeze(opset.divide(opset.multiply(share, x), gate), _i64([2]))
    ones = opset.broadcast(one, opset.concat([tokens, _i64([1, 1])], 0))
    y = selective_scan(scaled, gate, rates, ones, ones, state, step)
    return opset.squeeze(y, _i64([2]))


def gated_delta_rule(q: Any, k: Any, v: Any, gate: Any, beta: Any, state: Any, step: Rows) -> Any:
    """q and k [tokens, key heads, key size], v [tokens, heads, value size], state [slots, heads,
    value size, key size]."""
    return _kernel("PagedGatedDeltaNet", [q, k, v, state, gate, beta], step)


def check_kernels() -> None:
    """Raise `BuildError` unless this OpenVINO's CPU plugin has the kernels, and takes what is built
    here."""
    step = [("i32", [-1])] * 5
    for name, shapes in KERNELS.items():
        _read(name, [*(("f32", list(shape)) for shape in shapes), *step])


def _kernel(name: str, operands: Sequence[Any], step: Rows) -> Any:
    outputs = [
        x if isinstance(x, ov.Output) else x.output(0)
        for x in (
            *operands,
            *(step.starts, step.blocks, step.block_starts, step.past, step.interval),
        )
    ]
    types = [
        (
            output.get_element_type().to_string(),
            [d.get_length() if d.is_static else -1 for d in output.get_partial_shape()],
        )
        for output in outputs
    ]
    node = _read(name, types)
    for i, output in enumerate(outputs):
        node.input(i).replace_source_output(output)
    node.validate_and_infer_types()
    return node.output(0)


def _read(name: str, operands: Sequence[tuple[str, list[int]]]) -> Any:
    """A node of this kind whose operands are parameters of these types and shapes."""
    last = len(operands)
    ports = [
        f'<port id="{i}" precision="{_PRECISIONS[kind]}">{_dims(shape)}</port>'
        for i, (kind, shape) in enumerate(operands)
    ]
    parameters = [
        f'<layer id="{i}" name="operand {i}" type="Parameter" version="opset1"><data'
        f' shape="{",".join("?" if n < 0 else str(n) for n in shape)}" element_type="{kind}"/>'
        f'<output><port id="0" precision="{_PRECISIONS[kind]}">{_dims(shape)}</port></output>'
        "</layer>"
        for i, (kind, shape) in enumerate(operands)
    ]
    any_shape = '<port id="{}" precision="FP32"><dim>-1</dim></port>'
    edges = [
        f'<edge from-layer="{i}" from-port="0" to-layer="{last}" to-port="{i}"/>'
        for i in range(last)
    ]
    xml = (
        f'<?xml version="1.0"?><net name="{name}" version="11"><layers>{"".join(parameters)}'
        f'<layer id="{last}" name="{name}" type="{name}" version="extension"><input>'
        f"{''.join(ports)}</input><output>{any_shape.format(last)}</output></layer>"
        f'<layer id="{last + 1}" name="result" type="Result" version="opset1"><input>'
        f"{any_shape.format(0)}</input></layer></layers><edges>{''.join(edges)}"
        f'<edge from-layer="{last}" from-port="{last}" to-layer="{last + 1}" to-port="0"/>'
        "</edges></net>"
    )
    core = ov.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin, and its ops with it
    try:
        model = core.read_model(xml.encode())
    except RuntimeError as error:
        raise BuildError(
            f"openvino {ov.__version__} does not have the kernel {name} as it is used here:"
            f" {str(error).strip().splitlines()[-1]}; install the release that this Paddock is made"
            " for: pip install openvino==2026.4.*"
        ) from error
    return next(node for node in model.get_ops() if node.get_type_name() == name)


def _dims(shape: Sequence[int]) -> str:
    return "".join(f"<dim>{n}</dim>" for n in shape)


_PRECISIONS = {"f32": "FP32", "i32": "I32", "bf16": "BF16"}


def _i32(value: int) -> Any:
    return opset.constant(np.int32(value))


def _i64(value: int | list[int]) -> Any:
    return opset.constant(np.array(value, np.int64))
