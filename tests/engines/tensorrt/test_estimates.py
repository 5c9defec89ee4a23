"""What compiling is said to take beside what it took: memory and disk, of every architecture here.

Seconds are compared by benchmarks/build_estimates.py alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paddock.engines.tensorrt import engine
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.subprocess_build import compile_in_subprocess
from paddock.graph import DType
from tests.engines.tensorrt.networks import OPTIONS, Model
from tests.engines.tensorrt.test_compile import BY_ARCHITECTURE, TARGETS

WITHIN = 0.3


def forms() -> Iterator[Any]:
    """The zoo in three forms; all but one model in one of them are slow."""
    for name in BY_ARCHITECTURE.values():
        yield pytest.param(
            name,
            DType.BF16,
            ["sm89"],
            marks=[] if name == BY_ARCHITECTURE["LlamaForCausalLM"] else pytest.mark.slow,
        )
        for dtype in (DType.F16, DType.F32):
            yield pytest.param(name, dtype, TARGETS[dtype], marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "dtype", "targets"), list(forms()))
def test_memory_and_disk_are_what_was_said(
    flavour: Flavour, tmp_path: Path, name: str, dtype: DType, targets: list[str]
) -> None:
    model = Model(name, dtype)
    options = {**OPTIONS, "max_context": model.case.max_context, "target": targets}
    said = engine.estimate(model.graph, options, weight_bytes=0)
    plan = compile_in_subprocess(model.request(target=targets), None, None)
    plan.save(tmp_path)
    disk = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert said.disk_bytes == pytest.approx(disk, rel=WITHIN)
    assert said.memory_bytes == pytest.approx(plan.peak_bytes, rel=WITHIN)
