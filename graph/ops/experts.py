"""Mixtures of experts: which experts a token goes to, and products with the weights of each."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paddock.graph.dtype import Array, DType
from paddock.graph.errors import GraphError
from paddock.graph.op import Op
from paddock.graph.ops.elementwise import widen
from paddock.graph.tensor import Tensor, TensorType

SCORES = ("softmax", "sigmoid", "chosen_softmax", "sparsemixer")


@dataclass(frozen=True)
class Route(Op):
    """Choose `chosen` experts for each token by its logits [tokens, experts].

    Gives their weights, in f32 (f64 for f64), [tokens, chosen], and their numbers, i64, best
    first; of equals the lower number. `scores` says what a logit becomes before the choice:

    - "softmax" over all experts (Shazeer et al. 2017, arxiv.org/abs/1701.06538);
    - "sigmoid" (DeepSeek-V3, arxiv.org/abs/2412.19437);
    - "chosen_softmax": the choice is by logits, the softmax over those chosen (Mixtral's form:
      arxiv.org/abs/2401.04088);
    - "sparsemixer": two experts, each weighed against those within `jitter` of it
      (arxiv.org/abs/2409.12136, as Phi-3.5-MoE computes it).

    The second operand, if there is one, is a bias [experts] on the scores that counts for the
    choice alone. Of `groups` equal groups of experts the choice is among those of the `kept_groups`
    whose `group_best` best experts have the largest sum. Weights are divided by their
    sum plus `epsilon` where `normalize`, then multiplied by `scale`.
    """

    chosen: int
    scores: str = "softmax"
    normalize: bool = False
    epsilon: float = 0.0
    scale: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    group_best: int = 1
    jitter: float = 0.0

    is_by_rows: ClassVar[bool] = True

    def infer(self, logits: TensorType, *bias: TensorType) -> tuple[TensorType, TensorType]:
        if logits.rank != 2 or not logits.dtype.is_float:
            raise GraphError(f"expected logits [tokens, experts] in floats: {logits}")
        experts = logits.size(1)
        if self.scores not in SCORES:
            raise GraphError(f"scores {self.scores!r} is none of {', '.join(SCORES)}")
        if not 1 <= self.chosen <= experts:
            raise GraphError(f"{self.chosen} of {experts} experts cannot be chosen")
        if len(bias) > 1 or any(b.shape != (experts,) or not b.dtype.is_float for b in bias):
            raise GraphError(f"expected one bias [{experts}] in floats: {bias}")
        if self.scores == "sparsemixer" and (self.chosen != 2 or bias or self.groups > 1):
            raise GraphError("sparsemixer chooses two experts, without a bias and without groups")
        size = experts // max(self.groups, 1)
        if self.groups < 1 or experts % self.groups or not 1 <= self.kept_groups <= self.groups:
            raise GraphError(
                f"{experts} experts are not {self.groups} equal groups of which {self.kept_groups}"
                " are kept"
            )
        if not 1 <= self.group_best <= size or self.chosen > size * self.kept_groups:
            raise GraphError(
                f"groups of {size}: {self.group_best} of one, or {self.chosen} of"
                f" {self.kept_groups}, cannot be chosen"
            )
        shape = (logits.shape[0], self.chosen)
        exact = DType.F64 if logits.dtype is DType.F64 else DType.F32
        return TensorType(exact, shape), TensorType(DType.I64, shape)

    def compute(self, logits: Array, *bias: Array) -> tuple[Array, Array]:
        wide = widen(logits)
        if self.scores == "sparsemixer":
            weights, ids = self._sparsemixer(wide)
        else:
            scores = wide
            if self.scores == "softmax":
                scores = _softmax(wide)
            elif self.scores == "sigmoid":
                scores = 1 / (1 + np.exp(-np.clip(wide, -80, None)))
            preferred = self._within_groups(scores + widen(bias[0]) if bias else scores)
            ids = np.argsort(-preferred, axis=1, kind="stable")[:, : self.chosen]
            weights = np.take_along_axis(scores, ids, 1)
            if self.scores == "chosen_softmax":
                weights = _softmax(weights)
        if self.normalize:
            weights = weights / (weights.sum(1, keepdims=True) + self.epsilon)
        return (weights * self.scale).astype(wide.dtype), ids.astype(np.int64)

    def _within_groups(self, scores: Array) -> Array:
        if self.kept_groups == self.groups:
            return scores
        grouped = scores.reshape(len(scores), self.groups, -1)
        best = np.sort(grouped, axis=2)[:, :, -self.group_best :].sum(2)
        kept = np.argsort(-best, axis=1, kind="stable")[:, : self.kept_groups]
        mask = np.zeros(best.shape, bool)
        np.put_along_axis(mask, kept, True, 1)
        return np.where(mask[:, :, None], grouped, -np.inf).reshape(scores.shape)

    def _sparsemixer(self, logits: Array) -> tuple[Array, Array]:
        weights, ids, left = [], [], logits
        for _ in range(2):
            best = left.max(1, keepdims=True)
            chosen = left.argmax(1)[:, None]
            far = (best - logits) / np.maximum(np.abs(logits), best) > 2 * self.jitter
            weights.append(np.take_along_axis(_softmax(np.where(far, -np.inf, left)), chosen, 1))
            ids.append(chosen)
            left = left.copy()
            np.put_along_axis(left, chosen, -np.inf, 1)
        return np.concatenate(weights, 1), np.concatenate(ids, 1)


@dataclass(frozen=True)
class GroupedLinear(Op):
    """Products of tokens with the weights of the experts that were chosen for them.

    x [tokens, inputs], or [tokens, chosen, inputs] where each expert has an input of its own;
    weight [experts, outputs, inputs]; ids, i64 [tokens, chosen]; and if there is one, a bias
    [experts, outputs]. Gives [tokens, chosen, outputs]. With `first`, the weight holds but a share
    of the experts, from that one on: what was chosen of others gives zeros.
    """

    first: int | None = None

    is_by_rows: ClassVar[bool] = True

    def infer(
        self, x: TensorType, weight: TensorType, ids: TensorType, *bias: TensorType
    ) -> TensorType:
        if weight.rank != 3 or x.rank not in (2, 3) or x.shape[-1] != weight.shape[2]:
            raise GraphError(
                "expected x [tokens, inputs] or [tokens, chosen, inputs] and weight"
                f" [experts, outputs, inputs]: {x}, {weight}"
            )
        if x.dtype is not weight.dtype or any(b.dtype is not x.dtype for b in bias):
            raise GraphError(f"element types differ: {x}, {weight}; cast one of them")
        if not x.dtype.is_float:
            raise GraphError(f"expected floats: {x}; integers go through `dequantize`")
        if ids.rank != 2 or not ids.dtype.is_index or ids.shape != (x.shape[0], ids.size(1)):
            raise GraphError(f"expected the numbers of experts for each token of {x}: {ids}")
        if x.rank == 3 and x.shape[1] != ids.shape[1]:
            raise GraphError(f"{x} has not one input for each of {ids}")
        if len(bias) > 1 or any(b.shape != weight.shape[:2] for b in bias):
            raise GraphError(f"expected one bias for {weight}: {bias}")
        if self.first is not None and self.first < 0:
            raise GraphError(f"the first expert is {self.first}, expected 0 up")
        return x.with_shape(x.shape[0], ids.shape[1], weight.shape[1])

    def compute(self, x: Array, weight: Array, ids: Array, *bias: Array) -> Array:
        inputs = widen(x if x.ndim == 3 else np.repeat(x[:, None], ids.shape[1], 1))
        y = np.zeros((*ids.shape, weight.shape[1]), inputs.dtype)
        held = ids - (self.first or 0)
        for expert in np.unique(held):
            if self.first is not None and not 0 <= expert < len(weight):
                continue
            mine = held == expert
            y[mine] = inputs[mine] @ widen(weight[expert]).T
            if bias:
                y[mine] += widen(bias[0][expert])
        return y.astype(x.dtype)


@dataclass(frozen=True)
class WeightedSum(Op):
    """The sum of y [tokens, chosen, features] over `chosen`, by weights [tokens, chosen]."""

    is_by_rows: ClassVar[bool] = True

    def infer(self, y: TensorType, weights: TensorType) -> TensorType:
        if y.rank != 3 or not (y.dtype.is_float and weights.dtype.is_float):
            raise GraphError(f"expected [tokens, chosen, features] and weights: {y}, {weights}")
        if weights.shape != y.shape[:2]:
            raise GraphError(f"the weights {weights} are not for {y}")
        return y.with_shape(y.shape[0], y.shape[2])

    def compute(self, y: Array, weights: Array) -> Array:
        wide = widen(y)
        return (wide * weights[..., None].astype(wide.dtype)).sum(1).astype(y.dtype)


def route(logits: Tensor, how: Route, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """logits: [tokens, experts] -> weights f32 and numbers i64, [tokens, chosen]."""
    weights, ids = how(logits) if bias is None else how(logits, bias)
    return weights, ids


def grouped_linear(
    x: Tensor, weight: Tensor, ids: Tensor, bias: Tensor | None = None, *, first: int | None = None
) -> Tensor:
    """x: [tokens, inputs] or [tokens, chosen, inputs]; weight: [experts, outputs, inputs]
    -> [tokens, chosen, outputs]."""
    op = GroupedLinear(first)
    y: Tensor = op(x, weight, ids) if bias is None else op(x, weight, ids, bias)
    return y


def weighted_sum(y: Tensor, weights: Tensor) -> Tensor:
    """y: [tokens, chosen, features], weights: [tokens, chosen] -> [tokens, features]."""
    return WeightedSum()(y, weights)


def _softmax(x: Array) -> Array:
    raised = np.exp(x - x.max(-1, keepdims=True))
    result: Array = raised / raised.sum(-1, keepdims=True)
    return result
