"""Draws of the families with experts; importing it adds them to `decoder_draws.FAMILIES`."""

from __future__ import annotations

from tests.models.decoder_draws import FAMILIES, Config, Draw, family

_OTHERS = frozenset(FAMILIES)


def experts(draw: Draw, *, of: str = "num_experts", most: int = 8) -> Config:
    """How many experts there are, and how many of them a token meets."""
    return {of: draw.one_of(4, 6, most), "num_experts_per_tok": draw.one_of(1, 2, 3)}


@family("MixtralForCausalLM", "mixtral")
def mixtral(draw: Draw) -> Config:
    return (
        draw.llama()
        | experts(draw, of="num_local_experts")
        | {
            "sliding_window": draw.one_of(None, draw.window()),
            "rope_parameters": draw.rope(),
        }
    )


@family("Qwen2MoeForCausalLM", "qwen2_moe")
def qwen2_moe(draw: Draw) -> Config:
    return (
        draw.llama()
        | experts(draw)
        | {
            "moe_intermediate_size": draw.inner(),
            "shared_expert_intermediate_size": draw.inner(),
            "norm_topk_prob": draw.coin(),
            "qkv_bias": draw.coin(),
            "decoder_sparse_step": draw.one_of(1, 2),
            "mlp_only_layers": draw.one_of([], [0]),
            "use_sliding_window": draw.coin(),
            "sliding_window": draw.window(),
            "max_window_layers": 1,
            "rope_parameters": draw.rope(),
        }
    )


@family("Qwen3MoeForCausalLM", "qwen3_moe")
def qwen3_moe(draw: Draw) -> Config:
    return (
        draw.llama()
        | experts(draw)
        | {
            "head_dim": draw.one_of(8, 24),
            "attention_bias": draw.coin(),
            "moe_intermediate_size": draw.inner(),
            "norm_topk_prob": draw.coin(),
            "decoder_sparse_step": draw.one_of(1, 2),
            "mlp_only_layers": draw.one_of([], [0]),
            "use_sliding_window": draw.coin(),
            "sliding_window": draw.window(),
            "rope_parameters": draw.rope(),
        }
    )


@family("OlmoeForCausalLM", "olmoe")
def olmoe(draw: Draw) -> Config:
    return (
        draw.llama()
        | experts(draw)
        | {
            "attention_bias": draw.coin(),
            "clip_qkv": draw.one_of(None, 0.7),
            "norm_topk_prob": draw.coin(),
            "rope_parameters": draw.rope(),
        }
    )


@family("GraniteMoeForCausalLM", "granitemoe")
def granitemoe(draw: Draw) -> Config:
    return (
        draw.llama()
        | experts(draw, of="num_local_experts")
        | {
            "attention_bias": draw.coin(),
            "embedding_multiplier": draw.between(0.5, 12),
            "attention_multiplier": draw.between(0.02, 0.4),
            "residual_multiplier": draw.between(0.2, 1.5),
            "logits_scaling": draw.between(2, 9),
            "rope_parameters": draw.rope(),
        }
    )


@family("PhimoeForCausalLM", "phimoe")
def phimoe(draw: Draw) -> Config:
    plain = {"rope_type": "default", "rope_theta": 500.0}
    config = draw.llama() | {
        "num_local_experts": draw.one_of(4, 6),
        "num_experts_per_tok": 2,
        "router_jitter_noise": draw.one_of(0.01, 0.3),
        "attention_bias": draw.coin(),
        "lm_head_bias": draw.coin(),
        "sliding_window": draw.one_of(None, draw.window()),
    }
    pairs = config["hidden_size"] // config["num_attention_heads"] // 2
    searched = {
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
        "long_factor": [2.0] * pairs,
        "short_mscale": 1.1,
        "long_mscale": 1.3,
        # As long as the prompts: beyond it transformers keeps the short factors.
        "original_max_position_embeddings": 64,
    }
    return config | {"rope_parameters": draw.one_of(plain, searched)}


def latent(draw: Draw) -> Config:
    """DeepSeek's attention; every head has a key of its own."""
    config = draw.llama()
    return config | {
        "num_key_value_heads": config["num_attention_heads"],
        "attention_bias": draw.coin(),
        "q_lora_rank": draw.one_of(None, 20),
        "kv_lora_rank": draw.one_of(16, 28),
        "qk_nope_head_dim": draw.one_of(8, 12),
        "qk_rope_head_dim": draw.one_of(4, 8),
        "v_head_dim": draw.one_of(8, 16),
        "moe_intermediate_size": draw.inner(),
        "n_shared_experts": draw.one_of(1, 2),
        "num_experts_per_tok": draw.one_of(2, 3),
        "first_k_dense_replace": draw.one_of(0, 1),
        "routed_scaling_factor": draw.between(0.5, 2.5),
        "rope_parameters": draw.one_of(
            {"rope_type": "default", "rope_theta": 500.0},
            {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "mscale": 0.707,
                "mscale_all_dim": draw.one_of(0.707, 1.0),
            },
        ),
    }


@family("DeepseekV2ForCausalLM", "deepseek_v2")
def deepseek_v2(draw: Draw) -> Config:
    return latent(draw) | draw.one_of(
        {"n_routed_experts": 6, "topk_method": "greedy"},
        {
            "n_routed_experts": 8,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
        },
    )


@family("DeepseekV3ForCausalLM", "deepseek_v3")
def deepseek_v3(draw: Draw) -> Config:
    groups, kept = draw.one_of((1, 1), (2, 1), (4, 2))
    return latent(draw) | {
        "n_routed_experts": 8,
        "n_group": groups,
        "topk_group": kept,
        "norm_topk_prob": draw.coin(),
        "rope_interleave": draw.coin(),
    }


@family("Glm4MoeForCausalLM", "glm4_moe")
def glm4_moe(draw: Draw) -> Config:
    groups, kept = draw.one_of((1, 1), (2, 1), (4, 2))
    return draw.llama() | {
        "head_dim": draw.one_of(8, 24),
        "attention_bias": draw.coin(),
        "use_qk_norm": draw.coin(),
        "n_routed_experts": 8,
        "num_experts_per_tok": draw.one_of(2, 3),
        "n_shared_experts": draw.one_of(1, 2),
        "first_k_dense_replace": draw.one_of(0, 1),
        "moe_intermediate_size": draw.inner(),
        "n_group": groups,
        "topk_group": kept,
        "norm_topk_prob": draw.coin(),
        "routed_scaling_factor": draw.between(0.5, 2.5),
        "rope_parameters": draw.rope(partial_rotary_factor=0.5),
    }


@family("GptOssForCausalLM", "gpt_oss")
def gpt_oss(draw: Draw) -> Config:
    return (
        draw.llama()
        | experts(draw, of="num_local_experts")
        | {
            "head_dim": draw.one_of(8, 16),
            "attention_bias": draw.coin(),
            "sliding_window": draw.window(),
            "layer_types": draw.layer_kinds(),
            "swiglu_alpha": draw.between(1, 2),
            "swiglu_limit": draw.between(0.5, 3),
            "rope_parameters": draw.rope(),
        }
    )


@family("DbrxForCausalLM", "dbrx")
def dbrx(draw: Draw) -> Config:
    heads, kv_heads = draw.heads()
    rope = draw.rope()
    return {
        "vocab_size": 96,
        "d_model": heads * draw.one_of(8, 16),
        "n_heads": heads,
        "n_layers": draw.layers,
        "max_seq_len": 64,
        # transformers turns by rope_parameters' theta alone, files say it here alone.
        "attn_config": {
            "clip_qkv": draw.one_of(0.7, 3, 8),
            "kv_n_heads": kv_heads,
            "rope_theta": rope["rope_theta"],
        },
        "ffn_config": {
            "ffn_hidden_size": draw.inner(),
            "moe_num_experts": draw.one_of(4, 6, 8),
            "moe_top_k": draw.in_turn(2, 1, 3),
            "moe_normalize_expert_weights": draw.in_turn(1.0, None, 1.0),
            "ffn_act_fn": {"name": draw.in_turn("silu", "gelu", "silu")},
        },
        "rope_parameters": rope,
    }


EXPERTS = tuple(name for name in FAMILIES if name not in _OTHERS)  # those of this file
