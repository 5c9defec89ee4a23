"""Qwen2-VL and Qwen2.5-VL in Hugging Face's layout: the tower's names are beside the text model's.

Files that transformers 4.52 and later save may have both under `model`.
"""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.rules import Rename, Rule, Tie, Where

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    Tie("lm_head.weight", to="model.language_model.embed_tokens.weight"),
    Rename("merger.mlp.fc1", "merger.mlp.0"),
    Rename("merger.mlp.fc2", "merger.mlp.2"),
    Where(
        "model.visual",
        (),
        otherwise=(
            Rename("model.visual", "visual"),
            Rename("model.language_model", "model"),
        ),
    ),
)
