"""Feed-forward layers of many experts, of which each token meets a few."""

from collections.abc import Callable

from paddock.graph import DType, Module, Parameter, Parts, Shard, Tensor, current_mesh
from paddock.graph import ops as F
from paddock.graph.ops import Route
from paddock.layers.activation import activate

Gate = Callable[[Tensor], Tensor]
"""From [tokens, chosen, 2 inner] of the first product to [tokens, chosen, inner]."""


class Router(Module):
    """Which experts a token goes to, and how much each counts; every rank chooses for all.

    `bias` is on the logits, `correction` on the scores and for the choice alone. None of it is
    quantized: a choice is not nearly right.
    """

    def __init__(
        self,
        hidden: int,
        experts: int,
        route: Route,
        *,
        bias: bool = False,
        correction: bool = False,
    ) -> None:
        self.weight = Parameter((experts, hidden))
        self.bias = Parameter((experts,)) if bias else None
        if correction:
            self.e_score_correction_bias = Parameter((experts,), dtype=DType.F32)
        self.route, self.corrects = route, correction

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [tokens, hidden] -> weights and numbers of experts, [tokens, chosen]."""
        logits = F.linear(x, self.weight.tensor)
        if self.bias is not None:
            logits = logits + self.bias.tensor
        return F.route(
            logits, self.route, self.e_score_correction_bias.tensor if self.corrects else None
        )


class GroupedLinear(Module):
    """y = x W^T + b with a W and a b for each expert; the experts are divided over ranks."""

    def __init__(self, experts: int, inputs: int, outputs: int, *, bias: bool = False) -> None:
        self.parts = Parts({"experts": experts})
        shard = Shard(0, self.parts)
        self.weight = Parameter((experts, outputs, inputs), shard, quantizable=True)
        self.bias = Parameter((experts, outputs), shard) if bias else None

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """x: [tokens, inputs] or [tokens, chosen, inputs] -> [tokens, chosen, outputs], zeros for
        experts of other ranks."""
        mesh = current_mesh()
        first = self.parts.slice("experts", mesh).start if mesh.tp > 1 else None
        bias = None if self.bias is None else self.bias.tensor
        return F.grouped_linear(x, self.weight.tensor, ids, bias, first=first)


class Experts(Module):
    """Of each chosen expert down(act(gate(x)) * up(x)), summed by the router's weights.

    `gate` replaces act(gate) * up by another function of the two, which the first product gives
    side by side.
    """

    def __init__(
        self,
        experts: int,
        hidden: int,
        inner: int,
        *,
        activation: str = "silu",
        bias: bool = False,
        gate: Gate | None = None,
    ) -> None:
        self.gate_up_proj = GroupedLinear(experts, hidden, 2 * inner, bias=bias)
        self.down_proj = GroupedLinear(experts, inner, hidden, bias=bias)
        self.inner, self.activation, self.gate = inner, activation, gate

    def forward(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """x: [tokens, hidden]; weights and ids: [tokens, chosen] -> [tokens, hidden]."""
        y = self.gate_up_proj(x, ids)
        if self.gate is None:
            gate, up = F.split(y, self.inner, self.inner)
            y = activate(gate, self.activation) * up
        else:
            y = self.gate(y)
        y = F.weighted_sum(self.down_proj(y, ids), weights)
        return F.all_reduce(y) if current_mesh().tp > 1 else y


class MixtureOfExperts(Module):
    """A router and its experts, and beside them what every token meets.

    `shared` is such an MLP; with `shared_gate` it counts by the sigmoid of a product of its own.
    """

    def __init__(
        self,
        gate: Router,
        experts: Experts,
        *,
        shared: Module | None = None,
        shared_gate: int | None = None,
    ) -> None:
        self.gate = gate
        self.experts = experts
        self.shared_experts = shared
        self.shared_expert_gate = None if shared_gate is None else SharedGate(shared_gate)

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        y: Tensor = self.experts(x, *self.gate(x))
        if self.shared_experts is None:
            return y
        shared: Tensor = self.shared_experts(x)
        if self.shared_expert_gate is not None:
            shared = self.shared_expert_gate(x, shared)
        return y + shared


class SharedGate(Module):
    """y times the sigmoid of one number a token, w . x."""

    def __init__(self, hidden: int) -> None:
        self.weight = Parameter((1, hidden))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x and y: [tokens, hidden]."""
        share = F.activation(F.linear(x, self.weight.tensor), "sigmoid")
        return F.weighted_sum(F.reshape(y, 1, y.type.size(1)), share)
