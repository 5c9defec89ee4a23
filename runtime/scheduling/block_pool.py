"""The cache's blocks: who holds which, and which content can be found again."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Reference-counted blocks with reuse by content; every operation is O(1) a block.

    A block is in one of three states:

        held        one or more sequences reference it
        evictable   nobody references it, but its content is known by a digest and can be found;
                    the least recently used one is given away first
        empty       nobody references it and its content is of no use

    The pool knows block numbers and digests only; what is in the blocks is the session's.
    """

    def __init__(self, blocks: int) -> None:
        self.size = blocks
        self._references = [0] * blocks
        self._digests: list[bytes | None] = [None] * blocks
        self._block_of: dict[bytes, int] = {}
        self._empty = list(range(blocks - 1, -1, -1))
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self.changes = 0  # grows whenever more blocks are free, or more content can be found

    @property
    def free(self) -> int:
        """Blocks that `allocate` can give: empty and evictable ones."""
        return len(self._empty) + len(self._evictable)

    @property
    def held(self) -> int:
        """Blocks that somebody references."""
        return self.size - self.free

    def references(self, block: int) -> int:
        """How many hold this block."""
        return self._references[block]

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix of a chain of digests; nothing is held by it."""
        found: list[int] = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def hold(self, blocks: Sequence[int]) -> None:
        """Add one reference to each of these found blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._evictable[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks, each with one reference and no content; the caller checked `free`."""
        if count > self.free:
            raise AssertionError(f"{count} blocks asked of a pool with {self.free} free")
        taken: list[int] = []
        for _ in range(count):
            if self._empty:
                block = self._empty.pop()
            else:
                block, _ = self._evictable.popitem(last=False)
                digest = self._digests[block]
                assert digest is not None
                del self._block_of[digest]
                self._digests[block] = None
            self._references[block] = 1
            taken.append(block)
        return taken

    def register(self, block: int, digest: bytes) -> None:
        """Say what a held block, now full, contains.

        Where another block has the same content already, that one stays the one to be found.
        """
        if digest not in self._block_of:
            self._block_of[digest] = block
            self._digests[block] = digest
            self.changes += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Take one reference from each block, given in the order of the sequence's tokens.

        The last blocks become the first to be evicted: a prefix is of use without its
        continuation, a continuation without its prefix never is.
        """
        self.changes += 1
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            if self._digests[block] is None:
                self._empty.append(block)
            else:
                self._evictable[block] = None

    def audit(self, holders: Iterable[Sequence[int]]) -> None:
        """Check every invariant against the blocks that each holder believes to have.

        Raises `AssertionError` that names the block. O(size); for tests and for diagnosis.
        """
        expected = [0] * self.size
        for blocks in holders:
            if len(set(blocks)) != len(blocks):
                raise AssertionError(f"a holder has a block twice: {list(blocks)}")
            for block in blocks:
                expected[block] += 1
        empty = set(self._empty)
        if len(empty) != len(self._empty):
            raise AssertionError("a block is twice in the list of empty blocks")
        for block in range(self.size):
            found = self._references[block]
            if found != expected[block]:
                raise AssertionError(
                    f"block {block}: {expected[block]} sequences hold it, {found} references"
                )
            digest = self._digests[block]
            states = (found > 0, block in self._evictable, block in empty)
            if sum(states) != 1:
                raise AssertionError(f"block {block}: held, evictable, empty = {states}")
            if block in self._evictable and digest is None:
                raise AssertionError(f"block {block}: evictable with no digest")
            if block in empty and digest is not None:
                raise AssertionError(f"block {block}: empty, yet it has a digest")
            if digest is not None and self._block_of.get(digest) != block:
                raise AssertionError(f"block {block}: its digest does not lead back to it")
        if len(self._block_of) != sum(digest is not None for digest in self._digests):
            raise AssertionError("a digest leads to a block that does not have it")
