"""GLM-4.5 and 4.6 as published."""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.qwen2_moe import EXPERTS
from paddock.weights.rules import Ignore, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    *EXPERTS,
    # The layer behind the last (of Air, of the large one) predicts a second token.
    Ignore("model.layers.46"),
    Ignore("model.layers.92"),
)
