"""Baichuan 2 13B, which no class of transformers computes: ALiBi and a head of unit rows, written
out after the code in its repository (modeling_baichuan.py), in f64."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from paddock.graph import Array, DType
from paddock.layers import trace
from paddock.models import baichuan, registry
from paddock.weights import BoundWeights, Checkpoint, prove, write
from tests.models.opened import OPTIONS, TOLERANCE, engine_kind
from tests.models.play import chunks, decode, play, relative_error

VOCAB, LENGTHS = 96, (41, 13)


def config(heads: int, layers: int = 2) -> dict[str, object]:
    return {
        "architectures": ["BaichuanForCausalLM"],
        "model_type": "baichuan",
        "vocab_size": VOCAB,
        "hidden_size": heads * 8,
        "intermediate_size": 40,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "model_max_length": 64,
        "tie_word_embeddings": False,
        "z_loss_weight": 0,
    }


def checkpoint(cfg: dict[str, object], seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    hidden, inner = 8 * int(str(cfg["num_attention_heads"])), 40
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (VOCAB, hidden),
    }
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.W_pack.weight": (3 * hidden, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}mlp.up_proj.weight": (inner, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, inner),
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
        }
    return {
        name: (random.standard_normal(s) * (1 if len(s) == 1 else 1.2 / s[1] ** 0.5)).astype("f4")
        for name, s in shapes.items()
    }


def expected(w: dict[str, Array], ids: Array, heads: int) -> Array:
    """Logits [tokens, vocab]."""

    def norm(x: Array, name: str) -> Array:
        return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"])

    tokens = len(ids)
    i, j = np.indices((tokens, tokens))
    x = w["model.embed_tokens.weight"][ids].astype(np.float64)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        y = norm(x, f"{prefix}input_layernorm") @ w[f"{prefix}self_attn.W_pack.weight"].T
        q, k, v = (part.reshape(tokens, heads, 8) for part in np.split(y, 3, axis=1))
        made = np.empty_like(q)
        for h in range(heads):
            scores = q[:, h] @ k[:, h].T / 8**0.5 + slopes(heads)[h] * (j - i)
            scores = np.where(j <= i, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            made[:, h] = weights / weights.sum(-1, keepdims=True) @ v[:, h]
        x = x + made.reshape(tokens, -1) @ w[f"{prefix}self_attn.o_proj.weight"].T
        y = norm(x, f"{prefix}post_attention_layernorm")
        gate, up = (y @ w[f"{prefix}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{prefix}mlp.down_proj.weight"].T
    head = w["lm_head.weight"].astype(np.float64)
    head /= np.sqrt((head**2).sum(1, keepdims=True))
    return np.asarray(norm(x, "model.norm") @ head.T)


def slopes(heads: int) -> list[float]:
    """As `_get_interleave` of the repository gives them."""
    if heads & (heads - 1) == 0:
        return [2.0 ** (-(2.0 ** -(np.log2(heads) - 3)) * (n + 1)) for n in range(heads)]
    below = 1 << (heads.bit_length() - 1)
    return slopes(below) + slopes(2 * below)[0::2][: heads - below]


@pytest.mark.parametrize("heads", [4, 5, 6])
@pytest.mark.parametrize("engine", TOLERANCE)
def test_equals_its_own_code(
    engine: str, heads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baichuan, "BAICHUAN2_VOCABULARY", VOCAB)
    cfg = config(heads)
    tensors = checkpoint(cfg, heads)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(cfg))
    architecture = registry.read(cfg)
    model = architecture.build()
    graph = trace(model, max_context=LENGTHS[0])
    rules = importlib.import_module(architecture.weight_map).HUGGING_FACE
    slots = dict(model.named_parameters())
    binding = prove(slots, Checkpoint.open(tmp_path).tensors, rules)
    bound = tmp_path / "bound"
    bound.mkdir()
    write(binding, bound, DType.F32)
    kind = engine_kind(engine)
    weights = BoundWeights.open(bound, tmp_path)
    session = kind.build(graph, OPTIONS[engine]).open(weights, OPTIONS[engine])
    random = np.random.default_rng(heads)
    sequences = [random.integers(0, VOCAB, n) for n in LENGTHS]
    truth = [expected(tensors, ids, heads) for ids in sequences]
    try:
        for plan in (chunks(LENGTHS, random), decode(LENGTHS, 30)):
            found = play(session, sequences, plan, random)
            assert relative_error(found, truth) < TOLERANCE[engine]
    finally:
        session.close()


def test_what_config_json_does_not_say_is_told_from_what_it_does() -> None:
    thirteen = registry.read(config(4))
    seven = registry.read(config(4) | {"max_position_embeddings": 4096})
    assert isinstance(thirteen.config, baichuan.BaichuanConfig)
    assert isinstance(seven.config, baichuan.BaichuanConfig)
    assert thirteen.config.has_alibi
    assert not seven.config.has_alibi
    heads = [registry.read(config(4) | {"vocab_size": n}).build() for n in (64_000, 125_696)]
    names = [[n for n, _ in model.named_parameters() if "lm_head" in n] for model in heads]
    assert names == [["lm_head.weight"], ["lm_head.unit.weight"]]
