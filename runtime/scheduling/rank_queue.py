"""A priority queue from which anything can be taken out."""

import heapq
from typing import Generic, TypeVar

Item = TypeVar("Item")
Rank = tuple[float, ...]


class RankQueue(Generic[Item]):
    """Items by rank, smallest first; ranks are unique.

    Every operation costs O(log n) at most: a discarded item leaves a hole in the heap, and holes
    are swept out when they outnumber the items.
    """

    def __init__(self) -> None:
        self._heap: list[Rank] = []
        self._items: dict[Rank, Item] = {}

    def __len__(self) -> int:
        return len(self._items)

    def push(self, rank: Rank, item: Item) -> None:
        """Put an item in. The rank must not be in the queue."""
        assert rank not in self._items
        self._items[rank] = item
        heapq.heappush(self._heap, rank)

    def first(self) -> tuple[Rank, Item] | None:
        """The item with the smallest rank, which stays; None where the queue is empty."""
        heap, items = self._heap, self._items
        while heap:
            item = items.get(heap[0])
            if item is not None:
                return heap[0], item
            heapq.heappop(heap)
        return None

    def discard(self, rank: Rank) -> bool:
        """Take out the item with this rank; False where there is none."""
        if self._items.pop(rank, None) is None:
            return False
        if self._heap[0] == rank:
            heapq.heappop(self._heap)
        elif len(self._heap) > 2 * len(self._items) + 64:
            self._heap = list(self._items)
            heapq.heapify(self._heap)
        return True

    def items(self) -> list[Item]:
        """All items, in no order."""
        return list(self._items.values())
