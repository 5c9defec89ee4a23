"""A plugin of recipes: the double of the device in the place of the GPU, in every rank."""

from __future__ import annotations

from typing import Any

from paddock.engines.cuda import gpu
from tests.engines.cuda.host_device import HostDevice


class HostGPU(HostDevice):
    def __init__(self, **options: Any) -> None:
        super().__init__()


gpu.GPU = HostGPU  # type: ignore[assignment, misc]
