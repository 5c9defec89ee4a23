"""Keep the graphs of tiny models as text: `make golden`, then look at what git says changed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from paddock.graph import DType, Graph, Mesh, QuantFormat
from paddock.layers import quantize, trace
from paddock.models import registry
from tests.models.parity_cases import CHARACTERISTIC, case

FOLDER = Path(__file__).parent / "graphs"


def _traced(name: str, dtype: DType = DType.F32, mesh: Mesh | None = None) -> Graph:
    model = registry.read(case(name).config).build()
    return trace(model, dtype=dtype, max_context=case(name).max_context, mesh=mesh)


def _quantized() -> Graph:
    model = registry.read(case("llama-one-layer").config).build()
    quantize(model, QuantFormat(DType.I4, 16), head=QuantFormat(DType.I8))
    return trace(model, dtype=DType.BF16, max_context=32)


DUMPS: dict[str, Callable[[], Graph]] = {
    **{name: partial(_traced, name) for name in CHARACTERISTIC},
    "llama-int4": _quantized,
    "llama-tp4": lambda: _traced("llama-one-layer", DType.BF16, Mesh(tp=4, tp_rank=1)),
    "llama-pp2-first": lambda: _traced("llama", mesh=Mesh(tp=2, pp=2)),
    "llama-pp2-last": lambda: _traced("llama", mesh=Mesh(tp=2, pp=2, tp_rank=1, pp_rank=1)),
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for name, make in DUMPS.items():
        (FOLDER / f"{name}.txt").write_text(make().dump(), "utf-8")
