"""Nomic's BERT: as transformers saves it, and as the first checkpoints have it."""

from paddock.weights.rules import Body, Fuse, Ignore, Rename, Rule, Where

HUGGING_FACE: tuple[Rule, ...] = (
    Body("nomic_bert"),
    Where(
        "attn.Wqkv",
        (
            Rename("embeddings.LayerNorm", "emb_ln"),
            Rename("layers", "encoder.layers"),
            Rename("attention.qkv_proj", "attn.Wqkv"),
            Rename("attention.o_proj", "attn.out_proj"),
            Rename("attention_norm", "norm1"),
            Fuse("mlp.gate_up_proj", {"gate": "mlp.fc12", "up": "mlp.fc11"}),
            Rename("mlp.down_proj", "mlp.fc2"),
            Rename("output_norm", "norm2"),
        ),
        otherwise=(
            Fuse(
                "attention.qkv_proj",
                {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"},
            ),
            Rename("attention.o_proj", "self_attn.o_proj"),
            Rename("attention_norm", "post_attention_layernorm"),
            Fuse("mlp.gate_up_proj", {"gate": "mlp.gate_proj", "up": "mlp.up_proj"}),
            Rename("output_norm", "post_mlp_layernorm"),
        ),
    ),
    Ignore("pooler"),
    Ignore("cls"),
    Ignore("lm_head"),
)
