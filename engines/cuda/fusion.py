"""The passes by which the zoo's graphs become this engine's."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from paddock.engines.cuda.fused import FusedLinear, Gated, ProjectedAttention
from paddock.graph import DType, Tensor
from paddock.graph import ops as F
from paddock.graph.passes.pattern import Any_, Match, Pattern, Rule, any_, op
from paddock.graph.passes.pipeline import Pass


def _fused(tensor: Tensor) -> FusedLinear | None:
    found = tensor.node.op
    return found if isinstance(found, FusedLinear) else None


def _norm_into(m: Match) -> Tensor | None:
    norm = m.ops["norm"]
    assert isinstance(norm, F.RMSNorm)
    if m["norm_weight"].dtype is not m["x"].dtype:  # the norm's own kernel takes others
        return None
    return _one(FusedLinear(norm_eps=norm.eps)(m["x"], m["weight"], m["norm_weight"]))


def _bias_into(m: Match) -> Tensor | None:
    linear = _fused(m["y"])
    if linear is None or m["b"].type.rank != 1:
        return None
    if linear.bias or linear.gate is not None or linear.residual or linear.dtype is not None:
        return None
    return _one(replace(linear, bias=True)(*m["y"].node.inputs, m["b"]))


def _gate_into(m: Match) -> Tensor | None:
    split, act = m.ops["split"], m.ops["act"]
    assert isinstance(split, F.Split)
    assert isinstance(act, F.Activation)
    if len(split.sizes) != 2 or split.sizes[0] != split.sizes[1]:
        return None
    linear = _fused(m["y"])
    if linear is None or linear.gate is not None or linear.residual or linear.dtype is not None:
        return _one(Gated(act.kind)(m["y"]))
    return _one(replace(linear, gate=act.kind)(*m["y"].node.inputs))


def _residual_into(m: Match) -> Tensor | None:
    x, y = m["x"], m["y"]
    for residual, tensor in ((x, y), (y, x)):
        linear = _fused(tensor)
        if linear is None or linear.residual or linear.gate is not None:
            continue
        if linear.dtype is not None or residual.type != tensor.type:
            continue
        return _one(replace(linear, residual=True)(*tensor.node.inputs, residual))
    return None


def _type_into(m: Match) -> Tensor | None:
    linear, cast = _fused(m["y"]), m.ops["cast"]
    assert isinstance(cast, F.Cast)
    if linear is None or linear.dtype is not None or cast.dtype is not DType.F32:
        return None
    return _one(replace(linear, dtype=DType.F32)(*m["y"].node.inputs))


def _one(tensor: Tensor) -> Tensor:
    return tensor


FUSE_LINEARS: list[Rule] = [
    (
        op(
            F.Linear,
            op(F.RMSNorm, any_("x"), any_("norm_weight"), as_="norm"),
            any_("weight"),
        ),
        _norm_into,
    ),  # norm(x) W^T
    (
        op(F.Linear, any_("x"), any_("weight")),
        lambda m: _one(FusedLinear()(m["x"], m["weight"])),
    ),  # x W^T
    (op(F.Add, any_("y"), any_("b")), _bias_into),  # (x W^T) + b
    (
        op(
            F.Mul,
            op(F.Activation, op(F.Split, any_("y"), as_="split", output=0), as_="act"),
            op(F.Split, any_("y"), as_="split", output=1),
        ),
        _gate_into,
    ),  # act(first half of x W^T) * second half
    (op(F.Add, any_("x"), any_("y")), _residual_into),  # r + (x W^T), either way round
    (op(F.Cast, any_("y"), as_="cast"), _type_into),  # f32(x W^T): rounded to nothing in between
]


def _project(m: Match) -> Tensor | None:
    split, attention = m.ops["split"], m.root.op
    assert isinstance(split, F.Split)
    assert isinstance(attention, F.Attention)
    q, _, v = m.root.inputs[:3]
    k = m.root.inputs[1]
    heads, size = q.type.size(1), q.type.size(2)
    kv_heads, value_size = v.type.size(1), v.type.size(2)
    if attention.alibi is not None or split.sizes != (
        heads * size,
        kv_heads * size,
        kv_heads * value_size,
    ):
        return None
    norm, rotary = m.ops.get("norm"), m.ops.get("rotary")
    assert norm is None or isinstance(norm, F.RMSNorm)
    if norm is not None and not m["q_norm"].dtype is m["k_norm"].dtype is q.dtype:
        return None
    assert rotary is None or isinstance(rotary, F.Rotary)
    if k.type.size(1) != kv_heads:
        return None
    fused = ProjectedAttention(
        heads,
        kv_heads,
        size,
        value_size,
        attention.scale,
        attention.window,
        attention.soft_cap,
        norm_eps=None if norm is None else norm.eps,
        turned=rotary is not None,
        interleaved=rotary is not None and rotary.interleaved,
        sinks=isinstance(attention, F.SinkAttention),
    )
    names = ["qkv"]
    names += [] if norm is None else ["q_norm", "k_norm"]
    names += [] if rotary is None else ["cos", "sin"]
    return _one(fused(*(m[name] for name in names), *m.root.inputs[3:]))


def _attention_of(*, sinks: bool, normed: bool, turned: bool) -> Pattern:
    def head(output: int, norm_weight: str) -> Pattern:
        x = op(F.Reshape, op(F.Split, any_("qkv"), as_="split", output=output))
        if normed:
            x = op(F.RMSNorm, x, any_(norm_weight), as_="norm")
        if turned:
            x = op(F.Rotary, x, any_("cos"), any_("sin"), as_="rotary")
        return x

    value = op(F.Reshape, op(F.Split, any_("qkv"), as_="split", output=2))
    step: list[Any_] = [any_(f"step{i}") for i in range(7 if sinks else 6)]
    kind = F.SinkAttention if sinks else F.Attention
    return op(kind, head(0, "q_norm"), head(1, "k_norm"), value, *step)


# attention(turn(norm(q)), turn(norm(k)), v) with q, k, v = split(qkv): with and without each part.
FUSE_ATTENTION: list[Rule] = [
    (_attention_of(sinks=sinks, normed=normed, turned=turned), _project)
    for sinks, normed, turned in product((True, False), repeat=3)
]

PASSES: list[Pass] = [
    ("fuse_attention", FUSE_ATTENTION),
    ("fuse_linears", FUSE_LINEARS),
]
