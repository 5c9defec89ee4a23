"""These tests build networks with NVIDIA's own library; they are skipped where it is absent."""

from __future__ import annotations

import pytest

from paddock.engines.tensorrt import flavours
from paddock.engines.tensorrt.flavours import Flavour


@pytest.fixture(scope="session")
def flavour() -> Flavour:
    """TensorRT for RTX, which builds on a machine with no GPU."""
    if "tensorrt_rtx" not in flavours.installed():
        pytest.skip("tensorrt_rtx is not installed (`make tensorrt` installs it)")
    return flavours.find("tensorrt_rtx")
