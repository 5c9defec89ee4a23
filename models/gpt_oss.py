"""gpt-oss: attention with sinks, every other layer with a window, and experts with biases.

OpenAI 2025, arxiv.org/abs/2508.10925.
"""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import Module, Tensor
from paddock.graph import ops as F
from paddock.graph.ops import Route
from paddock.layers import Attention, Experts, MixtureOfExperts, Router, Step
from paddock.models.config import Context, Heads, LayerTypes, Size, check_layers
from paddock.models.llama import LlamaConfig, LlamaForCausalLM


class GptOssConfig(LlamaConfig):
    num_key_value_heads: Heads = 8
    head_dim: Heads = 64
    max_position_embeddings: Context = 131_072
    rms_norm_eps: float = Field(1e-5, ge=0, lt=1)
    attention_bias: bool = True
    sliding_window: Size | None = 128
    layer_types: LayerTypes | None = None
    num_local_experts: Size = 128
    num_experts_per_tok: Size = 4
    swiglu_alpha: float = 1.702
    swiglu_limit: float = Field(7.0, gt=0)

    default_theta: ClassVar[float] = 150_000.0
    dequantizes: ClassVar[frozenset[str]] = frozenset({"mxfp4"})
    ignored: ClassVar[frozenset[str]] = frozenset(
        {"experts_per_token", "initial_context_length", "output_router_logits"}
    )

    @model_validator(mode="after")
    def _names_every_layer(self) -> Self:
        check_layers(self.layer_types, self.num_hidden_layers, self.sliding_window)
        return self

    def window(self, layer: int) -> int | None:
        if self.layer_types is not None:
            return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None
        return self.sliding_window if layer % 2 == 0 else None

    def mlp(self) -> Module:
        route = Route(self.num_experts_per_tok, "chosen_softmax")
        return MixtureOfExperts(
            Router(self.hidden_size, self.num_local_experts, route, bias=True),
            Experts(
                self.num_local_experts,
                self.hidden_size,
                self.intermediate_size,
                bias=True,
                gate=self.gate,
            ),
        )

    def gate(self, y: Tensor) -> Tensor:
        """[tokens, chosen, gate and up in turns] -> (up + 1) * gate * sigmoid(alpha gate), both
        within a limit."""
        chosen, inner = y.type.size(1), y.type.size(2) // 2
        gate, up = (
            F.reshape(half, chosen, inner) for half in F.split(F.reshape(y, chosen, inner, 2), 1, 1)
        )
        gate = F.clamp(gate, -LARGEST, self.swiglu_limit)
        up = F.clamp(up, -self.swiglu_limit, self.swiglu_limit)
        one = F.fill(1.0, y.dtype, inner)
        return (up + one) * (gate * F.activation(gate * self.swiglu_alpha, "sigmoid"))


LARGEST = 3.0e38  # no bound: f32 and bf16 hold little more


class GptOssBlock(Module):
    def __init__(self, cfg: GptOssConfig, layer: int) -> None:
        self.input_layernorm = cfg.norm()
        self.self_attn = Attention(
            cfg.hidden_size,
            heads=cfg.num_attention_heads,
            kv_heads=cfg.num_key_value_heads,
            head_dim=cfg.head_dim,
            rotary=cfg.rotary(layer),
            window=cfg.window(layer),
            sinks=True,
            bias=cfg.qkv_bias,
            out_bias=cfg.out_bias,
        )
        self.post_attention_layernorm = cfg.norm()
        self.mlp = cfg.mlp()

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), step)
        return x + self.mlp(self.post_attention_layernorm(x))


class GptOssForCausalLM(LlamaForCausalLM):
    Config: ClassVar[type[LlamaConfig]] = GptOssConfig
    Block = GptOssBlock
    weight_map: ClassVar[str] = "paddock.weights.gpt_oss"
