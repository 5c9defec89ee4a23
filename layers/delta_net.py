"""Gated DeltaNet: linear attention whose matrix forgets, and is corrected rather than added to."""

from paddock.graph import (
    DType,
    Module,
    Parameter,
    Parts,
    Shard,
    State,
    Tensor,
    current_graph,
    current_mesh,
)
from paddock.graph import ops as F
from paddock.layers.linear import ColumnLinear, RowLinear
from paddock.layers.norm import RMSNorm
from paddock.layers.recurrent import CausalConv, exact
from paddock.layers.step import Step

L2_EPSILON = 1e-6


class GatedDeltaNet(Module):
    """Yang et al. 2024, arxiv.org/abs/2412.06464, as Qwen3-Next has it.

    Each key head is shared by value_heads / key_heads value heads; ranks hold whole key heads with
    their value heads. `A` is what checkpoints hold the logarithm of, less its sign.
    """

    def __init__(
        self,
        hidden: int,
        *,
        key_heads: int,
        value_heads: int,
        key_dim: int,
        value_dim: int,
        width: int,
        norm_eps: float,
    ) -> None:
        shared = value_heads // key_heads
        keys, values = key_heads * key_dim, value_heads * value_dim
        units = {"v": shared * value_dim, "z": shared * value_dim}
        self.in_proj_qkvz = ColumnLinear(
            hidden, {"q": keys, "k": keys, "v": values, "z": values}, unit=key_dim, units=units
        )
        self.in_proj_ba = ColumnLinear(hidden, {"b": value_heads, "a": value_heads}, unit=shared)
        mixed = Parts({"q": keys, "k": keys, "v": values}, key_dim, units=units)
        self.conv1d = CausalConv(mixed, width, bias=False)
        by_head = Shard(0, Parts({"heads": value_heads}, shared))
        self.dt_bias = Parameter((value_heads,), by_head, dtype=DType.F32)
        self.A = Parameter((value_heads,), by_head, dtype=DType.F32)
        self.norm = RMSNorm(value_dim, eps=norm_eps)
        self.out_proj = RowLinear(values, hidden, unit=shared * value_dim)
        self.state = State((value_heads, value_dim, key_dim), by_head, exact=True)
        self.key_dim, self.value_dim = key_dim, value_dim

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        self.out_proj.weight.local_shape(current_mesh())  # an error that names the heads first
        q, k, v, z = self.in_proj_qkvz(x)
        b, a = self.in_proj_ba(x)
        sizes = [t.type.size(1) for t in (q, k, v)]
        mixed = F.activation(self.conv1d(F.concat(q, k, v), step), "silu")
        q, k, v = F.split(mixed, *sizes)
        dt = F.activation(exact(a) + exact(self.dt_bias.tensor), "softplus")
        y = F.gated_delta_rule(
            exact(self._unit_length(_heads(q, self.key_dim))),
            exact(self._unit_length(_heads(k, self.key_dim))),
            exact(_heads(v, self.value_dim)),
            gate=dt * exact(self.A.tensor),
            beta=exact(F.activation(b, "sigmoid")),
            state=self.state.tensor,
            step=step.states,
        )
        y = self.norm(F.cast(y, x.dtype)) * F.activation(_heads(z, self.value_dim), "silu")
        return self.out_proj(F.reshape(y, sizes[2]))

    def _unit_length(self, x: Tensor) -> Tensor:
        """x / sqrt(sum(x^2) + epsilon), which is an RMS norm less a factor."""
        scale = F.fill(self.key_dim**-0.5, current_graph().dtype, self.key_dim)
        return F.rms_norm(x, scale, L2_EPSILON / self.key_dim)


def _heads(x: Tensor, size: int) -> Tensor:
    return F.reshape(x, x.type.size(1) // size, size)
