"""The proof of a binding, and that what it reads is what the model expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from paddock.graph import Array, DType, Mesh, Parameter, Parts, QuantFormat, Shard
from paddock.weights import (
    Add,
    Binding,
    Checkpoint,
    Fuse,
    Ignore,
    Interleave,
    Rename,
    Rule,
    Split,
    Stack,
    TensorInfo,
    Tie,
    Transpose,
    WeightError,
    prove,
)
from paddock.weights.claims import Claims
from paddock.weights.llama import HUGGING_FACE
from paddock.weights.source import Rows, Stored

HEAD, HIDDEN, INNER, VOCAB = 4, 16, 24, 32


def qkv(heads: int = 4, kv_heads: int = 2, *, columns: int = HIDDEN) -> Parameter:
    parts = Parts({"q": heads * HEAD, "k": kv_heads * HEAD, "v": kv_heads * HEAD}, HEAD, True)
    return Parameter((parts.total, columns), Shard(0, parts), quantizable=True)


def llama_slots(layers: int = 2) -> dict[str, Parameter]:
    slots = {"model.embed_tokens.weight": Parameter((VOCAB, HIDDEN))}
    for i in range(layers):
        layer = f"model.layers.{i}"
        gate_up = Parts({"gate": INNER, "up": INNER})
        slots |= {
            f"{layer}.input_layernorm.weight": Parameter((HIDDEN,)),
            f"{layer}.self_attn.qkv_proj.weight": qkv(),
            f"{layer}.self_attn.qkv_proj.bias": Parameter((qkv().shape[0],), qkv().shard),
            f"{layer}.self_attn.o_proj.weight": Parameter(
                (HIDDEN, 4 * HEAD), Shard(1, Parts({"in": 4 * HEAD}, HEAD)), quantizable=True
            ),
            f"{layer}.mlp.gate_up_proj.weight": Parameter((2 * INNER, HIDDEN), Shard(0, gate_up)),
            f"{layer}.mlp.down_proj.weight": Parameter(
                (HIDDEN, INNER), Shard(1, Parts({"in": INNER}))
            ),
        }
    head = Parameter((VOCAB, HIDDEN), Shard(0, Parts({"vocab": VOCAB})), quantizable=True)
    return slots | {"model.norm.weight": Parameter((HIDDEN,)), "lm_head.weight": head}


def llama_shapes(layers: int = 2, *, head: bool = True) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(layers):
        attn, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        shapes |= {
            f"model.layers.{i}.input_layernorm.weight": (HIDDEN,),
            **{f"{attn}.{p}_proj.weight": (n * HEAD, HIDDEN) for p, n in (("q", 4), ("k", 2))},
            **{f"{attn}.{p}_proj.bias": (n * HEAD,) for p, n in (("q", 4), ("k", 2))},
            f"{attn}.v_proj.weight": (2 * HEAD, HIDDEN),
            f"{attn}.v_proj.bias": (2 * HEAD,),
            f"{attn}.o_proj.weight": (HIDDEN, 4 * HEAD),
            f"{mlp}.gate_proj.weight": (INNER, HIDDEN),
            f"{mlp}.up_proj.weight": (INNER, HIDDEN),
            f"{mlp}.down_proj.weight": (HIDDEN, INNER),
        }
    shapes |= {"model.norm.weight": (HIDDEN,)}
    return shapes | ({"lm_head.weight": (VOCAB, HIDDEN)} if head else {})


def infos(shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, dtype, shape) for name, shape in shapes.items()}


def stored(folder: Path, arrays: Mapping[str, Array]) -> Checkpoint:
    save_file(dict(arrays), folder / "model.safetensors")
    return Checkpoint.open(folder)


def numbered(*shape: int, start: int = 0) -> Array:
    return np.arange(start, start + int(np.prod(shape)), dtype=np.float32).reshape(shape)


def bound(
    slots: Mapping[str, Parameter],
    checkpoint: Checkpoint,
    rules: Sequence[Rule] = (),
    mesh: Mesh | None = None,
) -> Binding:
    return prove(slots, checkpoint.tensors, rules, mesh)


# The llama map.


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
def test_llama_fits_on_every_mesh(tp: int, pp: int) -> None:
    for mesh in Mesh(tp=tp, pp=pp).ranks():
        binding = prove(llama_slots(), infos(llama_shapes()), HUGGING_FACE, mesh)
        assert set(binding.slots) == set(llama_slots())
        for name, slot in llama_slots().items():
            assert binding.slots[name].shape == slot.local_shape(mesh)


def test_only_live_slots_are_bound() -> None:
    slots = llama_slots()
    stages = [
        [n for n in slots if "layers.0" in n or "embed" in n],
        [n for n in slots if "layers.1" in n or n in ("model.norm.weight", "lm_head.weight")],
    ]
    for mesh in Mesh(tp=2, pp=2).ranks():
        binding = prove(slots, infos(llama_shapes()), HUGGING_FACE, mesh, live=stages)
        assert list(binding.slots) == stages[mesh.pp_rank]


def test_live_slots_are_checked() -> None:
    slots, tensors = llama_slots(), infos(llama_shapes())
    with pytest.raises(WeightError, match="for 1 stages, the mesh has 2"):
        prove(slots, tensors, HUGGING_FACE, Mesh(pp=2), live=[list(slots)])
    with pytest.raises(WeightError, match=r"stage 0 computes with 'model.norm.wait', which is no"):
        prove(slots, tensors, HUGGING_FACE, live=[["model.norm.wait"]])


def test_tied_head_takes_the_embedding() -> None:
    binding = prove(llama_slots(), infos(llama_shapes(head=False)), HUGGING_FACE, tied=True)
    (part,) = binding.slots["lm_head.weight"].parts
    assert str(part) == "model.embed_tokens.weight"
    assert binding.ignored == ()


def test_tied_head_wins_over_a_stored_one() -> None:
    """As in transformers: the config decides."""
    binding = prove(llama_slots(), infos(llama_shapes(head=True)), HUGGING_FACE, tied=True)
    assert str(binding.slots["lm_head.weight"].parts[0]) == "model.embed_tokens.weight"
    assert binding.ignored == ("lm_head.weight",)


def test_a_tied_slot_may_be_stored_under_another_name() -> None:
    slots = {"embed.weight": Parameter((4, 2)), "head.weight": Parameter((4, 2))}
    rules: list[Rule] = [Tie("head.weight", to="embed.weight"), Rename("head", "output")]
    tensors = infos({"embed.weight": (4, 2), "output.weight": (4, 2)})
    assert prove(slots, tensors, rules, tied=True).ignored == ("output.weight",)


def test_untied_head_must_be_stored() -> None:
    with pytest.raises(WeightError) as caught:
        prove(llama_slots(), infos(llama_shapes(head=False)), HUGGING_FACE, tied=False)
    assert str(caught.value) == (
        "lm_head.weight: the checkpoint has no 'lm_head.weight'; it is the value of"
        " model.embed_tokens.weight where config.json says tie_word_embeddings"
    )


def test_tied_head_is_divided_as_a_head(tmp_path: Path) -> None:
    table = numbered(VOCAB, HIDDEN)
    slots = {
        n: s for n, s in llama_slots().items() if n.split(".")[-2] in ("embed_tokens", "lm_head")
    }
    checkpoint = stored(tmp_path, {"model.embed_tokens.weight": table})
    binding = prove(slots, checkpoint.tensors, HUGGING_FACE, Mesh(tp=2, tp_rank=1), tied=True)
    np.testing.assert_array_equal(binding.load("lm_head.weight"), table[VOCAB // 2 :])
    np.testing.assert_array_equal(binding.load("model.embed_tokens.weight"), table)


def test_old_buffers_are_ignored() -> None:
    shapes = llama_shapes() | {"model.layers.0.self_attn.rotary_emb.inv_freq": (2,)}
    binding = prove(llama_slots(), infos(shapes), HUGGING_FACE)
    assert binding.ignored == ("model.layers.0.self_attn.rotary_emb.inv_freq",)


def test_describe() -> None:
    shapes = llama_shapes(1) | {"model.rotary_emb.inv_freq": (2,)}
    slots = llama_slots(1)
    slots["lm_head.weight"].quant = QuantFormat(DType.I4, 8)
    text = prove(slots, infos(shapes), HUGGING_FACE, Mesh(tp=2)).describe()
    lines = text.splitlines()
    assert lines[0] == "model.embed_tokens.weight [32, 16] <- model.embed_tokens.weight"
    assert (
        "model.layers.0.self_attn.qkv_proj.weight [16, 16] <-"
        " q: model.layers.0.self_attn.q_proj.weight[0:8, 0:16],"
        " k: model.layers.0.self_attn.k_proj.weight[0:4, 0:16],"
        " v: model.layers.0.self_attn.v_proj.weight[0:4, 0:16]"
    ) in lines
    assert "lm_head.weight [16, 16] as i4 groups of 8 <- lm_head.weight[0:16, 0:16]" in lines
    assert lines[-1] == "(ignored) model.rotary_emb.inv_freq"


# Mismatches.


def change(**changed: tuple[int, ...] | None) -> dict[str, TensorInfo]:
    """The checkpoint with tensors added, misshapen or (None) gone; `__` stands for a dot."""
    shapes = llama_shapes()
    for name, shape in changed.items():
        shapes.pop(name.replace("__", "."), None)
        if shape is not None:
            shapes[name.replace("__", ".")] = shape
    return infos(shapes)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            change(
                model__layers__0__mlp__up_proj__weight=None,
                model__layers__0__mlp__up__weight=(24, 16),
            ),
            "model.layers.0.mlp.gate_up_proj.weight (part 'up'): the checkpoint has no"
            " 'model.layers.0.mlp.up_proj.weight'; nearest is 'model.layers.0.mlp.up.weight'"
            " (tensor that no slot takes: 1)",
        ),
        (
            change(model__norm__weight=(17,)),
            "model.norm.weight: expected [16], the checkpoint's model.norm.weight gives [17]",
        ),
        (
            change(**{f"model__layers__{i}__mlp__down_proj__weight": (24, 16) for i in range(2)}),
            "model.layers.0.mlp.down_proj.weight: expected [16, 24], the checkpoint's"
            " model.layers.0.mlp.down_proj.weight gives [24, 16] (wrong shape: 1 more)",
        ),
        (
            change(model__layers__2__mlp__up_proj__weight=(24, 16)),
            "no slot of the model takes the checkpoint's 'model.layers.2.mlp.up_proj.weight'"
            " [24, 16]; the nearest slot is 'model.layers.1.mlp.gate_up_proj.weight'; does its"
            " config.json belong to these weights?",
        ),
        (
            change(model__layers__0__mlp__up_proj__qweight=(24, 16)),
            "the checkpoint is quantized already ('model.layers.0.mlp.up_proj.qweight' and 0 more"
            " such tensors) in a form that Paddock does not read; use the model's f32, f16 or bf16"
            " checkpoint, and let `quant=` quantize it",
        ),
        (
            change() | infos({"model.norm.weight": (16,)}, "I32"),
            "model.norm.weight: expected F32, F16, BF16 or F64, the checkpoint's"
            " 'model.norm.weight' is I32",
        ),
        (
            change() | infos({"model.norm.weight": (16,)}, "F8_E4M3"),
            "model.norm.weight: expected F32, F16, BF16 or F64, the checkpoint's"
            " 'model.norm.weight' is F8_E4M3",
        ),
    ],
)
def test_mismatches(tensors: dict[str, TensorInfo], message: str) -> None:
    with pytest.raises(WeightError) as caught:
        prove(llama_slots(), tensors, HUGGING_FACE)
    assert str(caught.value) == message


def test_all_kinds_are_counted() -> None:
    tensors = change(model__norm__weight=None, extra=(1,), lm_head__weight=(3, 3))
    with pytest.raises(WeightError, match=r"\(wrong shape: 1; tensor that no slot takes: 1\)$"):
        prove(llama_slots(), tensors, HUGGING_FACE)


def test_ranks_that_do_not_divide() -> None:
    with pytest.raises(WeightError, match=r"do not divide over tp=3; tp may be one of 1, 2, 4"):
        prove(llama_slots(), infos(llama_shapes()), HUGGING_FACE, Mesh(tp=3))


def test_groups_that_do_not_divide_a_rank_share() -> None:
    slots = llama_slots()
    slots["model.layers.0.self_attn.o_proj.weight"].quant = QuantFormat(DType.I4, 8)
    tensors = infos(llama_shapes())
    prove(slots, tensors, HUGGING_FACE, Mesh(tp=2))
    with pytest.raises(WeightError, match=r"o_proj.weight: 4 columns are not whole groups of 8"):
        prove(slots, tensors, HUGGING_FACE, Mesh(tp=4))


def test_two_slots_may_not_take_one_tensor() -> None:
    slots = {"a.weight": Parameter((4, 4)), "b.weight": Parameter((4, 4))}
    with pytest.raises(
        WeightError, match=r"'a.weight': .* are taken by both a.weight and b.weight"
    ):
        prove(slots, infos({"a.weight": (4, 4)}), [Rename("b", "a")])


def test_claims_add_up_to_the_tensor() -> None:
    tensor = TensorInfo("t", "F32", (6, 4))

    def faults(*rows: tuple[int, int]) -> list[str]:
        claims = Claims()
        claims.add("a", {str(r): Rows(Stored(tensor), *r) for r in rows})
        return claims.faults()

    assert faults((0, 6)) == faults((2, 6), (0, 2)) == faults((0, 1), (3, 6), (1, 3)) == []
    assert faults((0, 2), (3, 6)) == [
        "'t' [6, 4]: a take 20 of its 24 elements, nobody takes the others"
    ]
    assert faults((0, 4), (3, 6)) == ["'t': [0:4, 0:4] and [3:6, 0:4] of it are taken by a twice"]
    assert faults((3, 6), (0, 2), (0, 1)) == [
        "'t': [0:1, 0:4] and [0:2, 0:4] of it are taken by a twice"
    ]


def test_ranks_that_leave_rows_out_are_found() -> None:
    """A Parts that declares one share and computes another: the ranks leave rows out."""

    class Wrong(Parts):
        def slice(self, part: str, mesh: Mesh) -> slice:
            return slice(mesh.tp_rank, mesh.tp_rank + 1)

    slots = {"a": Parameter((4, 4), Shard(0, Wrong({"rows": 4})))}
    with pytest.raises(WeightError, match="the shares of 2 ranks, 0:1, 1:2, do not make up 0:4"):
        prove(slots, infos({"a": (4, 4)}), [], Mesh(tp=2))


def test_undeclared_repeats_are_found() -> None:
    class Wrong(Parts):
        def slice(self, part: str, mesh: Mesh) -> slice:
            return slice(0, 4)

    slots = {"a": Parameter((4, 4), Shard(0, Wrong({"rows": 4})))}
    with pytest.raises(WeightError, match="the shares of 2 ranks, 0:4, do not make up 0:4"):
        prove(slots, infos({"a": (4, 4)}), [], Mesh(tp=2))


# Rules, each on real data.


def test_names_match_by_whole_words() -> None:
    slots = {"mlp.gate.weight": Parameter((2,)), "mlp.gate_up_proj.weight": Parameter((3,))}
    tensors = infos({"moe.router.weight": (2,), "mlp.gate_up_proj.weight": (3,)})
    binding = prove(slots, tensors, [Rename("mlp.gate", "moe.router")])
    assert str(binding.slots["mlp.gate.weight"].parts[0]) == "moe.router.weight"
    assert not prove({}, {}, []).slots
    with pytest.raises(WeightError, match="no slot of the model takes"):
        prove({}, infos({"visual_tower.weight": (1,)}), [Ignore("visual")])
    assert prove({}, infos({"x.visual.y": (1,)}), [Ignore("visual")]).ignored == ("x.visual.y",)


def test_a_later_layout_rule_wins() -> None:
    slots = {"x.gate_up_proj.weight": Parameter((4, 2), Shard(0, Parts({"gate": 2, "up": 2})))}
    rules = [*HUGGING_FACE, Fuse("gate_up_proj", {"gate": "w1", "up": "w3"})]
    binding = prove(slots, infos({"x.w1.weight": (2, 2), "x.w3.weight": (2, 2)}), rules)
    assert [str(p) for p in binding.slots["x.gate_up_proj.weight"].parts] == [
        "x.w1.weight",
        "x.w3.weight",
    ]


def test_a_rule_that_names_other_parts() -> None:
    rules = [Fuse("qkv_proj", {"q": "q_proj", "kv": "kv_proj"})]
    with pytest.raises(
        WeightError, match=r"a.qkv_proj.weight: has the parts q, k, v, the weight m"
    ):
        prove({"a.qkv_proj.weight": qkv()}, infos({}), rules)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_fused_tensor_without_a_rule(tmp_path: Path, tp: int) -> None:
    """Phi-3: qkv_proj and gate_up_proj are stored as the slots have them."""
    slot = qkv()
    whole = numbered(*slot.shape)
    checkpoint = stored(tmp_path, {"a.qkv_proj.weight": whole})
    q, k, v = np.split(whole, [16, 24])
    for mesh in Mesh(tp=tp).ranks():
        found = bound({"a.qkv_proj.weight": slot}, checkpoint, mesh=mesh).load("a.qkv_proj.weight")
        r = mesh.tp_rank
        kv = slice(r * 8 // tp // HEAD * HEAD, r * 8 // tp // HEAD * HEAD + max(8 // tp, HEAD))
        expected = [q[r * 16 // tp : (r + 1) * 16 // tp], k[kv], v[kv]]
        np.testing.assert_array_equal(found, np.concatenate(expected))


def test_split_in_another_order(tmp_path: Path) -> None:
    slot = Parameter((6, 2), Shard(0, Parts({"gate": 3, "up": 3})))
    whole = numbered(6, 2)
    checkpoint = stored(tmp_path, {"gate_up.weight": whole})
    rules = [Split("gate_up", ("up", "gate"))]
    found = bound({"gate_up.weight": slot}, checkpoint, rules).load("gate_up.weight")
    np.testing.assert_array_equal(found, np.concatenate([whole[3:], whole[:3]]))


def test_a_fused_tensor_of_another_height() -> None:
    with pytest.raises(WeightError, match=r"part 'q'.*expected 32 rows \(of q, k, v\), found \[48"):
        prove({"qkv.weight": qkv()}, infos({"qkv.weight": (48, 16)}), [])


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_interleaved_heads(tmp_path: Path, heads: int, kv_heads: int, tp: int) -> None:
    """GPT-NeoX where heads == kv_heads, Falcon where queries share keys; weight and bias."""
    slot = qkv(heads, kv_heads)
    bias = Parameter((slot.shape[0],), slot.shard)
    each = heads // kv_heads
    q, k, v = (
        numbered(n * HEAD, HIDDEN, start=10_000 * i)
        for i, n in enumerate((heads, kv_heads, kv_heads))
    )
    groups = [
        part
        for g in range(kv_heads)
        for part in (
            q[g * each * HEAD : (g + 1) * each * HEAD],
            k[g * HEAD : (g + 1) * HEAD],
            v[g * HEAD : (g + 1) * HEAD],
        )
    ]
    fused = np.concatenate(groups)
    checkpoint = stored(tmp_path, {"attn.qkv.weight": fused, "attn.qkv.bias": fused[:, 0].copy()})
    rules: list[Rule] = [
        Interleave("query_key_value", ("q", "k", "v")),
        Rename("query_key_value", "qkv"),
    ]
    slots = {"attn.query_key_value.weight": slot, "attn.query_key_value.bias": bias}
    assert slot.shard is not None
    for mesh in Mesh(tp=tp).ranks():
        expected = np.concatenate(
            [x[slot.shard.parts.slice(p, mesh)] for p, x in (("q", q), ("k", k), ("v", v))]
        )
        binding = bound(slots, checkpoint, rules, mesh)
        np.testing.assert_array_equal(binding.load("attn.query_key_value.weight"), expected)
        np.testing.assert_array_equal(binding.load("attn.query_key_value.bias"), expected[:, 0])


def test_transposed(tmp_path: Path) -> None:
    """GPT-2's Conv1D, divided by rows and by columns."""
    whole = numbered(6, 4)  # [inputs, outputs]
    checkpoint = stored(tmp_path, {"h.c_fc.weight": whole, "h.c_proj.weight": whole + 100})
    slots = {
        "h.c_fc.weight": Parameter((4, 6), Shard(0, Parts({"up": 4}))),
        "h.c_proj.weight": Parameter((4, 6), Shard(1, Parts({"in": 6}))),
    }
    rules = [Transpose("c_fc.weight"), Transpose("c_proj.weight")]
    binding = bound(slots, checkpoint, rules, Mesh(tp=2, tp_rank=1))
    np.testing.assert_array_equal(binding.load("h.c_fc.weight"), whole.T[2:])
    np.testing.assert_array_equal(binding.load("h.c_proj.weight"), (whole + 100).T[:, 3:])
    with pytest.raises(WeightError, match=r"expected two axes, found \[4\]"):
        prove(slots, infos({"h.c_fc.weight": (4,), "h.c_proj.weight": (6, 4)}), rules)


def test_transposed_and_split(tmp_path: Path) -> None:
    """GPT-2's c_attn: one tensor [inputs, q k v]."""
    slot = qkv(4, 4)
    whole = numbered(HIDDEN, slot.shape[0])
    checkpoint = stored(tmp_path, {"c_attn.weight": whole})
    binding = bound(
        {"c_attn.weight": slot}, checkpoint, [Transpose("c_attn.weight")], Mesh(tp=4, tp_rank=2)
    )
    q, k, v = np.split(whole.T, 3)
    expected = np.concatenate([x[2 * HEAD : 3 * HEAD] for x in (q, k, v)])
    np.testing.assert_array_equal(binding.load("c_attn.weight"), expected)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_added_constant(tmp_path: Path, dtype: Any) -> None:
    """Gemma's norms: 1 + w, in f32 even where w is bf16."""
    weight = np.array([0.001, -0.5], dtype)
    checkpoint = stored(tmp_path, {"norm.weight": weight, "head.weight": weight})
    slots = {"norm.weight": Parameter((2,)), "head.weight": Parameter((2,))}
    binding = bound(slots, checkpoint, [Add("norm.weight", 1.0)])
    found = binding.load("norm.weight")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, weight.astype(np.float32) + 1)
    np.testing.assert_array_equal(binding.load("head.weight"), weight)
    assert str(binding.slots["norm.weight"].parts[0]) == "norm.weight + 1"


@pytest.mark.parametrize("tp", [1, 2])
def test_stacked_experts(tmp_path: Path, tp: int) -> None:
    """Mixtral: one slot for all experts, w1 and w3 fused along its second axis."""
    experts = 3
    w1, w3 = numbered(experts, 4, 2), numbered(experts, 4, 2, start=1000)
    w2 = numbered(experts, 2, 4, start=2000)
    arrays = {
        f"moe.experts.{e}.{n}.weight": w[e]
        for e in range(experts)
        for n, w in (("w1", w1), ("w2", w2), ("w3", w3))
    }
    slots = {
        "mlp.experts.gate_up_proj.weight": Parameter(
            (experts, 8, 2), Shard(1, Parts({"gate": 4, "up": 4}))
        ),
        "mlp.experts.down_proj.weight": Parameter((experts, 2, 4), Shard(2, Parts({"in": 4}))),
    }
    rules: list[Rule] = [
        *HUGGING_FACE,
        Stack("experts.gate_up_proj", {"gate": "experts.{e}.w1", "up": "experts.{e}.w3"}),
        Stack("experts.down_proj", {"in": "experts.{e}.w2"}),
        Rename("mlp.experts", "moe.experts"),
    ]
    checkpoint = stored(tmp_path, arrays)
    for mesh in Mesh(tp=tp).ranks():
        binding = bound(slots, checkpoint, rules, mesh)
        mine = slice(mesh.tp_rank * 4 // tp, (mesh.tp_rank + 1) * 4 // tp)
        np.testing.assert_array_equal(
            binding.load("mlp.experts.gate_up_proj.weight"),
            np.concatenate([w1[:, mine], w3[:, mine]], 1),
        )
        np.testing.assert_array_equal(binding.load("mlp.experts.down_proj.weight"), w2[:, :, mine])
    del arrays["moe.experts.2.w3.weight"]
    with pytest.raises(WeightError, match=r"has no 'moe.experts.2.w3.weight'"):
        prove(slots, infos({n: a.shape for n, a in arrays.items()}), rules)


def test_conversion_on_load(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    checkpoint = stored(tmp_path, {"a": values, "b": values.astype(np.float16)})
    slots = {"a": Parameter((4, 4)), "b": Parameter((4, 4), dtype=DType.F32)}
    binding = bound(slots, checkpoint)
    assert binding.load("a").dtype == np.float32
    assert binding.load("b").dtype == np.float32  # the slot's own
    as_bf16 = binding.load("a", DType.BF16)
    np.testing.assert_array_equal(as_bf16, values.astype(ml_dtypes.bfloat16))


def test_tie_to_no_slot() -> None:
    with pytest.raises(WeightError, match="ties it to 'b', which is no slot"):
        prove({"a": Parameter((1,))}, {}, [Tie("a", to="b")], tied=True)


# All ranks together hold the checkpoint, and each reads its own bytes alone.


@st.composite
def slots_and_mesh(draw: st.DrawFn) -> tuple[Parameter, Mesh]:
    tp = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    repeat = draw(st.booleans())
    unit = draw(st.integers(1, 4))
    names = draw(st.sampled_from([("",), ("in",), ("gate", "up"), ("q", "k", "v")]))
    sizes = {}
    for name in names:
        divisors = [n for n in range(1, tp + 1) if tp % n == 0]
        if repeat and draw(st.booleans()):
            units = draw(st.sampled_from(divisors))
        else:
            units = tp * draw(st.integers(1, 3))
        sizes[name] = units * unit
    axes = draw(st.integers(1, 3))
    dim = draw(st.integers(0, axes - 1)) if len(names) == 1 else 0
    shape = [draw(st.integers(1, 5)) for _ in range(axes)]
    shape[dim] = sum(sizes.values())
    shard = None if draw(st.integers(0, 9)) == 0 else Shard(dim, Parts(sizes, unit, repeat))
    return Parameter(tuple(shape), shard), Mesh(tp=tp)


@settings(max_examples=150, deadline=None)
@given(slots_and_mesh(), st.booleans())
def test_ranks_make_up_the_tensor(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Parameter, Mesh], fused: bool
) -> None:
    slot, mesh = drawn
    folder = tmp_path_factory.mktemp("checkpoint")
    whole = numbered(*slot.shape)
    axis = slot.shard.dim if slot.shard else 0
    arrays: dict[str, Array] = {"x.w": whole}
    rules: list[Rule] = []
    if fused and len(slot.parts) > 1:
        ends = np.cumsum(list(slot.parts.values()))[:-1]
        arrays = {
            f"x.{part}_proj": np.ascontiguousarray(piece)
            for part, piece in zip(slot.parts, np.split(whole, ends, axis), strict=True)
        }
        rules.append(Fuse("w", {part: f"{part}_proj" for part in slot.parts}))
    checkpoint = stored(folder, arrays)
    seen = np.zeros(slot.shape, int)
    for rank in mesh.ranks():
        before = checkpoint.bytes_read
        binding = bound({"x.w": slot}, checkpoint, rules, rank)
        assert checkpoint.bytes_read == before  # the proof reads nothing
        found = binding.load("x.w")
        assert found.shape == slot.local_shape(rank)
        assert checkpoint.bytes_read - before == found.nbytes  # nobody else's bytes
        np.testing.assert_array_equal(np.sort(np.ravel(found)), np.unique(found))
        seen.reshape(-1)[found.astype(int).ravel()] += 1
        start = 0
        for part in binding.slots["x.w"].parts:  # in the order of the parts, each in its place
            stop = start + part.shape[axis]
            mine = np.take(found, range(start, stop), axis)
            of_part = np.take(whole, rows_of(slot, part.name), axis)
            np.testing.assert_array_equal(mine, of_part[slot.local_slice(part.name, rank)])
            start = stop
    for name, size in slot.parts.items():
        if slot.shard is None:
            times = mesh.tp
        else:
            times = max(1, mesh.tp // (size // slot.shard.parts.unit))
        assert (np.take(seen, rows_of(slot, name), axis) == times).all()


def rows_of(slot: Parameter, part: str) -> range:
    """Where a part lies in the whole slot, along the axis of its parts."""
    before = list(slot.parts)[: list(slot.parts).index(part)]
    start = sum(slot.parts[name] for name in before)
    return range(start, start + slot.parts[part])


@settings(max_examples=60, deadline=None)
@given(slots_and_mesh(), st.integers(1, 7))
def test_rows_come_in_any_chunks(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Parameter, Mesh], chunk: int
) -> None:
    slot, mesh = drawn
    checkpoint = stored(tmp_path_factory.mktemp("checkpoint"), {"x": numbered(*slot.shape)})
    for rank in mesh.ranks():
        binding = bound({"x": slot}, checkpoint, mesh=rank)
        rows = binding.slots["x"].shape[0]
        chunks = [
            binding.slots["x"].rows(start, min(start + chunk, rows))
            for start in range(0, rows, chunk)
        ]
        np.testing.assert_array_equal(np.concatenate(chunks), binding.load("x"))
