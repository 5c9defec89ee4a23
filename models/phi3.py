"""Phi-3, 3.5 and Phi-4: Llama with projections that are stored fused."""

from typing import Any, ClassVar, Literal

from paddock.layers import RotaryScaling
from paddock.models.config import Context, Size, rotary_scaling
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class Phi3Config(LlamaConfig):
    max_position_embeddings: Context = 4096
    original_max_position_embeddings: Context = 4096
    rms_norm_eps: float = 1e-5
    sliding_window: Size | None = None
    partial_rotary_factor: float | None = None
    mlp_bias: Literal[False] = False
    attention_bias: Literal[False] = False

    ignored: ClassVar[frozenset[str]] = frozenset({"full_attn_mod", "interpolate_factor"})

    def scaling(self) -> RotaryScaling:
        return rotary_scaling(
            self._as_longrope(self.rope_parameters),
            self._as_longrope(self.rope_scaling),
            theta=self.rope_theta,
            default_theta=self.default_theta,
            max_position_embeddings=self.max_position_embeddings,
            partial_rotary_factor=self.partial_rotary_factor,
        )

    def _as_longrope(self, given: dict[str, Any] | None) -> dict[str, Any] | None:
        """Older files call it "su", and Phi-3's "yarn" was never another's."""
        if given is None:
            return None
        kind = given.get("rope_type", given.get("type"))
        if kind not in ("su", "yarn", "longrope"):
            return given
        named = {k: v for k, v in given.items() if k not in ("type", "rope_type")}
        trained = self.original_max_position_embeddings
        return {"rope_type": "longrope", "original_max_position_embeddings": trained, **named}

    def window(self, layer: int) -> int | None:
        return self.sliding_window


class Phi3ForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = Phi3Config
    weight_map: ClassVar[str] = "paddock.weights.phi3"
