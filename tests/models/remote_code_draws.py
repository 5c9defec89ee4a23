"""Decoders whose own code lives in their repositories, which transformers cannot run here.

Each is the mathematics of a class that transformers has: its twin. The twin makes the logits, its
weights are laid out by hand as the family publishes them, and config.json has the family's names.
Baichuan's ALiBi has no twin (`test_remote_code_decoders.py` writes it out).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from paddock.graph import Array
from tests.models.decoder_draws import Config, Draw

Tensors = dict[str, Array]


@dataclass(frozen=True)
class Remote:
    """`draw` gives the twin's config; `config` and `tensors` what the family publishes of it."""

    twin: tuple[str, str]  # class and model_type
    draw: Callable[[Draw], Config]
    config: Callable[[Config], Config]
    tensors: Callable[[Tensors, Config], Tensors]


def renamed(tensors: Mapping[str, Array], words: Mapping[str, str]) -> Tensors:
    """The tensors under other names, whole dotted words replaced, in the order given."""
    made = {}
    for name, array in tensors.items():
        dotted = f".{name}."
        for old, new in words.items():
            dotted = dotted.replace(f".{old}.", f".{new}.")
        made[dotted[1:-1]] = array
    return made


def _only(config: Config, *names: str) -> Config:
    return {name: config[name] for name in names if name in config}


_COMMON = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "tie_word_embeddings", "bos_token_id", "eos_token_id"),
)


def _llama(draw: Draw) -> Config:
    return draw.llama() | {
        "attention_bias": draw.coin(),
        "rope_theta": draw.one_of(500.0, 10_000.0),
        "rope_scaling": draw.one_of(None, {"rope_type": "linear", "factor": 2.0}),
    }


def _fused_by_key_head(tensors: Tensors, config: Config) -> Tensors:
    """wqkv: of each key head its queries, its key, its value."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    made = dict(tensors)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.self_attn."
        for kind in ("weight", "bias"):
            if f"{prefix}q_proj.{kind}" not in made:
                continue
            q, k, v = (made.pop(f"{prefix}{p}_proj.{kind}") for p in "qkv")
            size = len(q) // heads
            grouped = [
                np.concatenate(
                    [
                        q[g * heads // kv_heads * size : (g + 1) * heads // kv_heads * size],
                        k[g * size : (g + 1) * size],
                        v[g * size : (g + 1) * size],
                    ]
                )
                for g in range(kv_heads)
            ]
            made[f"{prefix}wqkv.{kind}"] = np.concatenate(grouped)
    return made


def _joined(tensors: Tensors, parts: tuple[str, ...], into: str) -> Tensors:
    """Tensors that differ in one word, one behind the other under another word."""
    made = dict(tensors)
    for name in tensors:
        if f".{parts[0]}." in name:
            pieces = [made.pop(name.replace(f".{parts[0]}.", f".{p}.")) for p in parts]
            made[name.replace(f".{parts[0]}.", f".{into}.")] = np.concatenate(pieces)
    return made


INTERNLM2 = Remote(
    ("LlamaForCausalLM", "llama"),
    _llama,
    lambda c: (
        _only(c, *_COMMON, "num_hidden_layers", "max_position_embeddings", "rms_norm_eps")
        | _only(c, "rope_theta", "rope_scaling")
        | {"model_type": "internlm2", "bias": c["attention_bias"], "hidden_act": "silu"}
    ),
    lambda t, c: renamed(
        _fused_by_key_head(t, c),
        {
            "self_attn.wqkv": "attention.wqkv",
            "self_attn.o_proj": "attention.wo",
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.up_proj": "feed_forward.w3",
            "mlp.down_proj": "feed_forward.w2",
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "ffn_norm",
            "model.embed_tokens": "model.tok_embeddings",
            "lm_head": "output",
        },
    ),
)

INTERNLM3 = Remote(
    ("LlamaForCausalLM", "llama"),
    lambda d: (fields := _llama(d)) | {"mlp_bias": fields["attention_bias"]},
    lambda c: (
        _only(c, *_COMMON, "num_hidden_layers", "max_position_embeddings", "rms_norm_eps")
        | _only(c, "rope_theta", "rope_scaling")
        | {"model_type": "internlm3", "bias": c["mlp_bias"], "qkv_bias": c["attention_bias"]}
    ),
    lambda t, c: t,
)

EXAONE = Remote(
    ("LlamaForCausalLM", "llama"),
    lambda d: _llama(d) | {"attention_bias": False},
    lambda c: (
        _only(c, *_COMMON, "max_position_embeddings", "rope_theta", "rope_scaling")
        | {
            "model_type": "exaone",
            "num_layers": c["num_hidden_layers"],
            "activation_function": "silu",
            "layer_norm_epsilon": c["rms_norm_eps"],
            "embed_dropout": 0.1,
        }
    ),
    lambda t, c: renamed(
        t,
        {
            "self_attn.o_proj": "attn.attention.out_proj",
            **{f"self_attn.{p}_proj": f"attn.attention.{p}_proj" for p in "qkv"},
            "mlp.gate_proj": "mlp.c_fc_0",
            "mlp.up_proj": "mlp.c_fc_1",
            "mlp.down_proj": "mlp.c_proj",
            "input_layernorm": "ln_1",
            "post_attention_layernorm": "ln_2",
            "model.embed_tokens": "transformer.wte",
            "model.layers": "transformer.h",
            "model.norm": "transformer.ln_f",
        },
    ),
)


def _minicpm(draw: Draw) -> Config:
    fields = _llama(draw) | {"attention_bias": False}
    head_dim = fields["hidden_size"] // fields["num_attention_heads"]
    base = draw.one_of(8, 24)
    return fields | {
        "embedding_multiplier": draw.one_of(1.0, 12.0),
        "residual_multiplier": draw.one_of(1.4, 0.7) / draw.layers**0.5,
        "attention_multiplier": head_dim**-0.5,
        "logits_scaling": fields["hidden_size"] / base,
    }


MINICPM = Remote(
    ("GraniteForCausalLM", "granite"),
    _minicpm,
    lambda c: (
        _only(c, *_COMMON, "num_hidden_layers", "max_position_embeddings", "rms_norm_eps")
        | _only(c, "rope_theta", "rope_scaling")
        | {
            "model_type": "minicpm",
            "scale_emb": c["embedding_multiplier"],
            "scale_depth": c["residual_multiplier"] * c["num_hidden_layers"] ** 0.5,
            "dim_model_base": round(c["hidden_size"] / c["logits_scaling"]),
        }
    ),
    lambda t, c: t,
)

BAICHUAN = Remote(
    ("LlamaForCausalLM", "llama"),
    lambda d: (
        (fields := _llama(d))
        | {"attention_bias": False, "num_key_value_heads": fields["num_attention_heads"]}
    ),
    lambda c: (
        _only(c, *_COMMON, "num_hidden_layers", "max_position_embeddings", "rms_norm_eps")
        | _only(c, "rope_theta", "rope_scaling")
        | {"model_type": "baichuan", "model_max_length": 64, "z_loss_weight": 0}
    ),
    lambda t, c: _joined(t, ("q_proj", "k_proj", "v_proj"), "W_pack"),
)


def _chatglm(draw: Draw) -> Config:
    return draw.llama(head_dim=draw.one_of(8, 16)) | {
        "attention_bias": draw.coin(),
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": draw.one_of(10_000.0, 500_000.0),
            "partial_rotary_factor": 0.5,
        },
    }


CHATGLM = Remote(
    ("GlmForCausalLM", "glm"),
    _chatglm,
    lambda c: (
        _only(c, "hidden_size", "num_attention_heads", "tie_word_embeddings")
        | {
            "model_type": "chatglm",
            "num_layers": c["num_hidden_layers"],
            "padded_vocab_size": c["vocab_size"],
            "vocab_size": c["vocab_size"],
            "ffn_hidden_size": c["intermediate_size"],
            "kv_channels": c["head_dim"],
            "multi_query_attention": True,
            "multi_query_group_num": c["num_key_value_heads"],
            "seq_length": c["max_position_embeddings"],
            "layernorm_epsilon": c["rms_norm_eps"],
            "add_qkv_bias": c["attention_bias"],
            "add_bias_linear": False,
            "rope_ratio": c["rope_parameters"]["rope_theta"] / 10_000,
            "rmsnorm": True,
            "post_layer_norm": True,
            "original_rope": True,
            "apply_query_key_layer_scaling": True,
            "fp32_residual_connection": False,
        }
    ),
    lambda t, c: renamed(
        _joined(t, ("q_proj", "k_proj", "v_proj"), "query_key_value"),
        {
            "self_attn.query_key_value": "self_attention.query_key_value",
            "self_attn.o_proj": "self_attention.dense",
            "mlp.gate_up_proj": "mlp.dense_h_to_4h",
            "mlp.down_proj": "mlp.dense_4h_to_h",
            "model.embed_tokens": "transformer.embedding.word_embeddings",
            "model.layers": "transformer.encoder.layers",
            "model.norm": "transformer.encoder.final_layernorm",
            "lm_head": "transformer.output_layer",
        },
    ),
)

REMOTE: dict[str, Remote] = {
    "InternLM2ForCausalLM": INTERNLM2,
    "InternLM3ForCausalLM": INTERNLM3,
    "ExaoneForCausalLM": EXAONE,
    "MiniCPMForCausalLM": MINICPM,
    "BaichuanForCausalLM": BAICHUAN,
    "ChatGLMModel": CHATGLM,
}
