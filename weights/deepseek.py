"""DeepSeek V2 and V3 as published; heads' keys and values take turns in `kv_b_proj`."""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.qwen2_moe import EXPERTS
from paddock.weights.rules import Fold, Ignore, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    *EXPERTS,
    Fold("kv_b_proj"),
    # The layer behind V3's last predicts a second token, to speed generation up.
    Ignore("model.layers.61"),
)
