"""Passes: what each rule does, and that none changes what a graph computes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paddock.graph.ops as F
from paddock.graph import DType, Graph, GraphError, Op, Tensor, TensorType, use_graph
from paddock.graph.op import OPS
from paddock.graph.passes import (
    STANDARD,
    Pass,
    rewrite,
    run_passes,
    simplify,
    split_fused_linears,
)
from paddock.graph.passes.merge_equal import merge_equal
from paddock.graph.passes.remove_dead import remove_dead
from paddock.graph.passes.select_rows_early import select_rows_early
from tests.graph.random_graphs import RandomGraph
from tests.graph.written import tensor, tensors

PASSES: dict[str, list[Pass]] = {
    "remove_dead": [remove_dead],
    "merge_equal": [merge_equal],
    "simplify": [("simplify", simplify.RULES)],
    "select_rows_early": [select_rows_early, remove_dead],
    "split_fused_linears": [("split_fused_linears", split_fused_linears.RULES)],
    "standard": STANDARD,
    "everything": [*STANDARD, ("split_fused_linears", split_fused_linears.RULES), *STANDARD],
}


@pytest.mark.parametrize("passes", PASSES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(0, 25))
def test_no_pass_changes_what_a_graph_computes(passes: str, seed: int, size: int) -> None:
    made = RandomGraph(seed, size)
    before = made.values(made.graph)
    text = made.graph.dump()
    after = run_passes(made.graph, PASSES[passes])
    assert made.graph.dump() == text  # the graph that went in is left as it was
    assert [t.type for t in after.outputs] == [t.type for t in made.graph.outputs]
    for x, y in zip(before, made.values(after), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)
    again = run_passes(after, PASSES[passes])
    assert again.dump(sources=True) == after.dump(sources=True)  # nothing is left to do


def graph_of(*outputs: Tensor, of: Graph) -> Graph:
    of.outputs = outputs
    of.verify()
    return of


def ops_of(graph: Graph) -> Counter[str]:
    return Counter(n.op.name for n in graph.nodes if n.inputs)


def test_simplify_leaves_out_what_does_nothing() -> None:
    graph = Graph()
    with use_graph(graph):
        x = tensor("f32[tokens, 8]")
        y = F.Scale(1.0)(F.Cast(DType.F32)(F.Reshape((8,))(x)))
        y = F.Reshape((8,))(F.Reshape((4, 2))(F.Reshape((2, 4))(y)))
        z = F.Reshape((2, 4))(F.Reshape((4, 2))(F.Scale(2.0)(y)))
    result = rewrite(graph_of(y, z, of=graph), simplify.RULES)
    assert ops_of(result) == {"scale": 1, "reshape": 1}
    assert result.outputs[0].node.op.name == "input"
    assert F.Cast(DType.F16) != F.Cast(DType.F32)


def test_a_cast_that_rounds_stays() -> None:
    graph = Graph()
    with use_graph(graph):
        y = F.Cast(DType.F32)(F.Cast(DType.BF16)(tensor("f32[tokens, 8]")))
    assert ops_of(rewrite(graph_of(y, of=graph), simplify.RULES)) == {"cast": 2}


@pytest.mark.parametrize("operands", [1, 2, 3])
def test_rows_are_picked_before_the_norm(operands: int) -> None:
    graph = Graph()
    with use_graph(graph):
        x, w, b = tensors("f32[tokens, 8]", "f32[8]", "f32[8]")
        rows = tensor("i64[rows]", "rows")
        norm = (
            F.rms_norm(x, w, 0.1)
            if operands == 1
            else F.layer_norm(x, w, [None, b][operands - 2], 0.1)
        )
        y = F.gather(norm, rows)
    result = remove_dead(select_rows_early(graph_of(y, of=graph)))
    assert result.outputs[0].node.op == norm.node.op
    assert result.outputs[0].node.inputs[0].node.op == F.Gather()
    assert len(result.outputs[0].node.inputs) == len(norm.node.inputs)


def test_rows_are_picked_before_all_that_only_they_need() -> None:
    """A last layer behind its attention: x + mlp(norm(x)), of which some rows are read."""
    graph = Graph()
    with use_graph(graph):
        a, h, o, w, up, down = tensors(
            *("f32[tokens, 2, 4]", "f32[tokens, 8]", "f32[8, 8]", "f32[8]", "f32[12, 8]"),
            "f32[8, 6]",
        )
        rows = tensor("i64[rows]", "rows")
        x = h + F.linear(F.reshape(a, 8), o)
        gate, value = F.split(F.linear(F.rms_norm(x, w, 0.1), up), 6, 6)
        y = x + F.linear(F.activation(gate, "silu") * value, down)
        z = F.gather(F.rms_norm(y, w, 0.1), rows)
    result = remove_dead(select_rows_early(graph_of(z, of=graph)))
    gathers = list(result.find(F.Gather))
    assert [n.inputs[0].node.op.name for n in gathers] == ["input", "input"]  # of a and h
    assert not [n for n in result.nodes if n.inputs and n.outputs[0].shape[0] != rows.shape[0]]
    assert {**ops_of(result), "gather": 1} == ops_of(graph)


@pytest.mark.parametrize("other", ["output", "rows", "op"])
def test_what_others_read_stays_whole(other: str) -> None:
    graph = Graph()
    with use_graph(graph):
        x, w = tensors("f32[tokens, 8]", "f32[8]")
        rows = tensor("i64[rows]", "rows")
        norm = F.rms_norm(F.scale(x, 2.0), w, 0.1)
        y = F.gather(F.scale(norm, 3.0), rows)
        z = {
            "output": norm,
            "rows": F.gather(norm, tensor("i64[others]", "others")),
            "op": F.sequence_mean(norm, tensor("i32[sequences + 1]", "starts")),
        }[other]
    result = remove_dead(select_rows_early(graph_of(y, z, of=graph)))
    read = result.outputs[0].node  # the scale, of some rows
    picked = read.inputs[0].node
    assert (read.op, picked.op) == (F.Scale(3.0), F.Gather())
    assert picked.inputs[0].node.op == norm.node.op
    assert picked.inputs[0].shape == x.shape


def fused(sizes: tuple[int, ...], *, bias: bool, quantized: bool = False) -> Graph:
    graph = Graph()
    parts = (("q", 6), ("k", 2))
    with use_graph(graph), graph.scope("qkv_proj"):
        x = tensor("f32[tokens, 8]")
        if quantized:
            weight = F.Dequantize(DType.F32)(
                F.Weight("w.weight", DType.I8, (8, 8), parts)(),
                F.Weight("w.scale", DType.F16, (8, 2), parts)(),
            )
        else:
            weight = F.Weight("w.weight", DType.F32, (8, 8), parts)()
        y = F.linear(x, weight)
        if bias:
            y = y + F.Weight("w.bias", DType.F32, (8,), parts)()
        graph.outputs = F.split(y, *sizes)
    return graph


def test_rows_that_are_picked_for_two_norms_are_picked_once() -> None:
    graph = Graph()
    with use_graph(graph):
        x, w, v = tensors("f32[tokens, 8]", "f32[8]", "f32[8]")
        rows = tensor("i64[rows]", "rows")
        picked = [F.gather(F.rms_norm(x, weight, 0.1), rows) for weight in (w, v)]
    result = run_passes(graph_of(*picked, of=graph), STANDARD)
    assert ops_of(result) == {"gather": 1, "rms_norm": 2}


def test_fused_linears_are_split_along_their_parts() -> None:
    graph = run_passes(
        fused((6, 2), bias=True, quantized=True),
        [("split", split_fused_linears.RULES), remove_dead],
    )
    assert graph.dump() == (
        "%0 = input(key=x) : f32[tokens, 8]  # qkv_proj\n"
        "%1 = weight(key=w.weight, part=q) : i8[6, 8]  # qkv_proj\n"
        "%2 = weight(key=w.weight, part=k) : i8[2, 8]  # qkv_proj\n"
        "%3 = weight(key=w.scale, part=q) : f16[6, 2]  # qkv_proj\n"
        "%4 = weight(key=w.scale, part=k) : f16[2, 2]  # qkv_proj\n"
        "%5 = dequantize(%1, %3, dtype=f32) : f32[6, 8]  # qkv_proj\n"
        "%6 = dequantize(%2, %4, dtype=f32) : f32[2, 8]  # qkv_proj\n"
        "%7 = linear(%0, %5) : f32[tokens, 6]  # qkv_proj\n"
        "%8 = linear(%0, %6) : f32[tokens, 2]  # qkv_proj\n"
        "%9 = weight(key=w.bias, part=q) : f32[6]  # qkv_proj\n"
        "%10 = weight(key=w.bias, part=k) : f32[2]  # qkv_proj\n"
        "%11 = add(%7, %9) : f32[tokens, 6]  # qkv_proj\n"
        "%12 = add(%8, %10) : f32[tokens, 2]  # qkv_proj\n"
        "return %11, %12\n"
    )


def test_a_split_across_parts_keeps_the_fused_linear() -> None:
    graph = rewrite(fused((2, 6), bias=False), split_fused_linears.RULES)
    assert ops_of(graph) == {"linear": 1, "split": 1}


def test_merge_equal_keeps_what_only_looks_alike() -> None:
    graph = Graph()
    with use_graph(graph):
        x, y = tensors("f32[tokens, 8]", "f32[tokens, 8]")
        same = [F.Scale(2.0)(x), F.Scale(2.0)(x)]
        # 2 == 2.0 for Python, but a file keeps them apart, and so does the key.
        other = [F.Scale(2)(x), F.Scale(2.0)(y), F.Scale(3.0)(x), F.Activation("tanh")(x)]
        swapped = [F.add(x, y), F.add(y, x)]
        pieces = [F.Split((4, 4))(x), F.Split((4, 4))(x)]
        flat = [p for pair in pieces for p in pair]
    result = merge_equal(graph_of(*same, *other, *swapped, *flat, of=graph))
    assert ops_of(result) == {"scale": 4, "activation": 1, "add": 2, "split": 1}
    assert result.outputs[0] is result.outputs[1]
    assert result.outputs[-4:-2] == result.outputs[-2:]


def test_merge_equal_keeps_every_effect() -> None:
    @dataclass(frozen=True)
    class Draw(Op):
        """A number never given before: twice is not once."""

        has_effects: ClassVar[bool] = True

        def infer(self, x: TensorType) -> TensorType:
            return x

    try:
        graph = Graph()
        with use_graph(graph):
            x = tensor("f32[tokens, 2, 8]")
            caches = tensors(*["f32[blocks, block_size, 2, 8]"] * 2)
            starts = [tensor("i32[n]", f"s{i}") for i in range(4)]
            made = []
            for _ in range(2):
                made += [Draw()(x), F.Attention(1.0)(x, x, x, *caches, *starts)]
                made += [F.all_reduce(x), F.all_gather(x, 2), F.send(x)]
                made += [F.receive(x, DType.F32, (8,))]
        result = merge_equal(graph_of(*made, of=graph))
        assert set(ops_of(result).values()) == {2}
        assert len(ops_of(result)) == 6
    finally:
        del OPS["draw"]


def test_merged_nodes_feed_what_follows() -> None:
    """Equal chains become one from their beginnings to their ends."""
    graph = Graph()
    with use_graph(graph):
        (x,) = tensors("f32[tokens, 8]")
        ends = [F.silu(F.scale(F.scale(x, 2.0), 3.0)) for _ in range(4)]
    result = merge_equal(graph_of(*ends, of=graph))
    assert ops_of(result) == {"scale": 2, "activation": 1}


def test_remove_dead_keeps_what_outputs_need_and_nothing_else() -> None:
    graph = Graph()
    with use_graph(graph):
        x, _unused = tensors("f32[tokens, 8]", "f32[tokens, 8]")
        first, _second = F.Split((4, 4))(x)
        F.scale(first, 3.0)
        y = F.scale(first, 2.0)
    result = remove_dead(graph_of(y, of=graph))
    assert [n.op.name for n in result.nodes] == ["input", "split", "scale"]


def test_a_pass_that_breaks_the_graph_is_named() -> None:
    def lose_inputs(graph: Graph) -> Graph:
        result = Graph(graph.dtype)
        result.nodes = [n for n in graph.nodes if n.inputs]
        result.outputs = graph.outputs
        return result

    graph = Graph()
    with use_graph(graph):
        y = F.scale(tensor("f32[tokens, 8]"), 2.0)
    with pytest.raises(GraphError, match=r"^after the pass lose_inputs: .*scale reads a input"):
        run_passes(graph_of(y, of=graph), [lose_inputs])


def test_a_caller_sees_the_graph_behind_each_pass() -> None:
    made = RandomGraph(0, 10)
    seen: list[tuple[str, int]] = []
    run_passes(made.graph, STANDARD, after=lambda name, g: seen.append((name, len(g.nodes))))
    assert [name for name, _ in seen] == [
        "remove_dead",
        "simplify",
        "merge_equal",
        "select_rows_early",
        "merge_equal",
        "remove_dead",
    ]
