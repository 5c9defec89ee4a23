"""The block of the first transformers, normalised behind each residual sum."""

from paddock.graph import Module, Tensor
from paddock.layers.bidirectional import BidirectionalAttention
from paddock.layers.mlp import MLP, GatedMLP
from paddock.layers.norm import LayerNorm
from paddock.layers.step import Step


class PostNormBlock(Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): arxiv.org/abs/1706.03762, section 3.1."""

    def __init__(
        self, hidden: int, attention: BidirectionalAttention, mlp: MLP | GatedMLP, *, eps: float
    ) -> None:
        self.attention = attention
        self.attention_norm = LayerNorm(hidden, eps=eps)
        self.mlp = mlp
        self.output_norm = LayerNorm(hidden, eps=eps)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        x = self.attention_norm(x + self.attention(x, step))
        return self.output_norm(x + self.mlp(x))
