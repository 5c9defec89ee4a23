"""Choose which slots of a model are stored as integers."""

from collections.abc import Sequence
from fnmatch import fnmatch

from paddock.graph import DType, GraphError, Module, QuantFormat, nearest


def quantize(
    model: Module,
    weights: QuantFormat,
    *,
    head: QuantFormat | None = None,
    skip: Sequence[str] = (),
) -> None:
    """Give every matrix of a linear layer a format; call it before tracing.

    `head` is the vocabulary head's own format (its errors reach the logits unattenuated); `skip`
    holds patterns of slot names, as in a shell, that stay as they are; one that matches no slot is
    an error. A matrix whose inputs are not whole groups gets one scale a row, in i8.
    """
    slots = dict(model.named_parameters())
    for pattern in skip:
        if not any(fnmatch(name, pattern) for name in slots):
            raise GraphError(f"no slot is named like {pattern!r}{nearest(pattern, slots)}")
    for name, slot in slots.items():
        if not slot.quantizable or any(fnmatch(name, pattern) for pattern in skip):
            continue
        chosen = head if head is not None and name == "lm_head.weight" else weights
        if chosen.group is not None and slot.shape[-1] % chosen.group:
            chosen = QuantFormat(DType.I8, None, chosen.scale)
        slot.quant = chosen
