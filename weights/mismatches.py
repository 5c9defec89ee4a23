"""What keeps a checkpoint from fitting a model, gathered so that one error tells it all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paddock.graph import Parameter, nearest
from paddock.weights.errors import WeightError
from paddock.weights.rules import has_words
from paddock.weights.safetensors_file import TensorInfo

# Words in tensor names by which checkpoints that are quantized already are known.
_QUANTIZED = ("qweight", "qzeros", "weight_scale", "weight_scale_inv", "absmax", "weight_packed")


@dataclass
class Mismatches:
    """By kind, each in the order found."""

    missing: list[tuple[str, str, str | None]] = field(default_factory=list)  # slot, tensor, tie
    shapes: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    claims: list[str] = field(default_factory=list)
    ranks: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # tensor names
    touched: set[str] = field(default_factory=set)  # tensors told of above

    def raise_any(self, tensors: Mapping[str, TensorInfo], slots: Mapping[str, Parameter]) -> None:
        """One `WeightError` where anything mismatches: the first in full, the others counted."""
        self._refuse_quantized()
        kinds = {
            "missing tensor": len(self.missing),
            "wrong shape": len(self.shapes),
            "wrong element type": len(self.dtypes),
            "tensor not taken exactly once": len(self.claims),
            "slot that does not divide over the ranks": len(self.ranks),
            "tensor that no slot takes": len(self.unused),
        }
        counts = {kind: count for kind, count in kinds.items() if count}
        if not counts:
            return
        message = self._first(tensors, slots)
        kind, count = next(iter(counts.items()))
        others = [f"{kind}: {count - 1} more"] if count > 1 else []
        others += [f"{other}: {n}" for other, n in list(counts.items())[1:]]
        raise WeightError(message + (f" ({'; '.join(others)})" if others else ""))

    def _first(self, tensors: Mapping[str, TensorInfo], slots: Mapping[str, Parameter]) -> str:
        """The worst mismatch: later kinds often follow from earlier ones."""
        if self.missing:
            slot, tensor, tie = self.missing[0]
            near = nearest(tensor, self.unused, count=1) or nearest(tensor, tensors, count=1)
            hint = (
                f"; it is the value of {tie} where config.json says tie_word_embeddings"
                if tie
                else ""
            )
            return f"{slot}: the checkpoint has no {tensor!r}{hint}{near}"
        for mismatches in (self.shapes, self.dtypes, self.claims, self.ranks):
            if mismatches:
                return mismatches[0]
        tensor = self.unused[0]
        near = nearest(tensor, slots, count=1).replace("nearest is", "the nearest slot is")
        return (
            f"no slot of the model takes the checkpoint's {tensor!r}"
            f" {list(tensors[tensor].shape)}{near}; does its config.json belong to these weights?"
        )

    def _refuse_quantized(self) -> None:
        quantized = [t for t in self.unused if any(has_words(t, words) for words in _QUANTIZED)]
        if quantized:
            raise WeightError(
                f"the checkpoint is quantized already ({quantized[0]!r} and"
                f" {len(quantized) - 1} more such tensors) in a form that Paddock does not read;"
                " use the model's f32, f16 or bf16 checkpoint, and let `quant=` quantize it"
            )
