"""StarCoder2 in Hugging Face's layout."""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.rules import Rename, Rule

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    Rename("mlp.up_proj", "mlp.c_fc"),
    Rename("mlp.down_proj", "mlp.c_proj"),
)
