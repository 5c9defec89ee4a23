"""Multi-head latent attention: one short vector a token is cached, for all heads.

DeepSeek-V2, arxiv.org/abs/2405.04434.
"""

from paddock.graph import Cache, Module, Parameter, Parts, Shard, Tensor, current_mesh
from paddock.graph import ops as F
from paddock.layers.linear import ColumnLinear, ReplicatedLinear, RowLinear
from paddock.layers.norm import RMSNorm
from paddock.layers.rotary import Rotary
from paddock.layers.step import Step


class LatentAttention(Module):
    """Causal self-attention whose keys and values are products of a latent vector.

    A head's key is W_k c with the turned part beside it that all heads share, its value W_v c.
    Neither is ever made: q . (W_k c) = (W_k^T q) . c, so queries are taken to where the latent
    vectors are, all heads attend over one "key head" [latent + turned], and what they gather there
    is taken back by W_v. Attention costs more arithmetic so, and the cache far less memory:
    2 x latent + turned numbers a token instead of heads x (key + value).
    """

    def __init__(
        self,
        hidden: int,
        *,
        heads: int,
        latent: int,
        query_latent: int | None,
        key_dim: int,
        turned_dim: int,
        value_dim: int,
        rotary: Rotary,
        scale: float,
        norm_eps: float,
        bias: bool = False,
    ) -> None:
        query = {"q": heads * (key_dim + turned_dim)}
        if query_latent is None:
            self.q_proj = ColumnLinear(hidden, query, unit=key_dim + turned_dim)
        else:
            self.q_a_proj = ReplicatedLinear(hidden, query_latent, bias=bias)
            self.q_a_layernorm = RMSNorm(query_latent, eps=norm_eps)
            self.q_b_proj = ColumnLinear(query_latent, query, unit=key_dim + turned_dim)
        self.kv_a_proj_with_mqa = ReplicatedLinear(hidden, latent + turned_dim, bias=bias)
        self.kv_a_layernorm = RMSNorm(latent, eps=norm_eps)
        self.kv_b_proj = HeadProjection(heads, key_dim + value_dim, latent)
        self.rotary = rotary
        self.o_proj = RowLinear(heads * value_dim, hidden, unit=value_dim, bias=bias)
        self.key_cache = Cache((1, latent + turned_dim))
        self.value_cache = Cache((1, latent))
        self.latent, self.query_latent = latent, query_latent
        self.key_dim, self.turned_dim, self.value_dim = key_dim, turned_dim, value_dim
        self.scale = scale

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        self.o_proj.weight.local_shape(current_mesh())  # an error that names the heads first
        keys = slice(0, self.key_dim)
        values = slice(self.key_dim, self.key_dim + self.value_dim)

        straight, turned = F.split(self._queries(x), self.key_dim, self.turned_dim)
        latent, key = F.split(self.kv_a_proj_with_mqa(x), self.latent, self.turned_dim)
        latent = F.reshape(self.kv_a_layernorm(latent), 1, self.latent)
        turned, key = self.rotary(turned, F.reshape(key, 1, self.turned_dim), step)

        weight = self.kv_b_proj.weight.tensor
        y = F.attention(
            F.concat(F.head_linear(straight, weight, keys, turned=True), turned),
            F.concat(latent, key),
            latent,
            caches=(self.key_cache.tensor, self.value_cache.tensor),
            sequence_starts=step.sequence_starts,
            past_lengths=step.past_lengths,
            block_table=step.block_table,
            block_starts=step.block_starts,
            scale=self.scale,
        )
        y = F.head_linear(y, weight, values)
        return self.o_proj(F.reshape(y, y.type.size(1) * self.value_dim))

    def _queries(self, x: Tensor) -> Tensor:
        """[tokens, this rank's heads, key_dim + turned_dim]."""
        if self.query_latent is None:
            (q,) = self.q_proj(x)
        else:
            (q,) = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        size = self.key_dim + self.turned_dim
        return F.reshape(q, q.type.size(1) // size, size)


class HeadProjection(Module):
    """A matrix for each head, divided over ranks by heads; of use to `head_linear`."""

    def __init__(self, heads: int, rows: int, columns: int) -> None:
        self.weight = Parameter((heads, rows, columns), Shard(0, Parts({"heads": heads})))
