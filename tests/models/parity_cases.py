"""Tiny random checkpoints of every architecture, as config.json describes them.

The same dictionaries are read by Paddock and by transformers, and the same weights are given to
both. `python -m tests.golden.make_parity` keeps what transformers makes of them, for machines
where it is not installed.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddock.graph import Array

Config = dict[str, Any]

SIZES: Config = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    # Large, so that a wrong one shows.
    "rms_norm_eps": 0.05,
    "rope_theta": 500.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA = SIZES | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
MISTRAL = SIZES | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = SIZES | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = SIZES | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}
SMOLLM3 = SIZES | {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "num_hidden_layers": 5,
}
SLIDE, FULL = "sliding_attention", "full_attention"


def _rope(kind: str, **fields: Any) -> Config:
    """`rope_parameters` as transformers writes it since version 5."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **fields}}


CASES: dict[str, Config] = {
    "llama": LLAMA,
    "llama-biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama-tied": LLAMA | {"tie_word_embeddings": True},
    "llama-wide-heads": LLAMA | {"head_dim": 32},
    "llama-narrow-heads": LLAMA | {"head_dim": 8},
    "llama-multi-query": LLAMA | {"num_key_value_heads": 1},
    "llama-multi-head": LLAMA | {"num_key_value_heads": 4},
    "llama-one-layer": LLAMA | {"num_hidden_layers": 1},
    "llama-gelu": LLAMA | {"hidden_act": "gelu"},
    "llama-gelu-tanh": LLAMA | {"hidden_act": "gelu_pytorch_tanh"},
    "llama-gelu-new": LLAMA | {"hidden_act": "gelu_new"},
    "llama-relu": LLAMA | {"hidden_act": "relu"},
    "llama-linear": LLAMA | _rope("linear", factor=3.0),
    "llama-linear-older": LLAMA | {"rope_scaling": {"type": "linear", "factor": 3.0}},
    "llama-dynamic": LLAMA | _rope("dynamic", factor=2.5) | {"max_position_embeddings": 20},
    "llama-yarn": LLAMA | _rope("yarn", factor=4.0, original_max_position_embeddings=16),
    "llama-yarn-older": LLAMA
    | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "llama-yarn-tuned": LLAMA
    | _rope(
        "yarn",
        factor=4.0,
        original_max_position_embeddings=16,
        beta_fast=3.0,
        beta_slow=0.4,
        attention_factor=1.3,
        truncate=False,
    ),
    "llama-yarn-mscale": LLAMA
    | _rope("yarn", factor=8.0, original_max_position_embeddings=8, mscale=1.4, mscale_all_dim=0.6),
    "llama-llama3": LLAMA
    | _rope(
        "llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
    "llama-longrope": LLAMA
    | _rope(
        "longrope",
        short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        long_factor=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        original_max_position_embeddings=8,
    ),
    "mistral": MISTRAL | {"sliding_window": 5},
    "mistral-no-window": MISTRAL | {"sliding_window": None},
    "mistral-wide-window": MISTRAL | {"sliding_window": 16, "head_dim": 32},
    "mistral-window-of-one": MISTRAL | {"sliding_window": 1},
    "qwen2": QWEN2,
    "qwen2-tied-multi-query": QWEN2 | {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "qwen2-upper-windows": QWEN2
    | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen2-layer-types": QWEN2
    | {"use_sliding_window": True, "sliding_window": 6, "layer_types": [SLIDE, FULL, SLIDE]},
    "qwen2-yarn": QWEN2
    | {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}},
    "qwen3": QWEN3,
    "qwen3-tied-biases": QWEN3 | {"tie_word_embeddings": True, "attention_bias": True},
    "qwen3-layer-types": QWEN3
    | {"use_sliding_window": True, "sliding_window": 4, "layer_types": [FULL, SLIDE, FULL]},
    "smollm3": SMOLLM3,
    "smollm3-listed": SMOLLM3 | {"no_rope_layers": [0, 1, 0, 1, 1], "tie_word_embeddings": True},
    "smollm3-windows": SMOLLM3
    | {
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 6,
        "attention_bias": True,
        "mlp_bias": True,
    },
}
# One of each architecture, with its peculiarities on.
CHARACTERISTIC = ("llama-biases", "mistral", "qwen2-upper-windows", "qwen3", "smollm3-windows")


@dataclass(frozen=True)
class Case:
    """A checkpoint and two sequences of token ids to run it on."""

    name: str
    config: Config

    @property
    def max_context(self) -> int:
        """For scalings that depend on the length: what transformers' see in the sequence of 29."""
        return len(self.sequences[0])

    @property
    def sequences(self) -> list[Array]:
        random = _random(f"tokens of {self.name}")
        vocab = self.config["vocab_size"]
        return [random.randint(0, vocab, length).astype(np.int64) for length in (29, 11)]

    def checkpoint(self) -> dict[str, Array]:
        """Tensors by the names that a checkpoint of this config has, f32."""
        cfg = self.config
        hidden, inner, heads = (
            cfg["hidden_size"],
            cfg["intermediate_size"],
            cfg["num_attention_heads"],
        )
        head_dim = cfg.get("head_dim") or hidden // heads
        q, kv = heads * head_dim, cfg["num_key_value_heads"] * head_dim
        family = cfg["model_type"]
        qkv_bias = family == "qwen2" or cfg.get("attention_bias", False)
        out_bias = family != "qwen2" and cfg.get("attention_bias", False)
        matrices = {
            "self_attn.q_proj": (q, hidden, qkv_bias),
            "self_attn.k_proj": (kv, hidden, qkv_bias),
            "self_attn.v_proj": (kv, hidden, qkv_bias),
            "self_attn.o_proj": (hidden, q, out_bias),
            "mlp.gate_proj": (inner, hidden, cfg.get("mlp_bias", False)),
            "mlp.up_proj": (inner, hidden, cfg.get("mlp_bias", False)),
            "mlp.down_proj": (hidden, inner, cfg.get("mlp_bias", False)),
        }
        norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
        if family == "qwen3":
            norms |= {"self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim}

        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (cfg["vocab_size"], hidden),
            "model.norm.weight": (hidden,),
        }
        for layer in range(cfg["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            for name, (rows, columns, bias) in matrices.items():
                shapes[f"{prefix}{name}.weight"] = (rows, columns)
                if bias:
                    shapes[f"{prefix}{name}.bias"] = (rows,)
            for name, size in norms.items():
                shapes[f"{prefix}{name}.weight"] = (size,)
        if not cfg["tie_word_embeddings"]:
            shapes["lm_head.weight"] = (cfg["vocab_size"], hidden)
        return {name: self._values(name, shape) for name, shape in shapes.items()}

    def _values(self, name: str, shape: tuple[int, ...]) -> Array:
        values = _random(f"{self.name} {name}").standard_normal(shape)
        if "norm" in name:
            values = 1 + 0.3 * values
        elif name.endswith("bias"):
            values = 0.5 * values
        elif name != "model.embed_tokens.weight":
            # Large enough for attention to be sharp: then a wrong key or angle is far off.
            values = 1.5 * values / np.sqrt(shape[1])
        return values.astype(np.float32)


def case(name: str) -> Case:
    return Case(name, CASES[name])


def _random(label: str) -> np.random.RandomState:
    """NumPy's legacy generator: the one whose values are promised never to change."""
    return np.random.RandomState(zlib.crc32(label.encode()))
