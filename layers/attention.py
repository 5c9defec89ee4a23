"""Grouped-query attention that owns its projections and its cache."""

from paddock.graph import Cache, Module, Parameter, Parts, Shard, Tensor, current_mesh
from paddock.graph import ops as F
from paddock.layers.bidirectional import RelativeBiases
from paddock.layers.linear import ColumnLinear, RowLinear
from paddock.layers.rotary import Rotary
from paddock.layers.step import Step


class Attention(Module):
    """Causal self-attention.

    Queries share keys and values in groups of heads / kv_heads:

        multi-head        grouped           multi-query
        q q q q           q q q q           q q q q
        | | | |           |/  |/            |/_/_/
        k k k k           k   k             k

    `rotary` None leaves positions out; `window` is how many tokens a token sees, itself counted;
    `q_norm` and `k_norm` are applied to [tokens, heads, head_dim] before these are turned; `clip`
    bounds q, k and v then; `alibi` lets a score fall with the distance, by the slopes of
    Press et al. 2021 times `alibi`; `sinks` gives each head a score that belongs to no key;
    `biases`, which another module owns, gives scores one by the distance; tokens of an image see
    all of it with `images`; `scale` defaults to 1 / sqrt(head_dim).
    """

    def __init__(
        self,
        hidden: int,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rotary: Rotary | None,
        window: int | None = None,
        soft_cap: float | None = None,
        scale: float | None = None,
        q_norm: Module | None = None,
        k_norm: Module | None = None,
        clip: float | None = None,
        alibi: float | None = None,
        sinks: bool = False,
        biases: RelativeBiases | None = None,
        bias: bool = False,
        out_bias: bool = False,
        images: bool = False,
    ) -> None:
        q, kv = heads * head_dim, kv_heads * head_dim
        self.qkv_proj: Module = ColumnLinear(
            hidden, {"q": q, "k": kv, "v": kv}, unit=head_dim, repeat=True, bias=bias
        )
        self.q_norm, self.k_norm = q_norm, k_norm
        self.rotary = rotary
        self.sinks = Parameter((heads,), Shard(0, Parts({"heads": heads}))) if sinks else None
        self.o_proj = RowLinear(q, hidden, unit=head_dim, bias=out_bias)
        by_head = Shard(0, Parts({"heads": kv_heads}, repeat=True))
        self.key_cache = Cache((kv_heads, head_dim), by_head)
        self.value_cache = Cache((kv_heads, head_dim), by_head)
        self.head_dim, self.window, self.soft_cap = head_dim, window, soft_cap
        self.scale = head_dim**-0.5 if scale is None else scale
        self.heads, self.clip, self.alibi, self.images = heads, clip, alibi, images
        self._biases = (biases,)  # in a tuple: the slot is its owner's, not this module's child

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        # Keys may be repeated over ranks, queries not: this says so before the fused slot is cut.
        self.o_proj.weight.local_shape(current_mesh())
        q, k, v = (self._heads(y) for y in self.qkv_proj(x))
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        if self.clip is not None:
            q, k, v = (F.clamp(y, -self.clip, self.clip) for y in (q, k, v))
        if self.rotary is not None:
            q, k = self.rotary(q, k, step)
        (biases,) = self._biases
        y = F.attention(
            q,
            k,
            v,
            caches=(self.key_cache.tensor, self.value_cache.tensor),
            sequence_starts=step.sequence_starts,
            past_lengths=step.past_lengths,
            block_table=step.block_table,
            block_starts=step.block_starts,
            scale=self.scale,
            window=self.window,
            soft_cap=self.soft_cap,
            alibi=self._slopes(),
            sinks=None if self.sinks is None else self.sinks.tensor,
            biases=None if biases is None else biases.weight.tensor,
            max_distance=128 if biases is None else biases.max_distance,
            image_rows=step.image_rows if self.images else None,
        )
        return self.o_proj(F.reshape(y, y.type.size(1) * y.type.size(2)))

    def _slopes(self) -> tuple[float, ...] | None:
        """Of this rank's heads."""
        if self.alibi is None:
            return None
        own = Parts({"heads": self.heads}).slice("heads", current_mesh())
        return tuple(slope * self.alibi for slope in alibi_slopes(self.heads)[own])

    def _heads(self, y: Tensor) -> Tensor:
        """[tokens, heads * head_dim] -> [tokens, heads, head_dim], as many as this rank has."""
        return F.reshape(y, y.type.size(1) // self.head_dim, self.head_dim)


def alibi_slopes(heads: int) -> list[float]:
    """2^(-8 i / heads) for a power of two; between two powers, those of the lower and every other
    of the higher: Press et al. 2021, arxiv.org/abs/2108.12409, and its reference code."""
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return slopes
