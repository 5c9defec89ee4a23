"""Gemma 3 with images in Hugging Face's layout: LLaVA's names, and the weights of norms less 1."""

from paddock.weights.llava import HUGGING_FACE as LLAVA
from paddock.weights.rules import Add, Rule, Transpose

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAVA,
    *(
        Add(norm, 1.0)
        for norm in (
            *("language_model.norm", "input_layernorm", "post_attention_layernorm"),
            *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
            *("q_norm", "k_norm", "mm_soft_emb_norm"),
        )
    ),
    Transpose("mm_input_projection_weight"),
)
