"""Which slots take which elements of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from paddock.weights.safetensors_file import Box
from paddock.weights.source import Source


class Claims:
    """Which slots take which boxes of each tensor."""

    def __init__(self) -> None:
        self.taken: dict[str, list[tuple[Box, str]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, slot: str, parts: Mapping[str, Source]) -> None:
        for source in parts.values():
            for tensor, box in source.boxes():
                self.taken.setdefault(tensor.name, []).append((box, slot))
                self._shapes[tensor.name] = tensor.shape

    def faults(self) -> list[str]:
        """Of each tensor whose boxes are not the tensor, with no element twice and none left."""
        found: list[str] = []
        for tensor, claims in self.taken.items():
            claims.sort()
            for (box, slot), (other, another) in _overlaps(claims):
                what = f"both {slot} and {another}" if slot != another else f"{slot} twice"
                found.append(
                    f"{tensor!r}: {_shown(box)} and {_shown(other)} of it are taken by {what}"
                )
                break
            else:
                size = int(np.prod(self._shapes[tensor], dtype=object))
                taken = sum(
                    int(np.prod([b - a for a, b in box], dtype=object)) for box, _ in claims
                )
                if taken != size:
                    users = ", ".join(dict.fromkeys(slot for _, slot in claims))
                    found.append(
                        f"{tensor!r} {list(self._shapes[tensor])}: {users} take {taken} of its"
                        f" {size} elements, nobody takes the others"
                    )
        return found


def _overlaps(
    claims: list[tuple[Box, str]],
) -> Iterator[tuple[tuple[Box, str], tuple[Box, str]]]:
    """Pairs of sorted boxes that share an element."""
    for i, claim in enumerate(claims):
        for other in claims[i + 1 :]:
            if claim[0] and other[0][0][0] >= claim[0][0][1]:
                break  # sorted by their first rows: nobody further on can reach back
            if all(a < d and c < b for (a, b), (c, d) in zip(claim[0], other[0], strict=True)):
                yield claim, other


def _shown(box: Box) -> str:
    return f"[{', '.join(f'{start}:{stop}' for start, stop in box)}]"
