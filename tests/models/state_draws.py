"""Draws of the families that keep a state; importing it adds them to `decoder_draws.FAMILIES`."""

from __future__ import annotations

from tests.models.decoder_draws import FAMILIES, Config, Draw, family

_OTHERS = frozenset(FAMILIES)

ENDS: Config = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@family("MambaForCausalLM", "mamba")
def mamba(draw: Draw) -> Config:
    return ENDS | {
        "vocab_size": 96,
        "hidden_size": draw.one_of(24, 40),
        "state_size": draw.one_of(4, 8),
        "num_hidden_layers": draw.layers,
        "expand": draw.one_of(1, 2),
        "conv_kernel": draw.one_of(2, 4),
        "use_bias": draw.coin(),
        "use_conv_bias": draw.coin(),
        "time_step_rank": draw.one_of(3, "auto"),
        "layer_norm_epsilon": draw.one_of(1e-5, 0.05),
        "tie_word_embeddings": draw.coin(),
    }


def heads(draw: Draw) -> tuple[int, int]:
    """Heads of a state space and the groups that share B and C."""
    return draw.one_of((4, 1), (4, 2), (4, 4), (2, 1), (6, 2))


@family("Mamba2ForCausalLM", "mamba2")
def mamba2(draw: Draw) -> Config:
    count, groups = heads(draw)
    size = draw.one_of(8, 16)
    expand = draw.one_of(1, 2)
    return ENDS | {
        "vocab_size": 96,
        "hidden_size": count * size // expand,
        "num_heads": count,
        "head_dim": size,
        "n_groups": groups,
        "state_size": draw.one_of(8, 16),
        "num_hidden_layers": draw.layers,
        "expand": expand,
        "conv_kernel": draw.one_of(2, 4),
        "use_bias": draw.coin(),
        "use_conv_bias": draw.coin(),
        "chunk_size": 8,
        "time_step_limit": draw.one_of([0.0, 1e38], [0.1, 0.7]),
        "layer_norm_epsilon": draw.one_of(1e-5, 0.05),
        "tie_word_embeddings": draw.coin(),
    }


def state_space(draw: Draw, hidden: int) -> Config:
    """Mamba 2 beside attention, in the names of Bamba."""
    count, groups = heads(draw)
    size = draw.one_of(8, 16)
    expand = draw.one_of(1, 2)
    if expand * hidden % (2 * count) == 0:
        size = expand * hidden // count
    return {
        "mamba_n_heads": count,
        "mamba_d_head": size,
        "mamba_n_groups": groups,
        "mamba_d_state": draw.one_of(8, 16),
        "mamba_d_conv": draw.one_of(2, 4),
        "mamba_expand": expand,
        "mamba_chunk_size": 8,
        "mamba_conv_bias": draw.coin(),
        "mamba_proj_bias": draw.coin(),
    }


@family("BambaForCausalLM", "bamba")
def bamba(draw: Draw) -> Config:
    config = draw.llama() | {"hidden_size": 48, "num_attention_heads": 4}
    config["num_key_value_heads"] = draw.one_of(1, 2, 4)
    state = state_space(draw, 48)
    if state["mamba_n_heads"] * state["mamba_d_head"] != 48 * state["mamba_expand"]:
        state |= {"mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_head": "auto"}
    return (
        config
        | state
        | {
            "num_hidden_layers": 3,
            "attn_layer_indices": draw.one_of([1], [0], [2]),
            "attention_bias": draw.coin(),
            "mlp_bias": draw.coin(),
            "time_step_limit": draw.one_of([0.0, 1e38], [0.1, 0.7]),
            "rope_parameters": draw.rope(partial_rotary_factor=0.5),
        }
    )


@family("FalconH1ForCausalLM", "falcon_h1")
def falcon_h1(draw: Draw) -> Config:
    config = draw.llama()
    state = state_space(draw, config["hidden_size"])
    return (
        config
        | state
        | {
            "mamba_d_ssm": state["mamba_n_heads"] * state["mamba_d_head"],
            "mamba_rms_norm": draw.coin(),
            "mamba_norm_before_gate": draw.coin(),
            "projectors_bias": draw.coin(),
            "attention_bias": draw.coin(),
            "mlp_bias": draw.coin(),
            "embedding_multiplier": draw.between(0.5, 5),
            "lm_head_multiplier": draw.between(0.1, 1),
            "key_multiplier": draw.between(0.3, 1.5),
            "attention_in_multiplier": draw.between(0.5, 1.5),
            "attention_out_multiplier": draw.between(0.5, 1.5),
            "ssm_in_multiplier": draw.between(0.5, 1.5),
            "ssm_out_multiplier": draw.between(0.5, 1.5),
            "mlp_multipliers": [draw.between(0.5, 1.5), draw.between(0.3, 1)],
            "ssm_multipliers": [draw.between(0.4, 1.4) for _ in range(5)],
            "rope_parameters": draw.rope(),
        }
    )


@family("JambaForCausalLM", "jamba")
def jamba(draw: Draw) -> Config:
    return draw.llama() | {
        "num_hidden_layers": 4,
        "num_experts": draw.one_of(4, 6),
        "num_experts_per_tok": draw.one_of(1, 2),
        "expert_layer_period": 2,
        "expert_layer_offset": draw.one_of(0, 1),
        "attn_layer_period": draw.one_of(2, 3),
        "attn_layer_offset": draw.one_of(0, 1),
        "mamba_d_state": draw.one_of(4, 8),
        "mamba_d_conv": draw.one_of(2, 4),
        "mamba_expand": draw.one_of(1, 2),
        "mamba_dt_rank": draw.one_of(3, "auto"),
        "mamba_conv_bias": draw.coin(),
        "mamba_proj_bias": draw.coin(),
        "use_mamba_kernels": False,
    }


@family("Qwen3NextForCausalLM", "qwen3_next")
def qwen3_next(draw: Draw) -> Config:
    key_heads, value_heads = draw.one_of((2, 2), (2, 4), (4, 4), (2, 6))
    return draw.llama() | {
        "num_hidden_layers": 3,
        "head_dim": draw.one_of(8, 16),
        "attention_bias": draw.coin(),
        "layer_types": draw.one_of(
            ["linear_attention", "full_attention", "linear_attention"],
            ["linear_attention", "linear_attention", "full_attention"],
        ),
        "linear_conv_kernel_dim": draw.one_of(2, 4),
        "linear_key_head_dim": draw.one_of(8, 16),
        "linear_value_head_dim": draw.one_of(8, 12),
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": value_heads,
        "decoder_sparse_step": draw.one_of(1, 2),
        "mlp_only_layers": draw.one_of([], [0]),
        "num_experts": draw.one_of(4, 6),
        "num_experts_per_tok": draw.one_of(1, 2, 3),
        "moe_intermediate_size": draw.inner(),
        "shared_expert_intermediate_size": draw.inner(),
        "norm_topk_prob": draw.coin(),
        "rope_parameters": draw.rope(partial_rotary_factor=0.5),
    }


@family("RecurrentGemmaForCausalLM", "recurrent_gemma")
def recurrent_gemma(draw: Draw) -> Config:
    config = draw.llama()
    heads = config["num_attention_heads"]
    return config | {
        "num_hidden_layers": 4,
        "intermediate_size": 2 * draw.inner(),
        "lru_width": draw.one_of(None, 8 * heads, 20 * heads),
        "attention_window_size": draw.window(),
        "conv1d_width": draw.one_of(2, 4),
        "logits_soft_cap": draw.between(3, 30),
        "block_types": draw.in_turn(
            ["recurrent", "recurrent", "attention"], ["attention", "recurrent"]
        ),
        "attention_bias": draw.coin(),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": draw.one_of(500.0, 10_000.0),
            "partial_rotary_factor": draw.one_of(0.5, 1.0),
        },
    }


STATES = tuple(name for name in FAMILIES if name not in _OTHERS)  # those of this file
