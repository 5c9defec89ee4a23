"""Every op's rule: what it makes of operands, and what it says of those it does not take."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import paddock.graph.ops as F
from paddock.graph import DType, Graph, GraphError, Mesh, Op, TensorType, use_graph
from paddock.graph.op import OPS
from paddock.graph.tensor import BLOCK_SIZE, BLOCKS, SLOTS, TOKENS, Dim
from tests.graph.written import tensors, type_of

BF16, F32, F64, I64 = DType.BF16, DType.F32, DType.F64, DType.I64
CACHE = "f32[blocks, block_size, 2, 16]"
STEP = ("i32[sequences + 1]", "i32[sequences]", "i32[table]", "i32[sequences + 1]")
QKV = ("f32[tokens, 4, 16]", "f32[tokens, 2, 16]", "f32[tokens, 2, 16]")

WHOLE = (*QKV, "i32[sequences + 1]")


def qkv(**changes: str) -> tuple[str, ...]:
    names = ("q", "k", "v", "key_cache", "value_cache", "starts", "past", "table", "blocks")
    given = dict(zip(names, (*QKV, CACHE, CACHE, *STEP), strict=True))
    return tuple((given | changes).values())


def cross(**changes: str) -> tuple[str, ...]:
    steps = {
        "starts": "i32[sequences + 1]",
        "source_starts": "i32[sequences + 1]",
        "lengths": "i32[sequences]",
        "table": "i32[source table]",
        "table_starts": "i32[sequences + 1]",
    }
    given = {
        "q": "f32[tokens, 4, 16]",
        "k": "f32[source tokens, 2, 16]",
        "v": "f32[source tokens, 2, 16]",
        "key_cache": CACHE,
        "value_cache": CACHE,
    }
    return tuple((given | steps | changes).values())


STATE_STEP = ("i32[sequences + 1]", "i32[sequences]", "i32[sequences]")
SCAN = (
    *("f32[tokens, 4, 6]", "f32[tokens, 4]", "f32[4]"),
    *("f32[tokens, 2, 8]", "f32[tokens, 2, 8]", "f32[4]"),
)
DELTA = (
    *("f32[tokens, 2, 8]", "f32[tokens, 2, 8]", "f32[tokens, 4, 6]"),
    *("f32[tokens, 4]", "f32[tokens, 4]"),
)
ACCEPTED: list[tuple[Op, tuple[str, ...], str]] = [
    (F.Input("token_ids", I64, (TOKENS,)), (), "i64[tokens]"),
    (F.Weight("w", BF16, (6, 4), (("q", 4), ("k", 2))), (), "bf16[6, 4]"),
    (F.CacheBlocks("c", F32, (BLOCKS, BLOCK_SIZE, 2, 16)), (), CACHE),
    (F.StateSlots("s", F32, (SLOTS, 2, 16)), (), "f32[slots, 2, 16]"),
    (F.Dequantize(BF16), ("i8[6, 8]", "f16[6, 2]"), "bf16[6, 8]"),
    (F.Dequantize(F32), ("i4[6, 8]", "f16[6, 1]"), "f32[6, 8]"),
    (F.Add(), ("f32[tokens, 8]", "f32[tokens, 8]"), "f32[tokens, 8]"),
    (F.Add(), ("bf16[tokens, 8]", "bf16[8]"), "bf16[tokens, 8]"),
    (F.Add(), ("i64[tokens]", "i64[tokens]"), "i64[tokens]"),
    (F.Mul(), ("f16[tokens, 8]", "f16[8]"), "f16[tokens, 8]"),
    (F.Scale(0.5), ("f16[tokens, 8]",), "f16[tokens, 8]"),
    (F.Scale(2), ("f32[tokens]",), "f32[tokens]"),
    (F.Clamp(-1.0, 2.0), ("bf16[tokens, 8]",), "bf16[tokens, 8]"),
    (F.Fill(1.0, BF16, (8,)), (), "bf16[8]"),
    (F.Fill(2, DType.I64), (), "i64[]"),
    (F.BidirectionalAttention(0.25), WHOLE, "f32[tokens, 4, 16]"),
    (F.SequenceMean(), ("bf16[tokens, 8]", "i32[sequences + 1]"), "bf16[tokens, 8]"),
    (F.BidirectionalAttention(1, 0, 8), (*WHOLE, "bf16[8, 4]"), "f32[tokens, 4, 16]"),
    (F.Cast(BF16), ("f32[tokens, 8]",), "bf16[tokens, 8]"),
    (F.Activation("gelu"), ("f32[tokens, 8]",), "f32[tokens, 8]"),
    (F.Linear(), ("f32[tokens, 8]", "f32[6, 8]"), "f32[tokens, 6]"),
    (F.RMSNorm(1e-5), ("bf16[tokens, 4, 8]", "f32[8]"), "bf16[tokens, 4, 8]"),
    (F.LayerNorm(1e-5), ("f32[tokens, 8]", "f32[8]"), "f32[tokens, 8]"),
    (F.LayerNorm(0), ("f32[tokens, 8]", "f32[8]", "f32[8]"), "f32[tokens, 8]"),
    (F.RotaryAngles((1.0, 0.1)), ("i64[tokens]",), "f32[tokens, 4], f32[tokens, 4]"),
    (F.Rotary(), ("bf16[tokens, 2, 8]", "f32[tokens, 8]", "f32[tokens, 8]"), "bf16[tokens, 2, 8]"),
    (F.Rotary(True), ("f32[t, 2, 8]", "f32[t, 4]", "f32[t, 4]"), "f32[t, 2, 8]"),
    (F.Attention(0.25), qkv(), "f32[tokens, 4, 16]"),
    (F.SinkAttention(0.25), (*qkv(), "f32[4]"), "f32[tokens, 4, 16]"),
    (F.RelativeAttention(1.0), (*qkv(), "bf16[32, 4]"), "f32[tokens, 4, 16]"),
    (F.ImageAttention(1.0), (*qkv(), "i64[tokens]"), "f32[tokens, 4, 16]"),
    (F.FoldRows(4), ("bf16[rows, 8]",), "bf16[rows / 4, 32]"),
    (F.FoldRows(4), ("f32[12, 8]",), "f32[3, 32]"),
    (F.CrossAttention(0.25), cross(), "f32[tokens, 4, 16]"),
    (
        F.CrossAttention(1.0),
        cross(v="f32[source tokens, 2, 8]", value_cache="f32[blocks, block_size, 2, 8]"),
        "f32[tokens, 4, 8]",
    ),
    (
        F.Attention(1, window=1, soft_cap=30.0, alibi=(0.5, 0.25, 0.1, 0.0)),
        qkv(v="f32[tokens, 2, 24]", value_cache="f32[blocks, block_size, 2, 24]"),
        "f32[tokens, 4, 24]",
    ),
    # A cache may be narrower than what is written into it.
    (F.Attention(0.25), qkv(key_cache="u8[blocks, block_size, 2, 16]"), "f32[tokens, 4, 16]"),
    (F.Split((2, 6)), ("f32[tokens, 8]",), "f32[tokens, 2], f32[tokens, 6]"),
    (F.Concat(), ("f32[tokens, 2]", "f32[tokens, 6]"), "f32[tokens, 8]"),
    (F.Reshape((2, 4)), ("f32[tokens, 8]",), "f32[tokens, 2, 4]"),
    (F.Reshape(()), ("f32[tokens, 1]",), "f32[tokens]"),
    (F.Gather(), ("f32[64, 8]", "i64[tokens]"), "f32[tokens, 8]"),
    (F.Gather(), ("f32[tokens, 2, 8]", "i32[rows]"), "f32[rows, 2, 8]"),
    (F.ReplaceRows(), ("bf16[tokens, 8]", "bf16[rows, 8]", "i64[tokens]"), "bf16[tokens, 8]"),
    (F.Route(2), ("bf16[tokens, 8]",), "f32[tokens, 2], i64[tokens, 2]"),
    (F.Route(2, "sigmoid"), ("f64[tokens, 8]", "f32[8]"), "f64[tokens, 2], i64[tokens, 2]"),
    (F.Route(4, groups=4, kept_groups=2), ("f32[tokens, 8]",), "f32[tokens, 4], i64[tokens, 4]"),
    (
        F.GroupedLinear(),
        ("bf16[tokens, 8]", "bf16[4, 6, 8]", "i64[tokens, 2]"),
        "bf16[tokens, 2, 6]",
    ),
    (
        F.GroupedLinear(4),
        ("f32[tokens, 2, 8]", "f32[4, 6, 8]", "i64[tokens, 2]", "f32[4, 6]"),
        "f32[tokens, 2, 6]",
    ),
    (F.HeadLinear(2, 4), ("f32[tokens, 3, 8]", "f32[3, 6, 8]"), "f32[tokens, 3, 4]"),
    (F.HeadLinear(0, 4, True), ("f32[tokens, 3, 4]", "f32[3, 6, 8]"), "f32[tokens, 3, 8]"),
    (
        F.CausalConv(),
        ("bf16[tokens, 8]", "bf16[8, 1, 4]", "bf16[slots, 8, 4]", *STATE_STEP, "bf16[8]"),
        "bf16[tokens, 8]",
    ),
    (
        F.SelectiveScan(),
        (*SCAN, "f32[slots, 4, 6, 8]", *STATE_STEP),
        "f32[tokens, 4, 6]",
    ),
    (
        F.GatedDeltaRule(),
        (*DELTA, "f32[slots, 4, 6, 8]", *STATE_STEP),
        "f32[tokens, 4, 6]",
    ),
    (
        F.RealGatedRecurrence(),
        (*("f32[tokens, 8]",) * 2, "f32[8]", "f32[slots, 8, 1, 1]", *STATE_STEP),
        "f32[tokens, 8]",
    ),
    (F.WeightedSum(), ("bf16[tokens, 2, 6]", "f32[tokens, 2]"), "bf16[tokens, 6]"),
    (F.Dequantize(F32), ("i8[4, 6, 8]", "f16[4, 6, 2]"), "f32[4, 6, 8]"),
    (F.AllReduce(), ("f32[tokens, 8]",), "f32[tokens, 8]"),
    (F.AllGather(4), ("f32[rows, 8]",), "f32[rows, 32]"),
    (F.ReduceScatter(4), ("f32[tokens, 8]",), "f32[tokens, 2]"),
    (F.Broadcast(), ("i64[tokens]",), "i64[tokens]"),
    (F.Send(), ("f32[tokens, 8]",), "f32[tokens, 8]"),
    (F.Receive(BF16, (8,)), ("i64[tokens]",), "bf16[tokens, 8]"),
]
REFUSED: list[tuple[Op, tuple[str, ...], str]] = [
    (F.Input("", I64, (TOKENS,)), (), "it has no name: a Parameter, Cache or State is found where"),
    (F.Input("x", I64, (0,)), (), "'x': i64[0] has an empty axis"),
    (F.Input("x", I64, (-4, 4)), (), "has an empty axis"),
    (F.Weight("w", F32, (6, 4), (("q", 4), ("k", 3))), (), "are not the rows of (6, 4)"),
    (F.Weight("w", F32, (), (("q", 4),)), (), "are not the rows of ()"),
    (F.Weight("w", F32, (4, 4), (("q", 8), ("k", -4))), (), "are not the rows of (4, 4)"),
    (F.CacheBlocks("c", F32, (BLOCKS, BLOCK_SIZE, 0, 16)), (), "has an empty axis"),
    (F.StateSlots("s", F32, (SLOTS, 0)), (), "has an empty axis"),
    (F.Dequantize(F32), ("f32[6, 8]", "f16[6, 2]"), "expected integers or e4m3, of 2 or 3 axes"),
    (F.Route(2, "relu"), ("f32[tokens, 8]",), "scores 'relu' is none of softmax, sigmoid"),
    (F.Route(2), ("i64[tokens, 8]",), "expected logits [tokens, experts] in floats"),
    (F.Route(9), ("f32[tokens, 8]",), "9 of 8 experts cannot be chosen"),
    (F.Route(2), ("f32[tokens, 8]", "f32[4]"), "expected one bias [8]"),
    (F.Route(3, "sparsemixer"), ("f32[tokens, 8]",), "sparsemixer chooses two experts"),
    (F.Route(2, groups=3), ("f32[tokens, 8]",), "8 experts are not 3 equal groups"),
    (F.Route(2, groups=4, kept_groups=5), ("f32[tokens, 8]",), "of which 5 are kept"),
    (F.Route(5, groups=4, kept_groups=2), ("f32[tokens, 8]",), "groups of 2: 1 of one, or 5 of 2"),
    (
        F.GroupedLinear(),
        ("f32[tokens, 6]", "f32[4, 6, 8]", "i64[tokens, 2]"),
        "expected x [tokens, inputs]",
    ),
    (
        F.GroupedLinear(),
        ("f32[tokens, 8]", "bf16[4, 6, 8]", "i64[tokens, 2]"),
        "element types differ",
    ),
    (
        F.GroupedLinear(),
        ("f32[tokens, 8]", "f32[4, 6, 8]", "f32[tokens, 2]"),
        "expected the numbers of experts",
    ),
    (
        F.GroupedLinear(),
        ("f32[tokens, 3, 8]", "f32[4, 6, 8]", "i64[tokens, 2]"),
        "has not one input for each",
    ),
    (
        F.GroupedLinear(),
        ("f32[tokens, 8]", "f32[4, 6, 8]", "i64[tokens, 2]", "f32[6]"),
        "expected one bias for",
    ),
    (
        F.GroupedLinear(-1),
        ("f32[tokens, 8]", "f32[4, 6, 8]", "i64[tokens, 2]"),
        "the first expert is -1",
    ),
    (F.HeadLinear(0, 4), ("f32[tokens, 2, 8]", "f32[3, 6, 8]"), "expected x [tokens, heads, inp"),
    (F.HeadLinear(0, 4), ("f32[tokens, 3, 8]", "bf16[3, 6, 8]"), "expected floats of one type"),
    (F.HeadLinear(4, 4), ("f32[tokens, 3, 8]", "f32[3, 6, 8]"), "has no 4 rows from 4 on"),
    (F.HeadLinear(0, 4, True), ("f32[tokens, 3, 8]", "f32[3, 6, 8]"), "expected 4 inputs"),
    (
        F.CausalConv(),
        ("f32[tokens, 8]", "f32[8, 4]", "f32[slots, 8, 4]", *STATE_STEP),
        "expected x [tokens, channels]",
    ),
    (
        F.CausalConv(),
        ("f32[tokens, 8]", "bf16[8, 1, 4]", "f32[slots, 8, 4]", *STATE_STEP),
        "expected floats of one type",
    ),
    (
        F.CausalConv(),
        ("f32[tokens, 8]", "f32[8, 1, 4]", "f32[slots, 8, 3]", *STATE_STEP),
        "does not hold [8, 4] a sequence",
    ),
    (
        F.CausalConv(),
        ("f32[tokens, 8]", "f32[8, 1, 4]", "f32[slots, 8, 4]", *STATE_STEP, "f32[4]"),
        "expected one bias",
    ),
    (
        F.CausalConv(),
        ("f32[tokens, 8]", "f32[8, 1, 4]", "f32[slots, 8, 4]", *STATE_STEP[:2], "f32[sequences]"),
        "expected integers along one axis",
    ),
    (
        F.CausalConv(),
        ("f32[tokens, 8]", "f32[8, 1, 4]", "f32[slots, 8, 4]", *STATE_STEP[:2], "i32[rows]"),
        "of different sequences",
    ),
    (
        F.RealGatedRecurrence(),
        ("f32[tokens, 8]", "f32[tokens, 4]", "f32[8]", "f32[slots, 8, 1, 1]", *STATE_STEP),
        "expected x and gate [tokens, channels]",
    ),
    (
        F.RealGatedRecurrence(),
        (*("f32[tokens, 8]",) * 2, "f32[8]", "f32[slots, 8]", *STATE_STEP),
        "does not hold [8, 1, 1] a sequence",
    ),
    (
        F.SelectiveScan(),
        ("f32[tokens, 24]", *SCAN[1:], "f32[slots, 4, 6, 8]", *STATE_STEP),
        "expected x [tokens, heads, size]",
    ),
    (
        F.SelectiveScan(),
        (*SCAN[:3], "f32[tokens, 3, 8]", *SCAN[4:], "f32[slots, 4, 6, 8]", *STATE_STEP),
        "expected B and C",
    ),
    (
        F.SelectiveScan(),
        (*SCAN[:2], "f32[6]", *SCAN[3:], "f32[slots, 4, 6, 8]", *STATE_STEP),
        "expected A [heads] or [heads, 8]",
    ),
    (
        F.SelectiveScan(),
        (*SCAN[:2], "bf16[4]", *SCAN[3:], "f32[slots, 4, 6, 8]", *STATE_STEP),
        "expected floats of one type",
    ),
    (
        F.GatedDeltaRule(),
        ("f32[tokens, 2, 4]", *DELTA[1:], "f32[slots, 4, 6, 8]", *STATE_STEP),
        "expected q, k and v",
    ),
    (
        F.GatedDeltaRule(),
        ("f32[tokens, 3, 8]", "f32[tokens, 3, 8]", *DELTA[2:], "f32[slots, 4, 6, 8]", *STATE_STEP),
        "4 heads do not share the 3",
    ),
    (
        F.GatedDeltaRule(),
        (*DELTA[:4], "f32[tokens, 2]", "f32[slots, 4, 6, 8]", *STATE_STEP),
        "expected gate and beta",
    ),
    (
        F.GatedDeltaRule(),
        (*DELTA[:4], "bf16[tokens, 4]", "f32[slots, 4, 6, 8]", *STATE_STEP),
        "expected floats of one type",
    ),
    (F.WeightedSum(), ("f32[tokens, 8]", "f32[tokens, 2]"), "expected [tokens, chosen, features]"),
    (F.WeightedSum(), ("f32[tokens, 2, 8]", "f32[tokens, 3]"), "are not for"),
    (F.Dequantize(F32), ("i8[8]", "f16[8, 1]"), "expected integers or e4m3, of 2 or 3 axes"),
    (F.Dequantize(F32), ("i8[6, 8]", "f16[6]"), "expected scales of as many axes"),
    (F.Dequantize(I64), ("i8[6, 8]", "f16[6, 2]"), "expected floats for the scales and the result"),
    (F.Dequantize(F32), ("i8[6, 8]", "f16[6, 3]"), "do not divide the integers i8[6, 8]"),
    (F.Dequantize(F32), ("i8[6, 8]", "f16[4, 2]"), "do not divide the integers i8[6, 8]"),
    (
        F.Add(),
        ("f32[tokens, 8]", "bf16[tokens, 8]"),
        "f32[tokens, 8] and bf16[tokens, 8]; cast one",
    ),
    (F.Add(), ("f32[tokens, 8]", "f32[tokens, 1]"), "shapes do not match"),
    (F.Add(), ("f32[8]", "f32[tokens, 8]"), "shapes do not match"),
    (F.Add(), ("f32[tokens]", "f32[rows]"), "shapes do not match: f32[tokens] and f32[rows]"),
    (F.Add(), ("bool[8]", "bool[8]"), "expected floats, i64 or i32: bool[8]"),
    (F.Add(), ("f32[8]",), "does not take 1 operands (f32[8])"),
    (F.Add(), ("f32[8]", "f32[8]", "f32[8]"), "does not take 3 operands"),
    (F.Mul(), ("f32[8]", "f64[8]"), "element types differ"),
    (F.Mul(), ("i8[8]", "i8[8]"), "expected floats, i64 or i32: i8[8]"),
    (F.Scale(2.0), ("i64[tokens]",), "expected floats"),
    (F.SinkAttention(0.25), qkv(), "expected ten operands, the last of them sinks: 9"),
    (F.SinkAttention(0.25), (*qkv(), "f32[2]"), "expected sinks [4] in floats"),
    (F.ImageAttention(1.0), qkv(), "expected ten operands, the last for each token: 9"),
    (F.ImageAttention(1.0), (*qkv(), "f32[tokens]"), "expected integers for each token of"),
    (F.ImageAttention(1.0), (*qkv(), "i64[rows]"), "expected integers for each token of"),
    (F.FoldRows(0), ("f32[rows, 8]",), "1 of them at least: 0 of f32[rows, 8]"),
    (F.FoldRows(2), ("f32[rows, 8, 2]",), "expected rows [n, size]"),
    (F.FoldRows(5), ("f32[12, 8]",), "12 rows are no multiple of 5"),
    (F.RelativeAttention(1.0), qkv(), "expected ten operands, the last a table of biases: 9"),
    (F.RelativeAttention(1.0), (*qkv(), "f32[32, 2]"), "expected biases [buckets, 4] in floats"),
    (
        F.RelativeAttention(1.0, max_distance=16),
        (*qkv(), "f32[32, 4]"),
        "32 buckets do not go with",
    ),
    (F.CrossAttention(1.0), cross(q="f32[tokens, 64]"), "expected q, k, v [tokens, heads, size]"),
    (F.CrossAttention(1.0), cross(k="bf16[source tokens, 2, 16]"), "in one type of floats"),
    (F.CrossAttention(1.0), cross(v="f32[tokens, 2, 16]"), "k and v are of different tokens"),
    (F.CrossAttention(1.0), cross(q="f32[tokens, 3, 16]"), "3 heads do not share the 2 of"),
    (
        F.CrossAttention(1.0),
        cross(key_cache="f32[blocks, block_size, 4, 16]"),
        "the key cache f32[blocks, block_size, 4, 16] does not hold f32[source tokens, 2, 16]",
    ),
    (
        F.CrossAttention(1.0),
        cross(key_cache="f32[others, block_size, 2, 16]"),
        "the caches differ in their blocks",
    ),
    (F.CrossAttention(1.0), cross(lengths="f32[sequences]"), "expected integers along one axis"),
    (F.CrossAttention(1.0), cross(source_starts="i32[some]"), "starts of different sequences"),
    (F.BidirectionalAttention(1.0), QKV, "does not take 3 operands"),
    (F.SequenceMean(), ("f32[tokens]", "i32[sequences + 1]"), "expected floats [tokens, size]"),
    (F.SequenceMean(), ("f32[tokens, 8]", "f32[sequences]"), "expected integers along one axis"),
    (
        F.BidirectionalAttention(1.0),
        ("f32[tokens, 64]", *WHOLE[1:]),
        "expected q, k, v [tokens, heads, size]",
    ),
    (
        F.BidirectionalAttention(1.0),
        ("f32[tokens, 3, 16]", *WHOLE[1:]),
        "3 heads do not share the 2 of",
    ),
    (F.BidirectionalAttention(1.0), (*QKV, "f32[sequences]"), "expected integers along one axis"),
    (F.BidirectionalAttention(1.0, -1), WHOLE, "window is -1, expected 0 tokens on each side"),
    (F.BidirectionalAttention(1.0, None, 8), WHOLE, "[(8, 4)], found none"),
    (F.BidirectionalAttention(1.0), (*WHOLE, "f32[8, 4]"), "expected a table of biases nowhere"),
    (F.BidirectionalAttention(1.0, None, 7), (*WHOLE, "f32[7, 4]"), "an even number from 4 up"),
    (F.BidirectionalAttention(1.0, None, 8, 2), (*WHOLE, "f32[8, 4]"), "max_distance is 2"),
    (F.Scale(math.nan), ("f32[8]",), "attribute 'factor' is nan of type float, expected float"),
    (F.Scale(10**400), ("f32[8]",), "attribute 'factor' is 1000000"),
    (F.Clamp(0.0, 1.0), ("i64[tokens]",), "expected floats"),
    (F.Clamp(2.0, 1.0), ("f32[tokens]",), "nothing lies between 2.0 and 1.0"),
    (F.Fill(1.0, DType.I8, (8,)), (), "expected floats, i64 or i32, not i8"),
    (F.Fill(1.0, BF16, (8, 0)), (), "[8, 0] has an empty axis"),
    (F.Fill(1.5, DType.I64), (), "1.5 is no whole number"),
    (F.Cast("f16"), ("f32[8]",), "attribute 'dtype' is 'f16' of type str, expected DType"),  # type: ignore[arg-type]
    (F.Activation("swish"), ("f32[8]",), "no activation 'swish'; there are silu, gelu"),
    (F.Activation("silu"), ("i64[8]",), "silu of i64[8]: expected floats"),
    (F.Linear(), ("f32[tokens, 8]", "f32[8, 6]"), "expected x [n, inputs] and weight [outputs, in"),
    (F.Linear(), ("f32[tokens, 2, 8]", "f32[6, 8]"), "expected x [n, inputs]"),
    (F.Linear(), ("f32[tokens, 8]", "bf16[6, 8]"), "element types differ"),
    (F.Linear(), ("i8[tokens, 8]", "i8[6, 8]"), "integers go through `dequantize`"),
    (F.RMSNorm(1e-5), ("f32[tokens, 8]", "f32[4]"), "weight f32[4] does not match the last axis"),
    (F.RMSNorm(1e-5), ("f32[]", "f32[]"), "does not match the last axis"),
    (F.RMSNorm(1e-5), ("i32[8]", "f32[8]"), "expected floats"),
    (F.RMSNorm(-1.0), ("f32[8]", "f32[8]"), "eps is -1.0, expected a finite number from 0 up"),
    (F.RMSNorm(math.inf), ("f32[8]", "f32[8]"), "eps is inf"),
    (F.LayerNorm(1e-5), ("f32[tokens, 8]", "f32[8]", "f32[4]"), "f32[4] does not match"),
    (F.LayerNorm(1e-5), ("f32[8]", "f32[8]", "f32[8]", "f32[8]"), "expected one bias, got 2"),
    (F.LayerNorm(-1e-5), ("f32[8]", "f32[8]"), "eps is -1e-05"),
    (F.RotaryAngles((1.0,)), ("f32[tokens]",), "positions must be i64 or i32 [tokens]"),
    (F.RotaryAngles((1.0,)), ("bool[tokens]",), "positions must be i64 or i32 [tokens]"),
    (F.RotaryAngles((1.0,)), ("i64[tokens, 2]",), "positions must be i64 or i32 [tokens]"),
    (F.RotaryAngles(()), ("i64[tokens]",), "expected one frequency at least"),
    (F.RotaryAngles((1.0, math.inf)), ("i64[tokens]",), "must be finite"),
    (F.RotaryAngles((1.0,), math.inf), ("i64[tokens]",), "must be finite"),
    (F.RotaryAngles([1.0]), ("i64[tokens]",), "expected tuple[float, ...]"),  # type: ignore[arg-type]
    (F.Rotary(), ("f32[t, 8]", "f32[t, 8]", "f32[t, 8]"), "expected x [tokens, heads, size]"),
    (F.Rotary(), ("f32[t, 2, 8]", "f32[t, 8]", "f32[t, 4]"), "and two tables"),
    (F.Rotary(), ("f32[t, 2, 8]", "f32[u, 8]", "f32[u, 8]"), "and two tables"),
    (
        F.Rotary(),
        ("f32[t, 2, 8]", "f32[t, 10]", "f32[t, 10]"),
        "10 rotated elements in a head of 8",
    ),
    (F.Rotary(), ("f32[t, 2, 8]", "f32[t, 3]", "f32[t, 3]"), "expected an even number"),
    (F.Rotary(), ("f32[t, 2, 8]", "bf16[t, 8]", "bf16[t, 8]"), "the tables in f32"),
    (F.Rotary(1), ("f32[t, 2, 8]", "f32[t, 8]", "f32[t, 8]"), "expected bool"),  # type: ignore[arg-type]
    (F.Attention(1.0, alibi=(0.5, 0.25)), qkv(), "alibi is (0.5, 0.25), expected 4 finite slopes"),
    (F.Attention(1.0), qkv(q="f32[tokens, 64]"), "expected q, k, v [tokens, heads, size]"),
    (F.Attention(1.0), qkv(q="f32[tokens, 4, 8]"), "expected q, k, v [tokens, heads, size]"),
    (F.Attention(1.0), qkv(q="bf16[tokens, 4, 16]"), "expected q, k, v in one type of floats"),
    (F.Attention(1.0), qkv(q="f32[rows, 4, 16]"), "q, k, v are of different tokens"),
    (F.Attention(1.0), qkv(q="f32[tokens, 3, 16]"), "3 heads do not share the 2 of"),
    (F.Attention(1.0), qkv(v="f32[tokens, 4, 16]"), "4 heads do not share the 2 of"),
    (F.Attention(1.0), qkv(key_cache="f32[blocks, block_size, 4, 16]"), "the key cache"),
    (F.Attention(1.0), qkv(value_cache="f32[blocks, 2, 16]"), "the value cache"),
    (
        F.Attention(1.0),
        qkv(key_cache="f32[blocks, 16, 2, 16]"),
        "the caches differ in their blocks",
    ),
    (F.Attention(1.0), qkv(past="f32[sequences]"), "expected integers along one axis"),
    (F.Attention(1.0), qkv(table="i32[table, 2]"), "expected integers along one axis"),
    (F.Attention(1.0), qkv(blocks="i32[sequences]"), "starts of different sequences"),
    (F.Attention(1.0, window=0), qkv(), "a window of 0 tokens sees nothing"),
    (F.Attention(1.0, soft_cap=0.0), qkv(), "soft_cap is 0.0, expected a finite number above 0"),
    (F.Attention(1.0, soft_cap=math.inf), qkv(), "soft_cap is inf"),
    (F.Attention(1.0), QKV, "does not take 3 operands"),
    (
        F.Split((2, 5)),
        ("f32[tokens, 8]",),
        "sizes (2, 5) sum to 7, the last axis of f32[tokens, 8]",
    ),
    (F.Split((9, -1)), ("f32[tokens, 8]",), "each must be 1 at least"),
    (F.Split((8,)), ("f32[]",), "f32[] has no axis -1"),
    (F.Split((8,)), ("f32[8, tokens]",), "axis -1 of f32[8, tokens] has no fixed size"),
    (F.Concat(), (), "nothing to join"),
    (F.Concat(), ("f32[tokens, 2]", "f32[rows, 2]"), "f32[rows, 2] does not join f32[tokens, 2]"),
    (F.Concat(), ("f32[tokens, 2]", "f16[tokens, 2]"), "does not join"),
    (F.Reshape((3, 3)), ("f32[tokens, 8]",), "f32[tokens, 8] has no view [tokens, 3, 3]"),
    (F.Reshape((-2, -4)), ("f32[tokens, 8]",), "has no view with the axes (-2, -4)"),
    (F.Reshape((1,)), ("f32[]",), "has no view with the axes (1,)"),
    (F.Gather(), ("f32[64, 8]", "f32[tokens]"), "row numbers must be i64 or i32 along one axis"),
    (F.Gather(), ("f32[64, 8]", "bool[tokens]"), "row numbers must be i64 or i32 along one axis"),
    (F.Gather(), ("f32[64, 8]", "i64[tokens, 1]"), "row numbers must be i64 or i32 along one axis"),
    (F.Gather(), ("f32[]", "i64[tokens]"), "f32[] has no rows"),
    (
        F.ReplaceRows(),
        ("f32[tokens, 8]", "f32[rows, 8]", "i64[rows]"),
        "expected a row number for each row of f32[tokens, 8], i64 or i32, got i64[rows]",
    ),
    (
        F.ReplaceRows(),
        ("f32[tokens, 8]", "f32[rows, 8]", "f32[tokens]"),
        "expected a row number for each row",
    ),
    (
        F.ReplaceRows(),
        ("f32[tokens, 8]", "f32[rows, 9]", "i64[tokens]"),
        "rows of f32[rows, 9] are no rows of f32[tokens, 8]",
    ),
    (
        F.ReplaceRows(),
        ("f32[tokens, 8]", "bf16[rows, 8]", "i64[tokens]"),
        "rows of bf16[rows, 8] are no rows of",
    ),
    (F.AllReduce(), (), "does not take 0 operands"),
    (F.Broadcast(), (), "does not take 0 operands"),
    (F.ReduceScatter(0), ("f32[rows, 8]",), "a mesh has no 0 ranks"),
    (F.ReduceScatter(3), ("f32[rows, 8]",), "does not divide into 3 equal parts"),
    (F.ReduceScatter(2), ("f32[8, rows]",), "axis -1 of f32[8, rows] has no fixed size"),
    (F.AllGather(0), ("f32[rows, 8]",), "a mesh has no 0 ranks"),
    (F.AllGather(2), ("f32[8, rows]",), "axis -1 of f32[8, rows] has no fixed size"),
    (F.Send(), ("f32[8]", "f32[8]"), "does not take 2 operands"),
    (F.Receive(F32, (0,)), ("i64[tokens]",), "no tensor has the first axis of i64[tokens]"),
    (F.Receive(F32, (8,)), ("i64[]",), "no tensor has the first axis"),
]


def ids(cases: list[tuple[Op, tuple[str, ...], str]]) -> list[str]:
    return [f"{op.name}-{i}" for i, (op, _, _) in enumerate(cases)]


@pytest.mark.parametrize(("op", "operands", "result"), ACCEPTED, ids=ids(ACCEPTED))
def test_makes(op: Op, operands: tuple[str, ...], result: str) -> None:
    graph = Graph()
    with use_graph(graph):
        made = op(*tensors(*operands))
    outputs = made if isinstance(made, tuple) else (made,)
    assert ", ".join(str(t.type) for t in outputs) == result
    graph.outputs = outputs
    graph.verify()


@pytest.mark.parametrize(("op", "operands", "message"), REFUSED, ids=ids(REFUSED))
def test_refuses_under_its_place_and_name(op: Op, operands: tuple[str, ...], message: str) -> None:
    graph = Graph()
    with use_graph(graph):
        given = tensors(*operands)
        before = len(graph.nodes)
        with graph.scope("model"), graph.scope("mlp"), pytest.raises(GraphError) as error:
            op(*given)
    place = rf"model\.mlp \(tests/graph/test_op_rules\.py:\d+\): {op.name}\b"
    assert re.match(place, str(error.value))
    assert message in str(error.value)
    assert len(graph.nodes) == before


def test_every_op_is_tried_both_ways() -> None:
    ours = {op for op in OPS.values() if op.__module__.startswith("paddock.graph.")}
    assert {type(op) for op, _, _ in ACCEPTED} == ours
    assert {type(op) for op, _, _ in REFUSED} == ours


def test_an_operand_that_is_no_tensor_is_named() -> None:
    with use_graph(Graph()):
        (x,) = tensors("f32[tokens, 8]")
        with pytest.raises(GraphError, match="add: operand 1 is a float, expected a tensor"):
            x + 3.0  # type: ignore[operator]
        with pytest.raises(GraphError, match="linear: operand 0 is a ndarray, expected"):
            F.linear(np.ones((2, 8)), x)  # type: ignore[arg-type]


def test_ops_outside_a_graph_say_what_to_do() -> None:
    with pytest.raises(GraphError, match=r"call ops inside `with use_graph\(Graph\(\)\):`"):
        F.Input("x", F32, (TOKENS,))()


def test_a_rule_that_fails_in_a_plugin_is_reported_under_its_place() -> None:
    @dataclass(frozen=True)
    class Careless(Op):
        def infer(self, x: TensorType) -> TensorType:
            return x.with_shape(x.shape[7])

    try:
        with use_graph(Graph()):
            (x,) = tensors("f32[8]")
            with pytest.raises(
                GraphError, match=r"the shape rule of careless fails for 1 operands"
            ):
                Careless()(x)
    finally:
        del OPS["careless"]


def test_names_are_read_from_the_class_and_belong_to_one() -> None:
    assert F.RMSNorm.name == "rms_norm"
    assert F.AllReduce.name == "all_reduce"
    with pytest.raises(GraphError, match=r"an op named 'rms_norm' exists already, in paddock\.gra"):

        @dataclass(frozen=True)
        class RMSNorm(Op):
            pass

    assert {"source", "collective", "op"}.isdisjoint(OPS)


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [
        (1, "int", True),
        (True, "int", False),
        (np.int64(1), "int", False),
        (1, "float", True),
        (1.5, "float", True),
        (True, "float", False),
        (2**60, "float", False),
        (np.float64(1), "float", False),
        (math.inf, "float", True),
        (math.nan, "float", False),
        ("a", "str", True),
        (F32, "str", False),
        (F32, "DType", True),
        ("f32", "DType", False),
        (Dim("n"), "Dim", True),
        (None, "int | None", True),
        (None, "int", False),
        ((1, Dim("n")), "tuple[int | Dim, ...]", True),
        ([1], "tuple[int, ...]", False),
        ((1, "a"), "tuple[int, str]", True),
        ((1,), "tuple[int, str]", False),
        ((("q", 1),), "tuple[tuple[str, int], ...]", True),
        ((math.nan,), "Any", False),
        (object(), "Any", False),
        ({}, "dict", False),
    ],
)
def test_attributes_are_what_their_annotations_say(value: Any, annotation: str, fits: bool) -> None:
    kinds = {"DType": DType, "Dim": Dim, "Any": Any}
    kind: Any = type("Tried", (Op,), {"__annotations__": {"value": eval(annotation, kinds)}})
    op = dataclass(frozen=True)(kind)(value)
    try:
        if fits:
            op.check_attributes()
        else:
            with pytest.raises(GraphError, match="attribute 'value' is"):
                op.check_attributes()
    finally:
        del OPS["tried"]


def test_a_slot_outside_the_tree_is_found_when_it_is_used() -> None:
    from paddock.graph import Module, Parameter, Tensor

    class Hidden(Module):
        def __init__(self) -> None:
            self.weights = [Parameter((4, 4))]  # in a plain list: nobody finds it there

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weights[0].tensor)

    model = Hidden()
    model.assign_names()
    with use_graph(Graph()), pytest.raises(GraphError, match="weight: it has no name: a Parameter"):
        model(*tensors("f32[tokens, 4]"))


def test_types_are_written_as_they_are_shown() -> None:
    assert str(type_of("f32[tokens, 4]")) == "f32[tokens, 4]"
    assert type_of("bf16[]").rank == 0
    assert Mesh() == Mesh(tp=1, pp=1)
    assert F64.bits == 64
    assert DType.I4.bits == 4
