"""The block pool against the simplest account of who holds what."""

from __future__ import annotations

import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from paddock.runtime.scheduling.block_pool import BlockPool

BLOCKS = 6


class PoolMachine(RuleBasedStateMachine):
    """Holders take, share, fill and give back blocks; `content` says what each block contains."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS)
        self.holders: list[list[int]] = []
        self.content: dict[int, bytes] = {}

    @rule(count=st.integers(1, 3))
    def allocate(self, count: int) -> None:
        if count > self.pool.free:
            with pytest.raises(AssertionError, match="free"):
                self.pool.allocate(count)
            return
        held = {block for holder in self.holders for block in holder}
        blocks = self.pool.allocate(count)
        assert not held & set(blocks), "a block somebody holds was given away"
        for block in blocks:
            self.content.pop(block, None)
        self.holders.append(blocks)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), name=st.integers(0, 4))
    def fill(self, data: st.DataObject, name: int) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        block = data.draw(st.sampled_from(holder))
        if block in self.content:
            return
        digest = bytes([name])
        known = self.pool.find([digest])
        self.pool.register(block, digest)
        if not known:
            self.content[block] = digest

    @rule(names=st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True))
    def share(self, names: list[int]) -> None:
        digests = [bytes([name]) for name in names]
        found = self.pool.find(digests)
        assert [self.content[block] for block in found] == digests[: len(found)]
        if found:
            self.pool.hold(found)
            self.holders.append(found)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        self.pool.release(self.holders.pop(index))

    @invariant()
    def audits(self) -> None:
        self.pool.audit(self.holders)
        held = {block for holder in self.holders for block in holder}
        assert self.pool.held == len(held)
        assert self.pool.free == BLOCKS - len(held)


TestBlockPool = PoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=100, deadline=None)


def filled_pool() -> tuple[BlockPool, list[int]]:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    for block, digest in zip(blocks, (b"1", b"2", b"3"), strict=True):
        pool.register(block, digest)
    return pool, blocks


def test_released_content_is_found_until_the_block_is_needed() -> None:
    pool, blocks = filled_pool()
    pool.release(blocks)
    assert pool.find([b"1", b"2", b"3"]) == blocks
    pool.allocate(1)  # the empty one goes first
    assert pool.find([b"1", b"2", b"3"]) == blocks
    pool.allocate(1)
    assert pool.find([b"1", b"2", b"3"]) == blocks[:2], "a prefix outlives its continuation"


def test_the_least_recently_used_goes_first() -> None:
    pool, blocks = filled_pool()
    for block in blocks:
        pool.release([block])
    pool.hold(pool.find([b"1"]))
    pool.release(blocks[:1])
    pool.allocate(2)
    assert pool.find([b"2"]) == []
    assert pool.find([b"3"]) == blocks[2:]
    assert pool.find([b"1"]) == blocks[:1]


def test_a_block_held_twice_is_free_after_the_second_release() -> None:
    pool, blocks = filled_pool()
    pool.hold(blocks)
    pool.release(blocks)
    assert pool.held == 3
    assert pool.references(blocks[0]) == 1
    pool.release(blocks)
    assert pool.held == 0


def test_of_two_blocks_with_one_content_the_first_is_found() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.register(first, b"same")
    pool.register(second, b"same")
    assert pool.find([b"same"]) == [first]
    pool.release([second])
    pool.audit([[first]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda pool: pool._references.__setitem__(0, 2), "references"),
        (lambda pool: pool._empty.append(0), "held, evictable, empty"),
        (lambda pool: pool._digests.__setitem__(0, b"other"), "does not lead back"),
        (lambda pool: pool._block_of.__setitem__(b"other", 3), "does not have it"),
        (lambda pool: pool._empty.append(3), "twice in the list"),
    ],
)
def test_the_audit_sees_damage(damage: object, message: str) -> None:
    pool, blocks = filled_pool()
    pool.audit([blocks])
    assert callable(damage)
    damage(pool)
    with pytest.raises(AssertionError, match=message):
        pool.audit([blocks])


def test_a_block_costs_the_same_in_a_pool_of_any_size() -> None:
    def seconds(size: int) -> float:
        pool = BlockPool(size)
        for number in range(size):
            (block,) = pool.allocate(1)
            pool.register(block, number.to_bytes(4, "little"))
            pool.release([block])
        best = float("inf")
        for _ in range(5):
            began = time.perf_counter()
            for number in range(300):
                blocks = pool.allocate(4)
                for index, block in enumerate(blocks):
                    pool.register(block, (size + 4 * number + index).to_bytes(8, "little"))
                pool.release(blocks)
                pool.hold(pool.find([(size + 4 * number).to_bytes(8, "little")]))
                pool.release(blocks[:1])
            best = min(best, time.perf_counter() - began)
        return best

    assert seconds(200_000) < 5 * seconds(2_000)
