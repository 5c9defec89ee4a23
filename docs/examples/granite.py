"""Granite 3: Llama with constant multipliers on embeddings, attention, residuals and logits."""

from typing import ClassVar

from paddock.graph import Module, Tensor
from paddock.layers import Embedding, Pipeline, RMSNorm, Step, VocabHead
from paddock.models import registry
from paddock.models.llama import LlamaBlock, LlamaConfig


class GraniteConfig(LlamaConfig):
    embedding_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0


class GraniteBlock(LlamaBlock):
    def __init__(self, cfg: GraniteConfig, layer: int) -> None:
        super().__init__(cfg, layer)
        self.self_attn.scale = cfg.attention_multiplier
        self.residual = cfg.residual_multiplier

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), step) * self.residual
        return x + self.mlp(self.post_attention_layernorm(x)) * self.residual


class GraniteModel(Module):
    def __init__(self, cfg: GraniteConfig) -> None:
        self.embed_tokens = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = Pipeline(GraniteBlock(cfg, i) for i in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.multiplier = cfg.embedding_multiplier

    def forward(self, step: Step) -> Tensor:
        x = self.embed_tokens(step.token_ids) * self.multiplier
        x = self.layers(x, step)
        return self.norm(x)


class GraniteForCausalLM(Module):
    Config: ClassVar[type[LlamaConfig]] = GraniteConfig
    weight_map: ClassVar[str] = "paddock.weights.llama"

    def __init__(self, cfg: GraniteConfig) -> None:
        self.model = GraniteModel(cfg)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size)
        self.scaling = cfg.logits_scaling

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.model(step), step) * (1 / self.scaling)


registry.register("GraniteForCausalLM", __name__)
