"""GPT-J: attention and MLP side by side behind one LayerNorm, neighbours that turn together."""

from __future__ import annotations

from typing import ClassVar

from paddock.graph import Module, Tensor
from paddock.layers import (
    MLP,
    Attention,
    Embedding,
    Pipeline,
    Rotary,
    RotaryScaling,
    Step,
    VocabHead,
)
from paddock.models.config import Context, Heads, Layers, Size
from paddock.models.gpt2 import GPT2Config


class GPTJConfig(GPT2Config):
    vocab_size: Size = 50_400
    hidden_size: Size = 4096
    num_hidden_layers: Layers = 28
    num_attention_heads: Heads = 16
    max_position_embeddings: Context = 2048
    rotary_dim: Size = 64
    tie_word_embeddings: bool = False

    ignored: ClassVar[frozenset[str]] = GPT2Config.ignored | {
        "rotary",  # that it has one
        "scale_attn_weights",  # read by no version of it: scores are always scaled
    }

    def attention(self, layer: int) -> Attention:
        scaling = RotaryScaling(partial_rotary_factor=self.rotary_dim / self.head_dim)
        return Attention(
            self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_attention_heads,
            head_dim=self.head_dim,
            rotary=Rotary(self.head_dim, scaling, interleaved=True),
        )


class GPTJBlock(Module):
    def __init__(self, cfg: GPTJConfig, layer: int) -> None:
        self.ln_1 = cfg.norm()
        self.attn = cfg.attention(layer)
        self.mlp = MLP(cfg.hidden_size, cfg.intermediate_size, activation=cfg.activation_function)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        y = self.ln_1(x)
        return x + self.attn(y, step) + self.mlp(y)


class GPTJModel(Module):
    def __init__(self, cfg: GPTJConfig) -> None:
        self.wte = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.h = Pipeline(GPTJBlock(cfg, i) for i in range(cfg.num_hidden_layers))
        self.ln_f = cfg.norm()

    def forward(self, step: Step) -> Tensor:
        return self.ln_f(self.h(self.wte(step.token_ids), step))


class GPTJForCausalLM(Module):
    Config: ClassVar[type[GPTJConfig]] = GPTJConfig
    weight_map: ClassVar[str] = "paddock.weights.gptj"

    def __init__(self, cfg: GPTJConfig) -> None:
        self.transformer = GPTJModel(cfg)
        self.lm_head = VocabHead(cfg.hidden_size, cfg.vocab_size, bias=True)

    def forward(self, step: Step) -> Tensor:
        return self.lm_head(self.transformer(step), step)
