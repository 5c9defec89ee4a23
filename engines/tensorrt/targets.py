"""The GPUs that a plan is compiled for, and what runs on them."""

from __future__ import annotations

from collections.abc import Sequence

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt.flavours import Flavour
from paddock.graph import DType, nearest

# What TensorRT for RTX compiles for, and one GPU of each.
NAMES = {
    "sm75": "Turing, e.g. GeForce RTX 2080",
    "sm80": "Ampere, e.g. A100",
    "sm86": "Ampere, e.g. GeForce RTX 3090",
    "sm89": "Ada, e.g. GeForce RTX 4090",
    "sm120": "Blackwell, e.g. GeForce RTX 5090",
    "sm121": "Blackwell, e.g. GB10",
}

# (type, stored as or computed in) -> the oldest target with kernels for it; all were compiled.
OLDEST: dict[DType, str] = {
    DType.F16: "sm75",
    DType.I8: "sm75",
    DType.F32: "sm80",
    DType.BF16: "sm80",
    DType.I4: "sm80",
    DType.F8E4M3: "sm89",
}


def choose(
    asked: Sequence[str], flavour: Flavour, dtypes: Sequence[DType], here: str | None
) -> tuple[str, ...]:
    """The targets to compile for, in order of age.

    `asked` is a list of names, or ["auto"]: the GPU of this machine (`here`), and where there is
    none every target that runs `dtypes`. Raises `BuildError` for a target that there is not, that
    the flavour cannot compile for, or that lacks a type.
    """
    if not flavour.features.ahead_of_time:
        return _own(asked, flavour, here)
    if list(asked) == ["auto"]:
        if here in NAMES:
            targets = [here]
        elif here is not None:
            raise BuildError(
                f"this machine's GPU is {here}, which {flavour.label} does not compile for; it has"
                f" {', '.join(NAMES)}. To build for another machine say engine.target=[sm89]; for"
                " this one use engine.flavour=tensorrt or engine=cuda"
            )
        else:
            targets = [t for t in NAMES if not _lacking(t, dtypes)]
    else:
        for target in asked:
            if target not in NAMES:
                raise BuildError(
                    f"engine.target: {flavour.label} has no {target!r}{nearest(target, NAMES)};"
                    f" it compiles for {', '.join(NAMES)}"
                )
        targets = sorted(set(asked), key=list(NAMES).index)
    for target in targets:
        lacking = _lacking(target, dtypes)
        if lacking == [DType.F32] and DType.F16 in dtypes:
            raise BuildError(
                f"engine.target: {target} ({NAMES[target]}) has no products of f32 matrices, in"
                f" which the model's states are computed; leave out {target}"
            )
        if lacking:
            raise BuildError(
                f"engine.target: {target} ({NAMES[target]}) has no arithmetic for {lacking[0]},"
                f" which begins with {OLDEST[lacking[0]]}; {_way_out(lacking[0])}, or leave out"
                f" {target}"
            )
    return tuple(targets)


def _own(asked: Sequence[str], flavour: Flavour, here: str | None) -> tuple[str, ...]:
    if here is None:
        raise BuildError(
            f"{flavour.label} compiles for the GPU that it finds, and here is none that it can"
            " use; engine.flavour=tensorrt_rtx (pip install 'paddock[rtx]') compiles without one"
        )
    if list(asked) not in (["auto"], [here]):
        raise BuildError(
            f"engine.target={list(asked)}: {flavour.label} compiles for this machine's own GPU"
            f" alone, which is {here}"
        )
    return (here,)


def _lacking(target: str, dtypes: Sequence[DType]) -> list[DType]:
    order = list(NAMES)
    return [t for t in dtypes if order.index(target) < order.index(OLDEST[t])]


def _way_out(dtype: DType) -> str:
    if dtype in (DType.BF16, DType.F32):
        return "use dtype=f16"
    return "use quant=int8 or quant=none"
