"""GPT-Neo: GPT-2 with unscaled attention, in which every other layer sees a window."""

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from paddock.layers import Attention
from paddock.models.config import Context, Size
from paddock.models.gpt2 import GPT2Config, GPT2LMHeadModel


class GPTNeoConfig(GPT2Config):
    hidden_size: Size = 2048
    num_hidden_layers: Size = 24
    num_attention_heads: Size = 16
    max_position_embeddings: Context = 2048
    attention_types: list[Any] = Field(default_factory=lambda: [[["global", "local"], 12]])
    window_size: Size = 256

    synonyms: ClassVar[dict[str, str]] = {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
    }
    ignored: ClassVar[frozenset[str]] = GPT2Config.ignored | {
        "attention_layers",  # attention_types written out
        "classifier_dropout",
        "embed_dropout",
        "resid_dropout",
    }

    @model_validator(mode="after")
    def _names_every_layer(self) -> Self:
        kinds = self._kinds()
        if len(kinds) != self.num_hidden_layers or not set(kinds) <= {"global", "local"}:
            raise ValueError(
                f"attention_types name {len(kinds)} layers {sorted(set(map(str, kinds)))[:4]} for"
                f" {self.num_hidden_layers}, each of which must be 'global' or 'local'"
            )
        return self

    def _kinds(self) -> list[Any]:
        """[[["global", "local"], 2]] -> global, local, global, local."""
        try:
            return [k for kinds, times in self.attention_types for k in list(kinds) * int(times)][
                :1001
            ]
        except (TypeError, ValueError, MemoryError, OverflowError):
            raise ValueError("attention_types: expected pairs of kinds and a number") from None

    def attention(self, layer: int) -> Attention:
        return Attention(
            self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_attention_heads,
            head_dim=self.head_dim,
            rotary=None,
            window=self.window_size if self._kinds()[layer] == "local" else None,
            scale=1.0,
            out_bias=True,
        )


class GPTNeoForCausalLM(GPT2LMHeadModel):
    Config: ClassVar[type[GPT2Config]] = GPTNeoConfig
    weight_map: ClassVar[str] = "paddock.weights.gpt_neo"
