"""LLaVA in Hugging Face's layout: each part under a name of its own, as its checkpoints have it.

Files that transformers 4.52 and later save have all three under `model`.
"""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.rules import Ignore, Older, Rename, Rule, Tie, Where

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    Tie("lm_head.weight", to="model.language_model.embed_tokens.weight"),
    Where(
        "language_model.model",
        (
            Rename("model.language_model", "language_model.model"),
            Rename("lm_head", "language_model.lm_head"),
            Rename("model.multi_modal_projector", "multi_modal_projector"),
            Rename("model.vision_tower", "vision_tower"),
        ),
    ),
    Older("vision_tower", "vision_tower.vision_model"),
    Ignore("vision_model.head"),  # SigLIP's pooling, which no text model reads
    Ignore("vision_tower.head"),
    Ignore("embeddings.position_ids"),
)
