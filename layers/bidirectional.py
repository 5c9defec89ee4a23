"""Attention of encoders: every token sees its whole sequence, and nothing is cached."""

from paddock.graph import Module, Parameter, Parts, Shard, Tensor, current_mesh
from paddock.graph import ops as F
from paddock.layers.linear import ColumnLinear, RowLinear
from paddock.layers.rotary import Rotary
from paddock.layers.step import Step


class RelativeBiases(Module):
    """A bias for each head and bucket of relative positions; all layers share one.

    T5: arxiv.org/abs/1910.10683, section 2.1.
    """

    def __init__(self, buckets: int, heads: int, *, max_distance: int = 128) -> None:
        self.weight = Parameter((buckets, heads), Shard(1, Parts({"heads": heads})))
        self.max_distance = max_distance


class BidirectionalAttention(Module):
    """Self-attention over whole sequences.

    `rotary` None leaves positions to the embeddings, or to `biases`, which another module owns;
    `window` is how many tokens a token sees before itself, and behind.
    """

    def __init__(
        self,
        hidden: int,
        *,
        heads: int,
        head_dim: int,
        rotary: Rotary | None = None,
        window: int | None = None,
        biases: RelativeBiases | None = None,
        scale: float | None = None,
        bias: bool = True,
        out_bias: bool = True,
    ) -> None:
        size = heads * head_dim
        self.qkv_proj: Module = ColumnLinear(
            hidden, {"q": size, "k": size, "v": size}, unit=head_dim, bias=bias
        )
        self.rotary = rotary
        self.o_proj = RowLinear(size, hidden, unit=head_dim, bias=out_bias)
        self.head_dim, self.window = head_dim, window
        self.scale = head_dim**-0.5 if scale is None else scale
        self._biases = (biases,)  # in a tuple: the slot is its owner's, not this module's child

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        self.o_proj.weight.local_shape(current_mesh())  # says what cannot be divided, and how
        q, k, v = (self._heads(y) for y in self.qkv_proj(x))
        if self.rotary is not None:
            q, k = self.rotary(q, k, step)
        (biases,) = self._biases
        y = F.bidirectional_attention(
            q,
            k,
            v,
            sequence_starts=step.sequence_starts,
            scale=self.scale,
            window=self.window,
            biases=None if biases is None else biases.weight.tensor,
            max_distance=128 if biases is None else biases.max_distance,
        )
        return self.o_proj(F.reshape(y, y.type.size(1) * y.type.size(2)))

    def _heads(self, y: Tensor) -> Tensor:
        """[tokens, heads * head_dim] -> [tokens, heads, head_dim], as many as this rank has."""
        return F.reshape(y, y.type.size(1) // self.head_dim, self.head_dim)
