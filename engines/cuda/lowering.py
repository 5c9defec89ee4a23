"""How each op becomes kernels and library calls: one function an op, and its scratch memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from paddock.engines import cuda_choosing, cuda_plugin
from paddock.engines.choosing import ChooseTokens, FillIn
from paddock.engines.cuda.attention import (
    attention,
    attention_scratch,
    bidirectional,
    cross,
    projected,
    projected_scratch,
)
from paddock.engines.cuda.cublaslt import Shape
from paddock.engines.cuda.device import Instruction, StoredWeight
from paddock.engines.cuda.experts import (
    grouped_linear,
    grouped_linear_scratch,
    route,
    weighted_sum,
)
from paddock.engines.cuda.fused import FusedLinear, Gated, ProjectedAttention
from paddock.engines.cuda.launching import (
    MANY_ROWS,
    NUMBER,
    PROCESSORS,
    Emit,
    Room,
    Sized,
    block_of,
    grid_of,
    held_rows,
)
from paddock.engines.cuda.recurrent import (
    causal_conv,
    gated_delta_rule,
    real_gated_recurrence,
    selective_scan,
)
from paddock.engines.cuda.streamed import emit_streamed, streams
from paddock.engines.cuda_plugin import TYPE
from paddock.engines.protocol import BuildError
from paddock.graph import DType, Op
from paddock.graph import ops as F
from paddock.graph.tensor import AREA_STARTS, TensorType, fixed

if TYPE_CHECKING:
    from paddock.engines.cuda.gpu import GPU

# Rows up to which a product is one pass over the weight by a kernel of ours, by the weight's form:
# beyond it cuBLASLt's tensor cores are faster, or, for integers, the dense weight is made first.
# Rows up to which cuBLASLt multiplies e4m3 without its scales: with a scale for each row it has one
# algorithm, made for large products, and takes up to twice as long.
UNSCALED_ROWS = 384
FEW_ROWS = {"dense": 1, "f8": 1, "i8": 4, "i4": 4}
FORMATS = {"f8": 1, "i8": 2, "i4": 3}
_BYTE, _FLOAT = np.dtype(np.uint8), np.dtype(np.float32)


def scratch(sized: Sized) -> list[Room]:
    """The memory that an op needs beside operands and results."""
    need = SCRATCH.get(type(sized.op))
    return [] if need is None else need(sized)


def emit(gpu: GPU, instruction: Instruction) -> None:
    """Enqueue one instruction; nothing where it makes nothing, as of a source that is not there."""
    if instruction.outputs and all(y.size == 0 for y in instruction.outputs):
        return
    own = TABLE.get(type(instruction.op))
    if own is None:
        own = instruction.op.lowerings.get("cuda", _own_source)
    own(gpu, instruction)


def _own_source(gpu: GPU, i: Instruction) -> None:
    """A plugin's kernel. It begins when all before it has ended, which it need not ask for."""
    whole = [x for x in i.inputs if not isinstance(x, StoredWeight)]
    if len(whole) < len(i.inputs):
        raise BuildError(f"{i.name}: a plugin's operands must not be quantized weights")
    sized = [TensorType(t.dtype, tuple(a.shape)) for t, a in zip(i.types, i.inputs, strict=True)]
    addresses = [a.data.ptr for a in (*whole, *i.outputs)]
    cuda_plugin.launch(i.op, sized, addresses, gpu.stream.ptr)


def lowers(op: Op) -> bool:
    """Whether the table below has the op, a pass or the program takes care of it, or it has CUDA
    source of its own."""
    if isinstance(op, F.Input) and AREA_STARTS in op.shape:
        return False  # how many there are is not among a bucket's sizes
    kinds = F.Source | F.Fill | F.Dequantize | F.Linear | F.Reshape
    return type(op) in TABLE or isinstance(op, kinds) or op.cuda_source is not None


# --- products -------------------------------------------------------------------------------------


def _sized(instruction: Instruction) -> Sized:
    weight = instruction.inputs[1]
    stored = weight if isinstance(weight, StoredWeight) else None
    types = tuple(
        TensorType(t.dtype, tuple(a.shape)) if not isinstance(a, StoredWeight) else t
        for t, a in zip(instruction.types, instruction.inputs, strict=True)
    )
    singles = 0 if instruction.bucket is None else instruction.bucket.singles
    return Sized(instruction.op, types, stored, singles)


def in_few_rows(sized: Sized) -> bool:
    """Whether `few_rows.cu` takes the product."""
    x, weight = sized.types[:2]
    rows, inputs, outputs = x.size(0), x.size(1), weight.size(0)
    form = "dense" if sized.weight is None else sized.weight.kind
    if rows > FEW_ROWS[form] or x.dtype not in (DType.F16, DType.BF16):
        return False
    if outputs < 2 or inputs % 8 or _padded_rows(rows) * inputs * 2 > 200 * 1024:
        return False
    stored = sized.weight
    if stored is None:
        return weight.dtype is x.dtype
    per = {"f8": 16, "i8": 16, "i4": 32}[stored.kind]
    if inputs % per:
        return False
    return stored.kind == "f8" or inputs // stored.scales.shape[1] % per == 0


def _padded_rows(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


def _linear_scratch(sized: Sized) -> list[Room]:
    """In this order, if needed: what goes in, its scales, the dense weight, the product itself."""
    linear = sized.op
    assert isinstance(linear, FusedLinear)
    if in_few_rows(sized):
        return []
    x, weight = sized.types[:2]
    rows, inputs, outputs = x.size(0), x.size(1), weight.size(0)
    rooms: list[Room] = []
    stored = sized.weight
    if stored is not None and stored.kind == "f8":
        rooms += [((rows, inputs), _BYTE), ((rows,), _FLOAT)]
    else:
        if linear.norm_eps is not None:
            rooms.append(((rows, inputs), x.dtype.numpy))
        if stored is not None:
            rooms.append(((outputs, inputs), x.dtype.numpy))
    if linear.gate is not None or _is_unscaled(sized):
        rooms.append(((rows, outputs), x.dtype.numpy))
    return rooms


def _is_unscaled(sized: Sized) -> bool:
    """Whether the product is made without its scales: bf16 holds it whatever they are, f16 not."""
    x, stored = sized.types[0], sized.weight
    fp8 = stored is not None and stored.kind == "f8"
    return fp8 and x.dtype is DType.BF16 and x.size(0) <= UNSCALED_ROWS


def _linear(gpu: GPU, i: Instruction) -> None:
    linear, sized = i.op, _sized(i)
    assert isinstance(linear, FusedLinear)
    x, weight, *rest = i.inputs
    norm = rest.pop(0) if linear.norm_eps is not None else None
    bias = rest.pop(0) if linear.bias else None
    residual = rest.pop(0) if linear.residual else None
    (y,) = i.outputs
    dtype = sized.types[0].dtype
    rows, inputs = x.shape
    outputs = weight.shape[0]
    eps = linear.norm_eps or 0.0
    if streams(sized, gpu.capability):
        emit_streamed(gpu, i, sized, norm, bias, residual)
        return
    if rows == 1 and in_few_rows(sized) and _in_one_row(gpu, i, sized, norm, bias, residual):
        return
    if in_few_rows(sized):
        stored = sized.weight
        made = outputs // 2 if linear.gate is not None else outputs
        warps = made if linear.gate is not None else ceil(outputs / 2)
        padded, normed = _padded_rows(rows), norm is not None
        # Measured on an H200: a large product has warps to spare, a small one needs more in flight.
        threads = 512 if normed and linear.gate is None else 256
        gpu.launch(
            gpu.function(
                "few_rows",
                "few_rows",
                TYPE=TYPE[dtype],
                ROWS=padded,
                FORMAT=0 if stored is None else FORMATS[stored.kind],
                NORM=int(normed),
                AHEAD=2 if linear.gate is not None else 4,
                THREADS=threads,
            ),
            (ceil(warps / (threads // 32)),),
            threads,
            x,
            weight if stored is None else stored.values,
            None if stored is None else stored.scales,
            norm,
            np.float32(eps),
            bias,
            residual,
            y,
            np.int32(rows),
            np.int32(outputs),
            np.int32(inputs),
            np.int32(1 if stored is None else stored.scales.size // outputs),
            np.int32(-1 if linear.gate is None else NUMBER[linear.gate]),
            np.int32(linear.dtype is DType.F32 and dtype is not DType.F32),
            shared=padded * inputs * 2 if normed else 0,
        )
        return
    rooms = list(i.scratch)
    result = DType.F32 if linear.dtype is DType.F32 else dtype
    target = y
    unscaled = _is_unscaled(sized)
    if linear.gate is not None or unscaled:
        target, result = rooms[-1], dtype
    shape = Shape(
        rows,
        outputs,
        inputs,
        dtype,
        result,
        bias=bias is not None and not unscaled,
        residual=residual is not None and not unscaled,
        unscaled=unscaled,
        fp8=sized.weight is not None and sized.weight.kind == "f8",
    )
    if shape.fp8:
        assert sized.weight is not None
        if i.takes_e4m3:
            rooms[:2] = e4m3_in(x)
        else:
            _rounded(gpu, x, norm, eps, dtype, *rooms[:2])
        gpu.matmul(
            shape,
            rooms[0],
            sized.weight.values,
            target,
            bias=bias,
            residual=residual,
            x_scales=rooms[1],
            weight_scales=sized.weight.scales,
        )
        if i.gives_e4m3:
            _gate_to_fp8(gpu, i, target)
            return
        if unscaled:
            gpu.launch(
                gpu.function("quantize", "apply_scales", TYPE=TYPE[dtype], TURNS=1),
                (ceil(y.shape[1] / 1024), rows),
                128,
                target,
                rooms[1],
                sized.weight.scales,
                bias,
                residual,
                y,
                np.int32(outputs),
                np.int32(-1 if linear.gate is None else NUMBER[linear.gate]),
                np.int32(linear.dtype is DType.F32),
            )
            return
    else:
        if norm is not None:
            _rms(gpu, x, norm, rooms[0], dtype, eps, dtype)
            x = rooms.pop(0)
        if sized.weight is not None:
            dequantize(gpu, sized.weight, rooms[0])
            weight = rooms.pop(0)
        gpu.matmul(shape, x, weight, target, bias=bias, residual=residual)
    if linear.gate is not None:
        _gate(gpu, target, y, dtype, linear.gate)


def e4m3_in(x: Any) -> list[Any]:
    """Where e4m3 [rows, columns] and their f32 scales [rows] lie in an array of two bytes each."""
    flat = x.reshape(-1).view(np.uint8)
    rows, columns = x.shape
    values, scales = flat[: x.size], flat[x.size : x.size + 4 * rows]
    return [values.reshape(rows, columns), scales.view(np.float32)]


def gives_e4m3(sized: Sized) -> bool:
    """Whether a product can round its gated result for the products in fp8 that read it."""
    linear = sized.op
    if not isinstance(linear, FusedLinear) or linear.gate is None:
        return False
    return linear.dtype is None and not linear.residual and _rounds(sized)


def takes_e4m3(sized: Sized) -> bool:
    """Whether a product can have its first operand rounded already."""
    linear = sized.op
    return isinstance(linear, FusedLinear) and linear.norm_eps is None and _rounds(sized)


def _rounds(sized: Sized) -> bool:
    """Whether the product is one of e4m3 whose rows are many: of few, columns are spread, too."""
    fp8 = sized.weight is not None and sized.weight.kind == "f8"
    return fp8 and sized.types[0].size(0) > max(MANY_ROWS, UNSCALED_ROWS)


def _rounded(
    gpu: GPU, x: Any, norm: Any, eps: float, dtype: DType, values: Any, scales: Any
) -> None:
    """x, or norm(x), as e4m3 (as u8) with an f32 scale for each row."""
    rows, columns = x.shape
    threads, turns = held_rows(rows, columns)
    name = "rows_to_fp8" if norm is None else "rms_norm_to_fp8"
    gpu.launch(
        gpu.function("quantize", name, TYPE=TYPE[dtype], TURNS=turns),
        (rows,),
        threads,
        *([x] if norm is None else [x, norm]),
        values,
        scales,
        np.int32(columns),
        *([] if norm is None else [np.float32(eps)]),
    )


def _gate_to_fp8(gpu: GPU, i: Instruction, product: Any) -> None:
    """A product that is gated and rounded into the result's place."""
    linear = i.op
    assert isinstance(linear, FusedLinear)
    assert linear.gate is not None
    (y,) = i.outputs
    rows, columns = y.shape
    threads, turns = held_rows(rows, columns)
    dtype, gate = i.types[0].dtype, NUMBER[linear.gate]
    gpu.launch(
        gpu.function("quantize", "gated_to_fp8", TYPE=TYPE[dtype], TURNS=turns, GATE=gate),
        (rows,),
        threads,
        product,
        *e4m3_in(y),
        np.int32(columns),
    )


def _in_one_row(
    gpu: GPU, i: Instruction, sized: Sized, norm: Any, bias: Any, residual: Any
) -> bool:
    """Enqueue `one_row.cu` where it takes the product; says whether it did."""
    linear, stored, dtype = sized.op, sized.weight, sized.types[0].dtype
    assert isinstance(linear, FusedLinear)
    if stored is not None and stored.kind != "f8":
        return False
    x, weight = i.inputs[:2]
    outputs, inputs = weight.shape
    pieces = ceil(inputs / (8 if stored is None else 16) / 256)
    made = outputs // 2 if linear.gate is not None else outputs
    # More than 8, or 4 of e4m3, do not fit into registers; few of e4m3 are too little between sums.
    if not (1 <= pieces <= 8 if stored is None else 3 <= pieces <= 4):
        return False
    blocks = min(2 * gpu.processors, made)
    lines = ceil(made / blocks) * (outputs // made)
    gpu.launch(
        gpu.function(
            "one_row",
            "one_row",
            TYPE=TYPE[dtype],
            FORMAT=0 if stored is None else FORMATS[stored.kind],
            PIECES=pieces,
            NORM=int(norm is not None),
        ),
        (blocks,),
        256,
        x,
        weight if stored is None else stored.values,
        None if stored is None else stored.scales,
        norm,
        np.float32(linear.norm_eps or 0.0),
        bias,
        residual,
        i.outputs[0],
        np.int32(outputs),
        np.int32(inputs),
        np.int32(-1 if linear.gate is None else NUMBER[linear.gate]),
        np.int32(linear.dtype is DType.F32 and dtype is not DType.F32),
        shared=lines * 8 * 4,
    )
    return True


def dequantize(gpu: GPU, stored: StoredWeight, out: Any) -> None:
    """i8 or i4 to the dense matrix `out`."""
    rows, columns = stored.shape
    gpu.launch(
        gpu.function("quantize", "dequantize", TYPE=TYPE[stored.dtype], TURNS=1),
        (min(ceil(rows * columns / 512), 32 * gpu.processors),),
        256,
        stored.values,
        stored.scales,
        out,
        np.int64(rows),
        np.int64(columns),
        np.int64(stored.scales.shape[1]),
        np.int32(4 if stored.kind == "i4" else 8),
    )


def to_fp8(gpu: GPU, weight: Any, dtype: DType, values: Any, scales: Any) -> None:
    """A dense matrix to e4m3 (as u8) with an f32 scale for each row."""
    _rounded(gpu, weight, None, 0.0, dtype, values, scales)


# --- the rest -------------------------------------------------------------------------------------


def _rms(
    gpu: GPU, x: Any, weight: Any, y: Any, dtype: DType, eps: float, weight_dtype: DType
) -> None:
    size = x.shape[-1]
    gpu.launch(
        gpu.function("norm", "rms_norm", TYPE=TYPE[dtype], WEIGHT=TYPE[weight_dtype]),
        (x.size // size,),
        block_of(size),
        x,
        weight,
        y,
        np.int32(size),
        np.float32(eps),
        np.int32(size % 8 == 0 and dtype is weight_dtype),
    )


def _gate(gpu: GPU, x: Any, y: Any, dtype: DType, kind: str) -> None:
    inner = y.shape[-1]
    rows = y.size // inner
    gpu.launch(
        gpu.function("elementwise", "gated", TYPE=TYPE[dtype]),
        (max(1, min(ceil(rows * inner / 8 / 256), 16 * gpu.processors)),),
        256,
        x,
        y,
        np.int64(rows),
        np.int64(inner),
        np.int32(NUMBER[kind]),
        np.int32(inner % 8 == 0),
    )


def _rms_norm(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.RMSNorm)
    x, weight = i.types
    _rms(gpu, i.inputs[0], i.inputs[1], i.outputs[0], x.dtype, i.op.eps, weight.dtype)


def _layer_norm(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.LayerNorm)
    x, weight, *bias = i.inputs
    size = x.shape[-1]
    gpu.launch(
        gpu.function(
            "norm", "layer_norm", TYPE=TYPE[i.types[0].dtype], WEIGHT=TYPE[i.types[1].dtype]
        ),
        (x.size // size,),
        block_of(size),
        x,
        weight,
        bias[0] if bias else None,
        i.outputs[0],
        np.int32(size),
        np.float32(i.op.eps),
    )


def _gated(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, Gated)
    _gate(gpu, i.inputs[0], i.outputs[0], i.types[0].dtype, i.op.kind)


def _combine(multiply: bool) -> Emit:
    def emit_one(gpu: GPU, i: Instruction) -> None:
        x, y = i.inputs
        dtype = i.types[0].dtype
        gpu.launch(
            gpu.function("elementwise", "combine_integers", TYPE=0)
            if dtype is DType.I64
            else gpu.function("elementwise", "combine", TYPE=TYPE[dtype]),
            grid_of(gpu, x.size),
            256,
            x,
            y,
            i.outputs[0],
            np.int64(x.size),
            np.int64(y.size),
            np.int32(multiply),
        )

    return emit_one


def _scale(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.Scale)
    x = i.inputs[0]
    gpu.launch(
        gpu.function("elementwise", "scale", TYPE=TYPE[i.types[0].dtype]),
        grid_of(gpu, x.size),
        256,
        x,
        i.outputs[0],
        np.int64(x.size),
        np.float32(i.op.factor),
    )


def _clamp(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.Clamp)
    x = i.inputs[0]
    gpu.launch(
        gpu.function("elementwise", "clamp", TYPE=TYPE[i.types[0].dtype]),
        grid_of(gpu, x.size),
        256,
        x,
        i.outputs[0],
        np.int64(x.size),
        np.float32(i.op.low),
        np.float32(i.op.high),
    )


def _activation(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.Activation)
    x = i.inputs[0]
    gpu.launch(
        gpu.function("elementwise", "activation", TYPE=TYPE[i.types[0].dtype]),
        grid_of(gpu, x.size),
        256,
        x,
        i.outputs[0],
        np.int64(x.size),
        np.int32(NUMBER[i.op.kind]),
    )


def _cast(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.Cast)
    x, source, target = i.inputs[0], i.types[0].dtype, i.op.dtype
    name, narrow = ("to_f32", source) if target is DType.F32 else ("from_f32", target)
    gpu.launch(
        gpu.function("elementwise", name, TYPE=TYPE[narrow]),
        grid_of(gpu, x.size),
        256,
        x,
        i.outputs[0],
        np.int64(x.size),
    )


def _columns(gpu: GPU, x: Any, y: Any, size: int, x_from: int, y_to: int) -> None:
    """Copy `size` columns of the last axis."""
    rows, item = x.size // x.shape[-1], x.itemsize
    gpu.launch(
        gpu.function("elementwise", "copy_columns", TYPE=0),
        grid_of(gpu, rows * size * item),
        256,
        x,
        y,
        *(
            np.int64(n)
            for n in (
                rows,
                size * item,
                x.shape[-1] * item,
                x_from * item,
                y.shape[-1] * item,
                y_to * item,
            )
        ),
    )


def _split(gpu: GPU, i: Instruction) -> None:
    at = 0
    for y in i.outputs:
        _columns(gpu, i.inputs[0], y, y.shape[-1], at, 0)
        at += y.shape[-1]


def _concat(gpu: GPU, i: Instruction) -> None:
    at = 0
    for x in i.inputs:
        _columns(gpu, x, i.outputs[0], x.shape[-1], 0, at)
        at += x.shape[-1]


def _gather(gpu: GPU, i: Instruction) -> None:
    x, rows = i.inputs
    (y,) = i.outputs
    nbytes = prod(x.shape[1:]) * x.itemsize
    gpu.launch(
        gpu.function("elementwise", "gather", TYPE=0),
        (rows.shape[0],),
        block_of(nbytes),
        x,
        rows,
        y,
        np.int64(nbytes),
        np.int64(x.shape[0]),
        np.int32(i.types[1].dtype is DType.I64),
        np.int32(16 if nbytes % 16 == 0 else 2),
    )


def _rotary_angles(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.RotaryAngles)
    positions = i.inputs[0]
    pairs = len(i.op.frequencies)
    gpu.launch(
        gpu.function("elementwise", "rotary_angles", TYPE=0),
        grid_of(gpu, positions.size * pairs),
        256,
        positions,
        gpu.constant(i.op.frequencies),
        *i.outputs,
        np.int32(positions.size),
        np.int32(pairs),
        np.float32(i.op.factor),
        np.int32(i.types[0].dtype is DType.I64),
    )


def _rotary(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.Rotary)
    x, cos, sin = i.inputs
    tokens, heads, size = x.shape
    gpu.launch(
        gpu.function("elementwise", "rotary", TYPE=TYPE[i.types[0].dtype]),
        (tokens,),
        256,
        x,
        cos,
        sin,
        i.outputs[0],
        np.int32(heads),
        np.int32(size),
        np.int32(cos.shape[1]),
        np.int32(i.op.interleaved),
    )


def _sequence_mean(gpu: GPU, i: Instruction) -> None:
    x, starts = i.inputs
    gpu.launch(
        gpu.function("sequence_mean", "sequence_mean", TYPE=TYPE[i.types[0].dtype]),
        (ceil(x.shape[1] / 256), starts.shape[0] - 1),
        256,
        x,
        i.outputs[0],
        starts,
        np.int32(x.shape[1]),
    )


def _replace_rows(gpu: GPU, i: Instruction) -> None:
    x, y, rows = i.inputs
    nbytes = prod(x.shape[1:]) * x.itemsize
    gpu.launch(
        gpu.function("elementwise", "replace_rows", TYPE=0),
        (rows.shape[0],),
        block_of(nbytes),
        x,
        y,
        rows,
        i.outputs[0],
        np.int64(nbytes),
        np.int64(y.shape[0]),
        np.int32(i.types[2].dtype is DType.I64),
    )


def _head_linear(gpu: GPU, i: Instruction) -> None:
    assert isinstance(i.op, F.HeadLinear)
    x, weight = i.inputs
    heads, rows, columns = weight.shape
    turned, tokens = i.op.turned, x.shape[0]
    across = ceil(columns / 128) if turned else ceil(i.op.rows / 8)
    gpu.launch(
        gpu.function(
            "head_linear",
            "head_linear_turned" if turned else "head_linear",
            TYPE=TYPE[i.types[0].dtype],
        ),
        (across, heads, ceil(tokens / 8)),
        128 if turned else 256,
        x,
        weight,
        i.outputs[0],
        *(np.int32(n) for n in (tokens, heads, rows, columns, i.op.first, i.op.rows)),
        shared=i.op.rows * 8 * 4 if turned else 0,
    )


def _choose(gpu: GPU, i: Instruction) -> None:
    logits, *choices, last_tokens = i.inputs
    launch = partial(_sample, gpu)
    cuda_choosing.choose(
        launch, PROCESSORS, logits.shape, logits, gpu.best, choices, i.outputs[0], last_tokens
    )


def _fill_in(gpu: GPU, i: Instruction) -> None:
    token_ids, last_tokens = i.inputs
    cuda_choosing.fill_in(partial(_sample, gpu), token_ids.size, token_ids, last_tokens)


def _sample(gpu: GPU, kernel: str, grid: tuple[int, ...], block: int, *arguments: Any) -> None:
    gpu.launch(gpu.function(cuda_choosing.SOURCE, kernel, TYPE=0), grid, block, *arguments)


# --- among ranks ----------------------------------------------------------------------------------


def _all_reduce(gpu: GPU, i: Instruction) -> None:
    gpu.ranks.all_reduce(i.inputs[0], i.outputs[0])


def _broadcast(gpu: GPU, i: Instruction) -> None:
    gpu.ranks.broadcast(i.inputs[0], i.outputs[0])


def _send(gpu: GPU, i: Instruction) -> None:
    gpu.ranks.send(i.inputs[0])  # nobody reads its result, which is the operand


def _receive(gpu: GPU, i: Instruction) -> None:
    gpu.ranks.receive(i.outputs[0])


def _all_gather(gpu: GPU, i: Instruction) -> None:
    (x,), (y,), (every,) = i.inputs, i.outputs, i.scratch
    gpu.ranks.all_gather(x, every)
    for rank in range(every.shape[0]):
        _columns(gpu, every[rank], y, x.shape[-1], 0, rank * x.shape[-1])


def _reduce_scatter(gpu: GPU, i: Instruction) -> None:
    (x,), (y,), (parts,) = i.inputs, i.outputs, i.scratch
    for rank in range(parts.shape[0]):
        _columns(gpu, x, parts[rank], y.shape[-1], rank * y.shape[-1], 0)
    gpu.ranks.reduce_scatter(parts, y)


def _all_gather_scratch(sized: Sized) -> list[Room]:
    (x,) = sized.types
    assert isinstance(sized.op, F.AllGather)
    return [((sized.op.ranks, *fixed(x.shape)), x.dtype.numpy)]


def _reduce_scatter_scratch(sized: Sized) -> list[Room]:
    (x,) = sized.types
    assert isinstance(sized.op, F.ReduceScatter)
    ranks = sized.op.ranks
    return [((ranks, *fixed(x.shape[:-1]), x.size(-1) // ranks), x.dtype.numpy)]


TABLE: Mapping[type[Op], Emit] = {
    ChooseTokens: _choose,
    F.Activation: _activation,
    F.Add: _combine(multiply=False),
    F.AllGather: _all_gather,
    F.AllReduce: _all_reduce,
    F.Attention: attention,
    F.BidirectionalAttention: bidirectional,
    F.Broadcast: _broadcast,
    F.Cast: _cast,
    F.CausalConv: causal_conv,
    F.Clamp: _clamp,
    F.Concat: _concat,
    F.CrossAttention: cross,
    F.GatedDeltaRule: gated_delta_rule,
    F.Gather: _gather,
    F.GroupedLinear: grouped_linear,
    F.HeadLinear: _head_linear,
    F.LayerNorm: _layer_norm,
    F.Mul: _combine(multiply=True),
    F.RMSNorm: _rms_norm,
    F.RealGatedRecurrence: real_gated_recurrence,
    F.Receive: _receive,
    F.ReduceScatter: _reduce_scatter,
    F.RelativeAttention: attention,
    F.ReplaceRows: _replace_rows,
    F.Rotary: _rotary,
    F.RotaryAngles: _rotary_angles,
    F.Route: route,
    F.Scale: _scale,
    F.SelectiveScan: selective_scan,
    F.Send: _send,
    F.SequenceMean: _sequence_mean,
    F.SinkAttention: attention,
    F.Split: _split,
    F.WeightedSum: weighted_sum,
    FillIn: _fill_in,
    FusedLinear: _linear,
    Gated: _gated,
    ProjectedAttention: projected,
}

SCRATCH: Mapping[type[Op], Callable[[Sized], list[Room]]] = {
    F.AllGather: _all_gather_scratch,
    F.Attention: attention_scratch,
    F.GroupedLinear: grouped_linear_scratch,
    F.ReduceScatter: _reduce_scatter_scratch,
    FusedLinear: _linear_scratch,
    F.SinkAttention: attention_scratch,
    ProjectedAttention: projected_scratch,
}
