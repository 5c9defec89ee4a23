"""Which replica takes a request: the one that has its prefix cached, if it is not too busy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from math import ceil

EXCESS = 1.25
"""How much more than its equal share a replica may have because it knows a prefix."""


class Router:
    """Remembers who took which prefix, and who has how much to do. Not thread-safe.

    A replica is given no request that makes its sequences more than `EXCESS` times an equal share
    ("Consistent Hashing with Bounded Loads", Mirrokni, Thorup and Zadimoghaddam, 2016); the one
    with the least to do may always take one. Of those that may, the one that knows most of the
    prompt takes it, of these the one with the least to do, and of these the one that was given
    least so far.
    """

    def __init__(self, replicas: int, remembered: int) -> None:
        """`remembered`: how many blocks' digests are kept; about as many as all caches hold."""
        self.load = [0] * replicas  # sequences that were given and have not ended
        self._given = [0] * replicas
        self._remembered = remembered
        self._holders: OrderedDict[bytes, int] = OrderedDict()  # one bit a replica; oldest first

    def choose(self, digests: Sequence[bytes], sequences: int, among: Collection[int]) -> int:
        """One of `among` for a prompt with the blocks `digests`, continued `sequences` times."""
        total = sum(self.load[replica] for replica in among) + sequences
        share = ceil(EXCESS * total / len(among))
        least = min(self.load[replica] for replica in among)
        free = [r for r in among if self.load[r] + sequences <= max(share, least + sequences)]
        known = {replica: self._known(digests, replica) for replica in free}
        return min(free, key=lambda r: (-known[r], self.load[r], self._given[r], r))

    def give(self, replica: int, sequences: int) -> None:
        """`replica` gets a request of so many sequences."""
        self.load[replica] += sequences
        self._given[replica] += 1

    def learn(self, replica: int, digests: Sequence[bytes]) -> None:
        """`replica` has taken a prompt of these blocks, and will have them in its cache."""
        for digest in digests:
            self._holders[digest] = self._holders.pop(digest, 0) | 1 << replica
        while len(self._holders) > self._remembered:
            self._holders.popitem(last=False)

    def end(self, replica: int, sequences: int) -> None:
        """A request of so many sequences has ended there."""
        self.load[replica] -= sequences

    def _known(self, digests: Sequence[bytes], replica: int) -> int:
        """The blocks from the prompt's beginning that the replica was given before."""
        count = 0
        for digest in digests:
            if not self._holders.get(digest, 0) >> replica & 1:
                break
            count += 1
        return count
