"""Tiny configurations of decoder families, drawn: what transformers is asked to make a model of.

Sizes, biases, ties, windows, caps and rotary kinds are drawn from a generator seeded by the family
and the number of the draw, so that nobody has chosen them and every machine has the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

Config = dict[str, Any]
LENGTHS = (41, 13)  # tokens of the two sequences; windows are shorter than the longer one


class Draw:
    """One draw's generator. `divisible` keeps to sizes that two ranks can share; `layers`: of the
    families that do not say how many they have."""

    def __init__(
        self, family: str, number: int, *, divisible: bool = False, layers: int = 2
    ) -> None:
        self._random = np.random.RandomState(zlib.crc32(f"{family} {number}".encode()))
        self.layers = layers
        self._divisible, self._number = divisible, number

    def in_turn(self, *choices: Any) -> Any:
        """One for each draw in order, where a family has kinds that each must be tried."""
        return choices[self._number % len(choices)]

    def one_of(self, *choices: Any) -> Any:
        return choices[self._random.randint(len(choices))]

    def coin(self) -> bool:
        return bool(self._random.randint(2))

    def between(self, low: float, high: float) -> float:
        return round(float(self._random.uniform(low, high)), 3)

    def heads(self) -> tuple[int, int]:
        """Heads, and how many of them have keys of their own."""
        pairs = [(4, 2), (4, 4), (4, 1), (2, 2), (6, 2)]
        return self.one_of(*pairs, *([] if self._divisible else [(3, 1), (3, 3), (5, 5), (6, 3)]))

    def inner(self) -> int:
        return 2 * self.one_of(16, 20, 28) if self._divisible else self.one_of(37, 48, 63)

    def window(self) -> int:
        return self.one_of(3, 7, 16, 33)

    def layer_kinds(self) -> list[str]:
        kinds = ["sliding_attention", "full_attention"]
        some = kinds if self.coin() else kinds[::-1]
        return [some[i % 2] for i in range(self.layers)]

    def rope(self, theta: float | None = None, **fields: Any) -> Config:
        """Rotary parameters of a kind that is drawn."""
        theta = theta or self.one_of(500.0, 10_000.0)
        kinds: list[Config] = [
            {"rope_type": "default"},
            {"rope_type": "linear", "factor": self.between(1.5, 4)},
            {
                "rope_type": "yarn",
                "factor": self.one_of(2.0, 4.0),
                "original_max_position_embeddings": 16,
            },
            {
                "rope_type": "llama3",
                "factor": self.one_of(2.0, 8.0),
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ]
        return {"rope_theta": theta, **self.one_of(*kinds), **fields}

    def llama(
        self,
        *,
        head_dim: int | None = None,
        eps: str = "rms_norm_eps",
        sizes: tuple[int, ...] = (8, 12, 16),
    ) -> Config:
        """What Llama and most of its descendants have; `head_dim` None is hidden / heads, one of
        `sizes`."""
        heads, kv_heads = self.heads()
        size = head_dim or self.one_of(*sizes)
        return {
            "vocab_size": 96,
            "hidden_size": heads * size if head_dim is None else 48,
            "intermediate_size": self.inner(),
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 64,
            eps: self.one_of(1e-5, 0.05),
            "tie_word_embeddings": self.coin(),
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        } | ({} if head_dim is None else {"head_dim": head_dim})

    def gpt(self) -> Config:
        """What GPT-2 and its descendants have."""
        heads = self.heads()[0]
        return {
            "vocab_size": 96,
            "n_positions": 256,
            "n_embd": heads * self.one_of(8, 12, 16),
            "n_layer": self.layers,
            "n_head": heads,
            "n_inner": self.one_of(None, 2 * self.inner()),
            "layer_norm_epsilon": self.one_of(1e-5, 0.05),
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


FAMILIES: dict[str, Callable[[Draw], Config]] = {}


def family(
    architecture: str, model_type: str
) -> Callable[[Callable[[Draw], Config]], Callable[[Draw], Config]]:
    def add(fields: Callable[[Draw], Config]) -> Callable[[Draw], Config]:
        named = {"architectures": [architecture], "model_type": model_type}
        FAMILIES[architecture] = lambda draw: fields(draw) | named
        return fields

    return add


@family("GemmaForCausalLM", "gemma")
def gemma(draw: Draw) -> Config:
    return draw.llama(head_dim=draw.one_of(8, 24)) | {
        "attention_bias": draw.coin(),
        "rope_parameters": draw.rope(),
    }


@family("Gemma2ForCausalLM", "gemma2")
def gemma2(draw: Draw) -> Config:
    return draw.llama() | {
        "head_dim": draw.one_of(8, 24),
        "query_pre_attn_scalar": draw.one_of(5, 24),
        "sliding_window": draw.window(),
        "layer_types": draw.layer_kinds(),
        "attn_logit_softcapping": draw.one_of(2.0, 5.0, None),
        "final_logit_softcapping": draw.one_of(3.0, 10.0, None),
        "rope_parameters": draw.rope(),
    }


@family("Gemma3ForCausalLM", "gemma3_text")
def gemma3(draw: Draw) -> Config:
    return draw.llama() | {
        "head_dim": draw.one_of(8, 24),
        "query_pre_attn_scalar": draw.one_of(5, 24),
        "sliding_window": draw.window(),
        "layer_types": draw.layer_kinds(),
        "final_logit_softcapping": draw.one_of(3.0, None),
        "rope_parameters": {
            "full_attention": draw.rope(),
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    }


@family("GPT2LMHeadModel", "gpt2")
def gpt2(draw: Draw) -> Config:
    return draw.gpt() | {
        "activation_function": draw.one_of("gelu_new", "relu", "gelu"),
        "scale_attn_weights": draw.coin(),
        "scale_attn_by_inverse_layer_idx": draw.coin(),
        "tie_word_embeddings": draw.coin(),
    }


@family("ArceeForCausalLM", "arcee")
def arcee(draw: Draw) -> Config:
    return draw.llama() | {
        "attention_bias": draw.coin(),
        "mlp_bias": draw.coin(),
        "rope_parameters": draw.rope(),
    }


@family("SeedOssForCausalLM", "seed_oss")
def seed_oss(draw: Draw) -> Config:
    return draw.llama() | {
        "attention_bias": draw.coin(),
        "attention_out_bias": draw.in_turn(True, False, True),
        "mlp_bias": draw.coin(),
        "rope_parameters": draw.rope(),
    }


@family("HeliumForCausalLM", "helium")
def helium(draw: Draw) -> Config:
    # Its o_proj is [hidden, hidden], so that heads make up the hidden size.
    fields = draw.llama()
    head_dim = fields["hidden_size"] // fields["num_attention_heads"]
    return fields | {
        "head_dim": head_dim,
        "attention_bias": draw.coin(),
        "mlp_bias": draw.coin(),
        "rope_parameters": draw.rope(),
    }


@family("Ernie4_5ForCausalLM", "ernie4_5")
def ernie4_5(draw: Draw) -> Config:
    return draw.llama(head_dim=draw.one_of(8, 12)) | {
        "use_bias": draw.coin(),
        "rope_parameters": draw.rope(),
    }


@family("MinistralForCausalLM", "ministral")
def ministral(draw: Draw) -> Config:
    return draw.llama(head_dim=draw.one_of(8, 12)) | {
        "sliding_window": draw.window(),
        "layer_types": draw.layer_kinds(),
        "rope_parameters": draw.rope(),
    }


@family("GraniteForCausalLM", "granite")
def granite(draw: Draw) -> Config:
    return draw.llama() | {
        "attention_bias": draw.coin(),
        "mlp_bias": draw.coin(),
        "embedding_multiplier": draw.between(0.5, 6),
        "attention_multiplier": draw.between(0.1, 0.6),
        "residual_multiplier": draw.between(0.3, 0.9),
        "logits_scaling": draw.between(2, 8),
        "rope_parameters": draw.rope(),
    }


@family("Phi3ForCausalLM", "phi3")
def phi3(draw: Draw) -> Config:
    part = draw.one_of(0.5, 1.0)
    fields = draw.llama()
    pairs = int(fields["hidden_size"] // fields["num_attention_heads"] * part) // 2
    long = {
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "short_factor": [draw.between(1, 2) for _ in range(pairs)],
        "long_factor": [draw.between(1, 6) for _ in range(pairs)],
    }
    rope = draw.in_turn(long, {"rope_type": "default", "rope_theta": 500.0}, long)
    return fields | {
        "sliding_window": draw.one_of(None, draw.window()),
        # Both prompts on one side of what was trained: transformers takes the factors by length.
        "original_max_position_embeddings": draw.in_turn(8, 48, 48),
        "rope_parameters": rope | {"partial_rotary_factor": part},
    }


@family("PhiForCausalLM", "phi")
def phi(draw: Draw) -> Config:
    return draw.llama(eps="layer_norm_eps", sizes=(8, 16)) | {
        "hidden_act": draw.one_of("gelu_new", "relu"),
        "qk_layernorm": draw.coin(),
        "tie_word_embeddings": False,
        "rope_parameters": draw.rope(partial_rotary_factor=draw.one_of(0.5, 1.0)),
    }


@family("StableLmForCausalLM", "stablelm")
def stablelm(draw: Draw) -> Config:
    return draw.llama(eps="layer_norm_eps", sizes=(8, 16)) | {
        "use_qkv_bias": draw.coin(),
        "qk_layernorm": draw.coin(),
        "use_parallel_residual": draw.coin(),
        "rope_parameters": draw.rope(partial_rotary_factor=draw.one_of(0.25, 0.5)),
    }


@family("NemotronForCausalLM", "nemotron")
def nemotron(draw: Draw) -> Config:
    return draw.llama(head_dim=draw.one_of(8, 16), eps="norm_eps") | {
        "attention_bias": draw.coin(),
        "mlp_bias": draw.coin(),
        "rope_parameters": draw.rope(partial_rotary_factor=draw.one_of(0.25, 0.5)),
    }


@family("OlmoForCausalLM", "olmo")
def olmo(draw: Draw) -> Config:
    fields = draw.llama()
    del fields["rms_norm_eps"]
    return fields | {
        "attention_bias": draw.coin(),
        "clip_qkv": draw.one_of(None, 0.4, 1.0),
        "rope_parameters": draw.rope(),
    }


@family("Olmo2ForCausalLM", "olmo2")
def olmo2(draw: Draw) -> Config:
    return draw.llama() | {"attention_bias": draw.coin(), "rope_parameters": draw.rope()}


@family("Olmo3ForCausalLM", "olmo3")
def olmo3(draw: Draw) -> Config:
    return draw.llama() | {
        "attention_bias": draw.coin(),
        "sliding_window": draw.window(),
        "layer_types": draw.layer_kinds(),
        "rope_parameters": {
            "full_attention": draw.rope(500.0),
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    }


@family("Exaone4ForCausalLM", "exaone4")
def exaone4(draw: Draw) -> Config:
    windows = {"sliding_window": draw.window(), "layer_types": draw.layer_kinds()}
    everything = {"sliding_window": None, "layer_types": ["full_attention"] * draw.layers}
    return (
        draw.llama()
        | draw.one_of(windows, everything)
        | {
            "rope_parameters": draw.rope(),
        }
    )


@family("CohereForCausalLM", "cohere")
def cohere(draw: Draw) -> Config:
    return draw.llama(eps="layer_norm_eps") | {
        "attention_bias": draw.coin(),
        "use_qk_norm": draw.coin(),
        "logit_scale": draw.between(0.05, 2),
        "rope_parameters": draw.rope(),
    }


@family("Cohere2ForCausalLM", "cohere2")
def cohere2(draw: Draw) -> Config:
    return draw.llama(eps="layer_norm_eps") | {
        "attention_bias": draw.coin(),
        "logit_scale": draw.between(0.05, 2),
        "sliding_window": draw.window(),
        "layer_types": draw.layer_kinds(),
        "rope_parameters": draw.rope(),
    }


@family("Starcoder2ForCausalLM", "starcoder2")
def starcoder2(draw: Draw) -> Config:
    return draw.llama(eps="norm_epsilon") | {
        "use_bias": draw.coin(),
        "sliding_window": draw.one_of(None, draw.window()),
        "rope_parameters": draw.rope(),
    }


@family("GlmForCausalLM", "glm")
def glm(draw: Draw) -> Config:
    return draw.llama(head_dim=draw.one_of(8, 16)) | {
        "attention_bias": draw.coin(),
        "rope_parameters": draw.rope(partial_rotary_factor=draw.one_of(0.5, 1.0)),
    }


@family("Glm4ForCausalLM", "glm4")
def glm4(draw: Draw) -> Config:
    return glm(draw)


@family("PersimmonForCausalLM", "persimmon")
def persimmon(draw: Draw) -> Config:
    fields = draw.llama(eps="layer_norm_eps")
    del fields["num_key_value_heads"]
    return fields | {
        "qk_layernorm": draw.coin(),
        "rope_parameters": draw.rope(partial_rotary_factor=0.5),
    }


@family("GPTBigCodeForCausalLM", "gpt_bigcode")
def gpt_bigcode(draw: Draw) -> Config:
    return draw.gpt() | {
        "activation_function": draw.one_of("gelu_pytorch_tanh", "relu"),
        "multi_query": draw.coin(),
        "scale_attn_weights": draw.coin(),
        "tie_word_embeddings": draw.coin(),
    }


@family("GPTNeoForCausalLM", "gpt_neo")
def gpt_neo(draw: Draw) -> Config:
    heads = draw.heads()[0]
    pair = ["global", "local"] if draw.coin() else ["local", "global"]
    kinds = [pair[i % 2] for i in range(draw.layers)]
    return {
        "vocab_size": 96,
        "max_position_embeddings": 256,
        "hidden_size": heads * draw.one_of(8, 12, 16),
        "num_layers": draw.layers,
        "num_heads": heads,
        "attention_types": [[kinds, 1]],
        "window_size": draw.window(),
        "intermediate_size": draw.one_of(None, draw.inner()),
        "activation_function": draw.one_of("gelu_new", "relu"),
        "layer_norm_epsilon": draw.one_of(1e-5, 0.05),
        "tie_word_embeddings": draw.coin(),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@family("GPTNeoXForCausalLM", "gpt_neox")
def gpt_neox(draw: Draw) -> Config:
    fields = draw.llama(eps="layer_norm_eps", sizes=(8, 16))
    del fields["num_key_value_heads"]
    return fields | {
        "hidden_act": draw.one_of("gelu", "gelu_fast"),
        "attention_bias": draw.coin(),
        "use_parallel_residual": draw.coin(),
        "rope_parameters": draw.rope(partial_rotary_factor=draw.one_of(0.25, 0.5, 1.0)),
    }


@family("GPTJForCausalLM", "gptj")
def gptj(draw: Draw) -> Config:
    fields = draw.gpt()
    return fields | {
        "rotary_dim": draw.one_of(4, 8),
        "activation_function": draw.one_of("gelu_new", "relu"),
        "tie_word_embeddings": False,
    }


@family("CodeGenForCausalLM", "codegen")
def codegen(draw: Draw) -> Config:
    # Its heads are laid out in four groups.
    heads = draw.one_of(4, 8)
    return gptj(draw) | {
        "n_head": heads,
        "n_embd": heads * draw.one_of(8, 12),
        "n_ctx": 256,
    }


@family("OPTForCausalLM", "opt")
def opt(draw: Draw) -> Config:
    heads = draw.heads()[0]
    hidden = heads * draw.one_of(8, 12, 16)
    return {
        "vocab_size": 96,
        "max_position_embeddings": 256,
        "hidden_size": hidden,
        "num_hidden_layers": draw.layers,
        "num_attention_heads": heads,
        "ffn_dim": draw.inner(),
        "word_embed_proj_dim": draw.one_of(hidden, 20),
        "do_layer_norm_before": draw.coin(),
        "enable_bias": draw.coin(),
        "activation_function": draw.one_of("relu", "gelu"),
        "tie_word_embeddings": draw.coin(),
        "pad_token_id": 1,
    }


@family("BloomForCausalLM", "bloom")
def bloom(draw: Draw) -> Config:
    heads = draw.heads()[0]
    return {
        "vocab_size": 96,
        "hidden_size": heads * draw.one_of(8, 12, 16),
        "n_layer": draw.layers,
        "n_head": heads,
        "layer_norm_epsilon": draw.one_of(1e-5, 0.05),
        "apply_residual_connection_post_layernorm": draw.coin(),
        "tie_word_embeddings": draw.coin(),
    }


@family("FalconForCausalLM", "falcon")
def falcon(draw: Draw) -> Config:
    heads, kv_heads = draw.heads()
    layout = draw.in_turn(
        {"multi_query": True, "new_decoder_architecture": False},
        # Slopes of 4 heads are powers of two: transformers rounds those of others to bf16.
        {
            "multi_query": False,
            "new_decoder_architecture": False,
            "alibi": True,
            "num_attention_heads": 4,
        },
        {
            "new_decoder_architecture": True,
            "num_kv_heads": kv_heads,
            "num_ln_in_parallel_attn": draw.one_of(None, 1, 2),
        },
    )
    new = layout["new_decoder_architecture"]
    heads = layout.setdefault("num_attention_heads", heads)
    return layout | {
        "vocab_size": 96,
        "hidden_size": heads * draw.one_of(8, 12, 16),
        "num_hidden_layers": draw.layers,
        "max_position_embeddings": 64,
        "ffn_hidden_size": draw.inner(),
        "parallel_attn": True if new else draw.coin(),
        "bias": draw.coin(),
        "layer_norm_epsilon": draw.one_of(1e-5, 0.05),
        "tie_word_embeddings": draw.coin(),
        "rope_parameters": draw.rope(),
    }


@family("MptForCausalLM", "mpt")
def mpt(draw: Draw) -> Config:
    heads = draw.heads()[0]
    return {
        "vocab_size": 96,
        "d_model": heads * draw.one_of(8, 12, 16),
        "n_layers": draw.layers,
        "n_heads": heads,
        "max_seq_len": 64,
        "attn_config": {
            "clip_qkv": draw.one_of(None, 0.8),
            "softmax_scale": draw.one_of(None, 0.2),
        },
        "tie_word_embeddings": draw.coin(),
    }


DECODERS = tuple(FAMILIES)  # those of this file; other files of draws add their own to FAMILIES
