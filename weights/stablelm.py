"""StableLM in Hugging Face's layout: norms of heads are a tensor for each head."""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.rules import Rule, Stack

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    Stack("q_norm", {"heads": "q_layernorm.norms.{e}"}),
    Stack("k_norm", {"heads": "k_layernorm.norms.{e}"}),
)
