"""Layers that keep a state of each sequence instead of its keys and values."""

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
from paddock.layers.activation import activate
from paddock.layers.linear import ColumnLinear, RowLinear
from paddock.layers.step import Step


class CausalConv(Module):
    """A short convolution along the sequence, each channel by itself; it keeps the last inputs."""

    def __init__(self, channels: Parts, width: int, *, bias: bool) -> None:
        shard = Shard(0, channels)
        self.weight = Parameter((channels.total, 1, width), shard)
        self.bias = Parameter((channels.total,), shard) if bias else None
        self.state = State((channels.total, width), shard)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, this rank's channels] -> the same."""
        bias = None if self.bias is None else self.bias.tensor
        return F.causal_conv(x, self.weight.tensor, bias, self.state.tensor, step.states)


class GatedRMSNorm(Module):
    """weight * y / rms(y), over each of `groups` runs of channels, gated by silu(gate).

    The gate comes before the norm, or after it where `norm_first`. A group that several ranks hold
    is normalised over all of it.
    """

    def __init__(self, size: int, *, groups: int, eps: float, norm_first: bool = False) -> None:
        self.weight = Parameter((size,), Shard(0, Parts({"channels": size})))
        self.groups, self.eps, self.norm_first = groups, eps, norm_first

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """y and gate: [tokens, this rank's channels]."""
        gate = F.activation(gate, "silu")
        if not self.norm_first:
            y = y * gate
        mesh, size = current_mesh(), y.type.size(1)
        if self.groups % mesh.tp:
            whole = self._normalised(F.all_gather(y, mesh.tp), self.groups)
            y = F.split(whole, *[size] * mesh.tp)[mesh.tp_rank]
        else:
            y = self._normalised(y, self.groups // mesh.tp)
        y = y * self.weight.tensor
        return y * gate if self.norm_first else y

    def _normalised(self, y: Tensor, groups: int) -> Tensor:
        size = y.type.size(1) // groups
        ones = F.fill(1.0, current_graph().dtype, size)
        grouped = F.rms_norm(F.reshape(y, groups, size), ones, self.eps)
        return F.reshape(grouped, groups * size)


class MambaMixer(Module):
    """Mamba's selective state space: each channel a recurrence with rates of its own.

    Gu and Dao 2023, arxiv.org/abs/2312.00752. `A` is what checkpoints hold the logarithm of, less
    its sign.
    """

    def __init__(
        self,
        hidden: int,
        *,
        inner: int,
        state: int,
        rank: int,
        width: int,
        activation: str,
        bias: bool,
        conv_bias: bool,
        dt_norm: Module | None = None,
        b_norm: Module | None = None,
        c_norm: Module | None = None,
    ) -> None:
        channels = Parts({"channels": inner})
        self.in_proj = ColumnLinear(hidden, {"x": inner, "gate": inner}, bias=bias)
        self.conv1d = CausalConv(channels, width, bias=conv_bias)
        self.x_proj = RowLinear(inner, rank + 2 * state)
        self.dt_proj = ColumnLinear(rank, {"dt": inner}, bias=True)
        self.dt_layernorm, self.b_layernorm, self.c_layernorm = dt_norm, b_norm, c_norm
        self.A = Parameter((inner, state), Shard(0, channels), dtype=DType.F32)
        self.D = Parameter((inner,), Shard(0, channels), dtype=DType.F32)
        self.out_proj = RowLinear(inner, hidden, bias=bias)
        self.state = State((inner, 1, state), Shard(0, channels), exact=True)
        self.rank, self.n, self.activation = rank, state, activation

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        x, gate = self.in_proj(x)
        x = activate(self.conv1d(x, step), self.activation)
        dt, b, c = F.split(self.x_proj(x), self.rank, self.n, self.n)
        dt = dt if self.dt_layernorm is None else self.dt_layernorm(dt)
        b = b if self.b_layernorm is None else self.b_layernorm(b)
        c = c if self.c_layernorm is None else self.c_layernorm(c)
        (dt,) = self.dt_proj(dt)
        channels = x.type.size(1)
        y = F.selective_scan(
            exact(F.reshape(x, channels, 1)),
            dt=F.activation(exact(dt), "softplus"),
            a=exact(self.A.tensor),
            b=exact(F.reshape(b, 1, self.n)),
            c=exact(F.reshape(c, 1, self.n)),
            d=exact(self.D.tensor),
            state=self.state.tensor,
            step=step.states,
        )
        y = F.cast(F.reshape(y, channels), x.dtype)
        return self.out_proj(y * activate(gate, self.activation))


class Mamba2Mixer(Module):
    """Mamba 2: heads of channels with one rate each, which share B and C in groups.

    Dao and Gu 2024, arxiv.org/abs/2405.21060. `scales` multiplies the five parts of the first
    product; `dt_limits` bounds the steps; without `norm`, y is gated and not normalised.
    """

    def __init__(
        self,
        hidden: int,
        *,
        heads: int,
        head_dim: int,
        groups: int,
        state: int,
        width: int,
        activation: str = "silu",
        bias: bool,
        conv_bias: bool,
        out_bias: bool,
        norm: GatedRMSNorm | None,
        dt_limits: tuple[float, float | None] = (0.0, None),
        scales: tuple[float, ...] = (1.0,) * 5,
    ) -> None:
        inner, shared = heads * head_dim, groups * state
        by_head = Shard(0, Parts({"heads": heads}))
        units = {"gate": head_dim, "x": head_dim, "B": state, "C": state}
        self.in_proj = ColumnLinear(
            hidden,
            {"gate": inner, "x": inner, "B": shared, "C": shared, "dt": heads},
            units=units,
            repeat=True,
            bias=bias,
        )
        mixed = Parts({"x": inner, "B": shared, "C": shared}, 1, True, units)
        self.conv1d = CausalConv(mixed, width, bias=conv_bias)
        self.dt_bias = Parameter((heads,), by_head, dtype=DType.F32)
        self.A = Parameter((heads,), by_head, dtype=DType.F32)
        self.D = Parameter((heads,), by_head, dtype=DType.F32)
        self.norm = norm
        self.out_proj = RowLinear(inner, hidden, unit=head_dim, bias=out_bias)
        self.state = State((heads, head_dim, state), by_head, exact=True)
        self.head_dim, self.n, self.activation = head_dim, state, activation
        self.dt_limits, self.scales = dt_limits, scales

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        # B and C may be repeated over ranks, heads not: this says so before anything is cut.
        self.out_proj.weight.local_shape(current_mesh())
        parts = [p * s for p, s in zip(self.in_proj(x), self.scales, strict=True)]
        gate, dt = parts[0], parts[-1]
        sizes = [p.type.size(1) for p in parts[1:4]]
        mixed = activate(self.conv1d(F.concat(*parts[1:4]), step), self.activation)
        x, b, c = F.split(mixed, *sizes)
        inner = x.type.size(1)
        y = F.selective_scan(
            exact(F.reshape(x, inner // self.head_dim, self.head_dim)),
            dt=self._steps(dt),
            a=exact(self.A.tensor),
            b=exact(F.reshape(b, b.type.size(1) // self.n, self.n)),
            c=exact(F.reshape(c, c.type.size(1) // self.n, self.n)),
            d=exact(self.D.tensor),
            state=self.state.tensor,
            step=step.states,
        )
        y = F.cast(F.reshape(y, inner), x.dtype)
        y = y * F.activation(gate, "silu") if self.norm is None else self.norm(y, gate)
        return self.out_proj(y)

    def _steps(self, dt: Tensor) -> Tensor:
        """[tokens, heads], within their limits."""
        dt = F.activation(exact(dt) + exact(self.dt_bias.tensor), "softplus")
        low, high = self.dt_limits
        if low > 0 or high is not None:
            dt = F.clamp(dt, low, LARGEST if high is None else high)
        return dt


class BlockGate(Module):
    """sigmoid(x W + b) with a matrix for each block of channels; ranks hold whole blocks."""

    def __init__(self, channels: int, blocks: int) -> None:
        size, by_block = channels // blocks, Shard(0, Parts({"blocks": blocks}))
        self.weight = Parameter((blocks, size, size), by_block)
        self.bias = Parameter((blocks, size), by_block)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, this rank's channels] -> the same, in f32 at least."""
        channels = x.type.size(1)
        blocks = F.reshape(x, channels // self.size, self.size)
        y = F.head_linear(blocks, self.weight.tensor, slice(0, self.size)) + self.bias.tensor
        return F.activation(exact(F.reshape(y, channels)), "sigmoid")


class RealGatedUnit(Module):
    """RG-LRU: channels that forget by a gate, fed through a gate.

    De et al. 2024, arxiv.org/abs/2402.19427, section 2.4. A channel's rate is -8 softplus of
    `recurrent_param`.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        by_block = Shard(0, Parts({"channels": channels}, channels // blocks))
        self.input_gate = BlockGate(channels, blocks)
        self.recurrent_gate = BlockGate(channels, blocks)
        self.recurrent_param = Parameter((channels,), by_block, dtype=DType.F32)
        self.state = State((channels, 1, 1), by_block, exact=True)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, this rank's channels] -> the same."""
        y = F.real_gated_recurrence(
            exact(x) * self.input_gate(x),
            gate=self.recurrent_gate(x),
            rates=F.activation(exact(self.recurrent_param.tensor), "softplus") * -8.0,
            state=self.state.tensor,
            step=step.states,
        )
        return F.cast(y, x.dtype)


class GatedRecurrentBlock(Module):
    """Griffin's recurrent block: a short convolution and an RG-LRU, times act(linear_y(x))."""

    def __init__(
        self, hidden: int, *, channels: int, blocks: int, width: int, activation: str
    ) -> None:
        unit = channels // blocks
        self.linear_y = ColumnLinear(hidden, {"y": channels}, unit=unit, bias=True)
        self.linear_x = ColumnLinear(hidden, {"x": channels}, unit=unit, bias=True)
        self.conv_1d = CausalConv(Parts({"channels": channels}, unit), width, bias=True)
        self.rg_lru = RealGatedUnit(channels, blocks)
        self.linear_out = RowLinear(channels, hidden, unit=unit, bias=True)
        self.activation = activation

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        (gate,), (x,) = self.linear_y(x), self.linear_x(x)
        y = self.rg_lru(self.conv_1d(x, step), step)
        return self.linear_out(y * activate(gate, self.activation))


LARGEST = 3.0e38  # no bound: f32 holds little more


def exact(x: Tensor) -> Tensor:
    """In f32 at least: what is added up over a whole sequence is not rounded at every token."""
    return F.cast(x, DType.F64 if current_graph().dtype is DType.F64 else DType.F32)
