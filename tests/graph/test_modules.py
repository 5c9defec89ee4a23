"""The module tree: names of slots, shared ones, and the tree as text."""

from __future__ import annotations

import pytest

from paddock.graph import (
    Cache,
    DType,
    Graph,
    GraphError,
    Mesh,
    Module,
    ModuleList,
    Parameter,
    Parts,
    QuantFormat,
    Shard,
    use_graph,
)
from paddock.layers import quantize
from paddock.models import registry
from tests.graph.written import tensors
from tests.models.parity_cases import case


class Leaf(Module):
    def __init__(self, size: int, *, slow: bool = False) -> None:
        self.size, self.slow, self.rate = size, slow, 0.5
        self.weight = Parameter((size,))


class Tree(Module):
    def __init__(self) -> None:
        self.left = Leaf(4)
        self.many = ModuleList([Leaf(4), Leaf(4), Leaf(6), Leaf(4), Leaf(4, slow=True)])
        self.state = Cache((2, 8))
        self.right = self.left  # one module under two names
        self.bias = Parameter((3,))


def test_slots_are_named_by_their_first_path() -> None:
    tree = Tree()
    tree.assign_names()
    names = [name for name, _ in tree.named_parameters()]
    assert names == ["left.weight", *(f"many.{i}.weight" for i in range(5)), "bias"]
    assert [slot.name for _, slot in tree.named_parameters()] == names
    assert tree.state.name == "state"
    tree.assign_names("again.")
    assert tree.left.weight.name == "again.left.weight"


def test_a_list_is_walked_counted_and_indexed() -> None:
    many = Tree().many
    assert len(many) == 5
    assert [leaf.size for leaf in many] == [4, 4, 6, 4, 4]
    assert many[2].size == 6


def test_the_tree_as_text_folds_what_is_alike() -> None:
    assert repr(Tree()) == (
        "Tree state[2, 8] bias[3]\n"
        "  (left): Leaf size=4 rate=0.5 weight[4]\n"
        "  (many): ModuleList\n"
        "    (0-1, 3): 3 x Leaf size=4 rate=0.5 weight[4]\n"
        "    (2): Leaf size=6 rate=0.5 weight[6]\n"
        "    (4): Leaf size=4 slow=True rate=0.5 weight[4]\n"
        "  (right): Leaf size=4 rate=0.5 weight[4]"
    )


def test_a_model_as_text() -> None:
    model = registry.read(case("smollm3-windows").config).build()
    quantize(model, QuantFormat(DType.I8), skip=["lm_head.*"])
    text = repr(model).splitlines()
    assert "    (layers): Pipeline" in text
    assert "      (0, 2, 4): 3 x LlamaBlock residual=1" in text
    assert "      (1, 3): 2 x LlamaBlock residual=1" in text  # no positions, but a window
    assert (
        "        (self_attn): Attention head_dim=16 window=6 scale=0.25 heads=4"
        " key_cache[2, 16] value_cache[2, 16]"
    ) in text
    assert (
        "          (qkv_proj): ColumnLinear weight[q 64 + k 32 + v 32, 64] i8 per row"
        " bias[q 64 + k 32 + v 32]"
    ) in text
    assert "          (rotary): Rotary head_dim=16 default rope_theta=500" in "\n".join(text)
    assert "  (lm_head): VocabHead scale=1 weight[64, 64]" in text


def test_a_module_without_forward_says_so() -> None:
    with use_graph(Graph()), pytest.raises(GraphError, match="Leaf declares no forward"):
        Leaf(3)(*tensors("f32[3]"))


def test_parts_give_each_rank_its_rows() -> None:
    parts = Parts({"q": 16, "k": 4}, unit=2, repeat=True)
    held = [[parts.slice(part, Mesh(tp=4, tp_rank=r)) for part in ("q", "k")] for r in range(4)]
    assert [q for q, _ in held] == [slice(4 * r, 4 * r + 4) for r in range(4)]
    assert [k for _, k in held] == [slice(0, 2), slice(0, 2), slice(2, 4), slice(2, 4)]
    assert parts.local(Mesh(tp=4)).sizes == {"q": 4, "k": 2}
    assert parts.total == 20


@pytest.mark.parametrize(
    ("parts", "tp", "message"),
    [
        (Parts({"q": 15}, unit=2), 1, "part 'q': 15 is not a multiple of its unit 2"),
        (Parts({"q": 12}, unit=2), 4, "6 units of 2 do not divide over tp=4; .* 1, 2, 3, 6$"),
        (Parts({"q": 12}, unit=2, repeat=True), 4, "tp may be one of 1, 2, 3, 6, or a multiple of"),
        (Parts({"rows": 2**40}), 3, "tp may be one of 1, 2, 4, 8, 16, 32, 64$"),
    ],
)
def test_parts_that_do_not_divide(parts: Parts, tp: int, message: str) -> None:
    slot = Parameter((parts.total, 8), Shard(0, parts))
    slot.name = "model.w"
    with pytest.raises(GraphError, match=f"^model.w: .*{message}"):
        slot.local_shape(Mesh(tp=tp))
    cache = Cache((parts.total, 8), Shard(0, parts))
    cache.name = "model.c"
    with pytest.raises(GraphError, match=f"^model.c: .*{message}"):
        cache.local_shape(Mesh(tp=tp))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((DType.F8E4M3, 32), "f8e4m3 has one scale a row, not one for 32 weights"),
        ((DType.BF16,), "weights are quantized to i8, i4, f8e4m3, not to bf16"),
        ((DType.I8, 0), "a group of 0 weights cannot share a scale"),
        ((DType.I8, 32, DType.I8), "scales are floats, not i8"),
    ],
)
def test_formats_without_meaning(arguments: tuple[DType, int, DType], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        QuantFormat(*arguments)


def test_a_quantized_slot_is_integers_and_scales_under_a_dequantize() -> None:
    slot = Parameter((6, 8), Shard(0, Parts({"a": 4, "b": 2})), quantizable=True)
    slot.name = "x.weight"
    slot.quant = QuantFormat(DType.I4, 4)
    graph = Graph(DType.BF16)
    with use_graph(graph):
        graph.outputs = (slot.tensor,)
    assert graph.dump() == (
        "%0 = weight(key=x.weight, parts=((a, 4), (b, 2))) : i4[6, 8]\n"
        "%1 = weight(key=x.scale, parts=((a, 4), (b, 2))) : f16[6, 2]\n"
        "%2 = dequantize(%0, %1, dtype=bf16) : bf16[6, 8]\n"
        "return %2\n"
    )
    slot.quant = QuantFormat(DType.I4, 3)
    with (
        use_graph(Graph()),
        pytest.raises(GraphError, match=r"^x\.weight: 8 columns are not whole"),
    ):
        _ = slot.tensor
