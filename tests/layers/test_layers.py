"""Layers by themselves: options that no architecture of the zoo has on, and what they refuse."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import paddock.graph.ops as F
from paddock.engines.reference.evaluate import evaluate
from paddock.graph import (
    Array,
    DType,
    Graph,
    GraphError,
    Mesh,
    Module,
    ModuleList,
    Tensor,
    use_graph,
    use_mesh,
)
from paddock.graph.ops import Source, input_tensor
from paddock.graph.tensor import ROWS, TOKENS
from paddock.layers import (
    MLP,
    Attention,
    Embedding,
    GatedMLP,
    HeadwiseLayerNorm,
    JointRMSNorm,
    LayerNorm,
    Pipeline,
    PositionEmbedding,
    RMSNorm,
    Rotary,
    RotaryScaling,
    RowLinear,
    Step,
    VocabHead,
    activate,
    trace,
)

TOKEN_COUNT, HIDDEN = 7, 12
STEP: dict[str, Array] = {
    "token_ids": np.arange(TOKEN_COUNT),
    "positions": np.arange(TOKEN_COUNT),
    "sequence_starts": np.array([0, TOKEN_COUNT]),
    "past_lengths": np.array([0]),
    "block_table": np.array([0]),
    "block_starts": np.array([0, 1]),
    "sequence_slots": np.array([0]),
    "token_types": np.zeros(TOKEN_COUNT, np.int64),
    "logit_rows": np.arange(TOKEN_COUNT),
    "source_ids": np.zeros(0, np.int64),
    "source_positions": np.zeros(0, np.int64),
    "source_starts": np.array([0, 0]),
    "source_lengths": np.array([0]),
    "source_table": np.zeros(0, np.int64),
    "source_table_starts": np.array([0, 0]),
    "image_positions": np.zeros(0, np.int64),
    "image_starts": np.array([0]),
    "image_rows": np.zeros(TOKEN_COUNT, np.int64),
}


def run(layer: Module, x: Array, *, step: bool = False) -> tuple[Array, Mapping[str, Array]]:
    """The layer on x [tokens, hidden] in f64, with random weights; and those, by slot."""
    layer.assign_names()
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(slot.shape) for name, slot in layer.named_parameters()}
    graph = Graph(DType.F64)
    with use_graph(graph):
        tensor = input_tensor("x", DType.F64, TOKENS, x.shape[1])
        made = layer(tensor, Step.inputs(64)) if step else layer(tensor)
        graph.outputs = made if isinstance(made, tuple) else (made,)
    graph.verify()
    values: dict[Source, Array] = {}
    for node in graph.nodes:
        match node.op:
            case F.Weight(key):
                values[node.op] = weights[key]
            case F.CacheBlocks(_, _, shape):
                axes = [d for d in shape if isinstance(d, int)]
                values[node.op] = np.zeros((1, TOKEN_COUNT, *axes))
            case F.Input(key):
                values[node.op] = x if key == "x" else STEP[key]
    return evaluate(graph, values)[0], weights


def x_of(width: int = HIDDEN) -> Array:
    return np.random.default_rng(1).standard_normal((TOKEN_COUNT, width))


def softmax(s: Array) -> Array:
    e = np.exp(s - s.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def dense_attention(w: Mapping[str, Array], x: Array, heads: int, **options: Any) -> Array:
    """One head after the other, with what `options` asks for."""
    qkv = x @ w["qkv_proj.weight"].T + w.get("qkv_proj.bias", 0.0)
    bound = options.get("clip", 99)
    size = qkv.shape[1] // (heads + 2)
    q, k, v = np.split(qkv, [heads * size, (heads + 1) * size], axis=1)
    v = np.clip(v, -bound, bound)
    out = []
    for h in range(heads):
        qh, kh = q[:, h * size : (h + 1) * size], k
        if "q_norm.weight" in w:
            qh, kh = (
                y / np.sqrt((y**2).mean(-1, keepdims=True) + options["eps"]) * w[f"{n}_norm.weight"]
                for y, n in ((qh, "q"), (kh, "k"))
            )
        qh, kh = np.clip(qh, -bound, bound), np.clip(kh, -bound, bound)
        if "rotate" in options:
            qh, kh = options["rotate"](qh), options["rotate"](kh)
        scores = qh @ kh.T * options.get("scale", size**-0.5)
        if cap := options.get("soft_cap"):
            scores = cap * np.tanh(scores / cap)
        i, j = np.indices(scores.shape)
        slope = (2**-4, 2**-8, 2**-2)[h]  # of 3 heads, by the reference code of ALiBi
        scores = scores - options.get("alibi", 0.0) * slope * (i - j)
        seen = (j <= i) & (j > i - options.get("window", 99))
        out.append(softmax(np.where(seen, scores, -np.inf)) @ v)
    return np.concatenate(out, 1) @ w["o_proj.weight"].T + w.get("o_proj.bias", 0.0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"soft_cap": 2.0},
        {"scale": 0.3},
        {"window": 3},
        {"q_norm": RMSNorm(4, eps=0.2), "k_norm": RMSNorm(4, eps=0.2)},
        {"alibi": 0.7},
        {"clip": 0.4},
        {"bias": True, "out_bias": True},
        {"bias": True},
        {
            "out_bias": True,
            "soft_cap": 1.5,
            "scale": 0.7,
            "window": 2,
            "q_norm": RMSNorm(4, eps=0.2),
            "k_norm": RMSNorm(4, eps=0.2),
            "alibi": 1.0,
            "clip": 0.9,
        },
    ],
)
def test_attention_with_every_option(options: dict[str, Any]) -> None:
    layer = Attention(HIDDEN, heads=3, kv_heads=1, head_dim=4, rotary=None, **options)
    y, weights = run(layer, x_of(), step=True)
    truth = dense_attention(weights, x_of(), 3, **options, eps=0.2)
    np.testing.assert_allclose(y, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_attention_with_rotary_pairs_of_either_kind(interleaved: bool, partial: float) -> None:
    scaling = RotaryScaling(rope_theta=50.0, partial_rotary_factor=partial)
    rotary = Rotary(8, scaling, interleaved=interleaved)
    layer = Attention(HIDDEN, heads=3, kv_heads=1, head_dim=8, rotary=rotary)
    y, weights = run(layer, x_of(), step=True)
    dim = int(8 * partial)

    def rotate(z: Array) -> Array:
        z = z.copy()
        for i in range(dim // 2):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + dim // 2)
            angle = np.arange(len(z)) * 50.0 ** (-2 * i / dim)
            z[:, a], z[:, b] = (
                z[:, a] * np.cos(angle) - z[:, b] * np.sin(angle),
                z[:, b] * np.cos(angle) + z[:, a] * np.sin(angle),
            )
        return z

    truth = dense_attention(weights, x_of(), 3, rotate=rotate)
    np.testing.assert_allclose(y, truth, rtol=2e-5, atol=2e-5)  # angles are f32


@pytest.mark.parametrize("bias", [False, True])
def test_mlps(bias: bool) -> None:
    y, w = run(GatedMLP(HIDDEN, 10, activation="tanh", bias=bias), x_of())
    gate, up = np.split(x_of() @ w["gate_up_proj.weight"].T + w.get("gate_up_proj.bias", 0.0), 2, 1)
    truth = (np.tanh(gate) * up) @ w["down_proj.weight"].T + w.get("down_proj.bias", 0.0)
    np.testing.assert_allclose(y, truth, rtol=1e-12, atol=1e-12)

    y, w = run(MLP(HIDDEN, 10, activation="relu", bias=bias), x_of())
    inner = np.maximum(x_of() @ w["up_proj.weight"].T + w.get("up_proj.bias", 0.0), 0)
    truth = inner @ w["down_proj.weight"].T + w.get("down_proj.bias", 0.0)
    np.testing.assert_allclose(y, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(bias: bool) -> None:
    y, w = run(LayerNorm(HIDDEN, eps=0.1, bias=bias), x_of())
    x = x_of()
    truth = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 0.1) * w["weight"]
    np.testing.assert_allclose(y, truth + w.get("bias", 0.0), rtol=1e-12, atol=1e-12)


def test_norms_of_heads() -> None:
    """Their own weights for each head; one mean for all heads together; none at all."""
    x = x_of()
    heads = x.reshape(TOKEN_COUNT, 3, 4)

    class Headwise(Module):
        def __init__(self, norm: Module) -> None:
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            return F.reshape(self.norm(F.reshape(x, 3, 4)), HIDDEN)

    y, w = run(Headwise(HeadwiseLayerNorm(3, 4, eps=0.1)), x)
    centred = heads - heads.mean(-1, keepdims=True)
    truth = centred / np.sqrt(heads.var(-1, keepdims=True) + 0.1) * w["norm.weight"]
    np.testing.assert_allclose(y, truth.reshape(x.shape), rtol=1e-12, atol=1e-12)

    y, w = run(Headwise(JointRMSNorm(3, 4, eps=0.1)), x)
    truth = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * w["norm.weight"]
    np.testing.assert_allclose(y, truth, rtol=1e-12, atol=1e-12)

    y, w = run(LayerNorm(HIDDEN, eps=0.1, scale=False), x)
    assert not w
    truth = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 0.1)
    np.testing.assert_allclose(y, truth, rtol=1e-12, atol=1e-12)


class Positions(Module):
    def __init__(self) -> None:
        self.table = PositionEmbedding(9, HIDDEN, offset=2)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        return x + self.table(step.positions)


def test_learned_positions_begin_behind_the_offset() -> None:
    y, w = run(Positions(), x_of(), step=True)
    np.testing.assert_allclose(y - x_of(), w["table.weight"][2 : TOKEN_COUNT + 2], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("relu2", lambda x: np.maximum(x, 0) ** 2),
        ("quick_gelu", lambda x: x / (1 + np.exp(-1.702 * x))),
        ("swish", lambda x: x / (1 + np.exp(-x))),
    ],
)
def test_activations_by_their_names(name: str, truth: Callable[[Array], Array]) -> None:
    x = x_of()
    graph = Graph(DType.F64)
    with use_graph(graph):
        graph.outputs = (activate(input_tensor("x", DType.F64, TOKENS, HIDDEN), name),)
    source = graph.nodes[0].op
    assert isinstance(source, Source)
    np.testing.assert_allclose(evaluate(graph, {source: x})[0], truth(x), rtol=1e-12)


def test_a_head_scales_and_bounds_its_logits() -> None:
    y, w = run(VocabHead(HIDDEN, 20, scale=0.3, soft_cap=0.5), x_of(), step=True)
    truth = 0.5 * np.tanh(x_of() @ w["weight"].T * 0.3 / 0.5)
    np.testing.assert_allclose(y, truth, rtol=1e-5, atol=1e-6)


def test_a_head_with_a_bias_gives_f32_rows() -> None:
    y, w = run(VocabHead(HIDDEN, 20, bias=True), x_of(), step=True)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, x_of() @ w["weight"].T + w["bias"], rtol=1e-6, atol=1e-6)


class GPT(Module):
    """A model of the layers that Llama does not use: LayerNorm, plain MLP, biases, no rotary."""

    def __init__(self) -> None:
        self.embed = Embedding(9, HIDDEN)
        self.blocks = Pipeline(GPTBlock() for _ in range(3))
        self.norm = LayerNorm(HIDDEN, eps=1e-5)
        self.lm_head = VocabHead(HIDDEN, 9, bias=True)

    def forward(self, step: Step) -> Tensor:
        x = self.blocks(self.embed(step.token_ids), step)
        return self.lm_head(self.norm(x), step)


class GPTBlock(Module):
    def __init__(self) -> None:
        self.ln_1 = LayerNorm(HIDDEN, eps=1e-5)
        self.attn = Attention(
            HIDDEN, heads=3, kv_heads=3, head_dim=4, rotary=None, bias=True, out_bias=True
        )
        self.ln_2 = LayerNorm(HIDDEN, eps=1e-5)
        self.mlp = MLP(HIDDEN, 24, activation="gelu_tanh")

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attn(self.ln_1(x), step)
        return x + self.mlp(self.ln_2(x))


def test_another_family_is_composed_of_the_same_layers() -> None:
    graph = trace(GPT(), max_context=16)
    assert str(graph.outputs[0].type) == "f32[rows, 9]"
    # Embeddings; rows of what goes into the last attention's sum, and of what comes out of it.
    assert [n.op.name for n in graph.find(F.Gather)] == ["gather"] * 3
    # The rows are picked before the last norm, which has a bias here.
    (last,) = (n for n in graph.find(F.LayerNorm) if n.path == "norm")
    assert last.outputs[0].type.shape == (ROWS, HIDDEN)
    for mesh in Mesh(tp=3, pp=3).ranks():
        trace(GPT(), max_context=16, mesh=mesh)


def test_row_linear_adds_its_bias_once() -> None:
    """After the sum over ranks, not on each of them."""
    layer = RowLinear(8, 4, bias=True)
    layer.assign_names("down_proj.")
    graph = Graph()
    with use_graph(graph), use_mesh(Mesh(tp=2)):
        graph.outputs = (layer(input_tensor("x", DType.F32, TOKENS, 4)),)
    assert [n.op.name for n in graph.nodes if n.inputs] == ["linear", "all_reduce", "add"]


def test_a_context_of_nothing_is_refused() -> None:
    with pytest.raises(GraphError, match="max_context is 0, expected 1 token at least"):
        trace(GPT(), max_context=0)


def test_an_op_that_does_not_fit_is_named_with_its_module_and_line() -> None:
    model = GPT()
    model.blocks[1].mlp = MLP(HIDDEN + 1, 24)
    with pytest.raises(
        GraphError,
        match=r"^blocks\.1\.mlp\.up_proj \(layers/linear\.py:\d+\): linear: expected .*\[24, 13\]",
    ):
        trace(model, max_context=16)


def test_a_list_of_modules_is_no_module_of_its_own() -> None:
    with use_graph(Graph()), pytest.raises(GraphError, match="ModuleList declares no forward"):
        ModuleList([GPTBlock()])()


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
def test_attention_against_torch() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
    layer = Attention(HIDDEN, heads=4, kv_heads=2, head_dim=3, rotary=None)
    y, w = run(layer, x_of(), step=True)
    q, k, v = np.split(x_of() @ w["qkv_proj.weight"].T, [12, 18], axis=1)
    tensors = [
        torch.tensor(t.reshape(TOKEN_COUNT, -1, 3).swapaxes(0, 1)[None].copy()) for t in (q, k, v)
    ]
    attend: Any = torch.nn.functional.scaled_dot_product_attention
    heads = attend(*tensors, is_causal=True, enable_gqa=True)[0]
    truth = heads.numpy().swapaxes(0, 1).reshape(TOKEN_COUNT, 12) @ w["o_proj.weight"].T
    np.testing.assert_allclose(y, truth, rtol=1e-10, atol=1e-10)
