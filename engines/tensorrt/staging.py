"""Host memory that steps are sent from and tokens come back to."""

from __future__ import annotations

from paddock.engines.tensorrt.device import Device
from paddock.graph import Array

_LEAST = 1 << 12  # bytes


class Staging:
    """Page-locked pieces, which are lent to a step until it is done, and then to another."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._free: dict[int, list[Array]] = {}

    def lend(self, nbytes: int) -> Array:
        """So many bytes at least; they hold what they held."""
        room = max(_LEAST, 1 << (nbytes - 1).bit_length())
        kept = self._free.get(room)
        return kept.pop() if kept else self._device.pinned(room)

    def give_back(self, lent: list[Array]) -> None:
        """When nothing that was queued reads or writes them any more."""
        for piece in lent:
            self._free.setdefault(piece.nbytes, []).append(piece)
        lent.clear()
