"""Digests stand for all tokens up to a block's end, and for the salt."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paddock.runtime.scheduling.prefix_hash import PrefixHasher

HASHER = PrefixHasher(4)
tokens = st.lists(st.integers(0, 3), max_size=20)


@settings(deadline=None)
@given(first=tokens, second=tokens, salts=st.tuples(st.booleans(), st.booleans()))
def test_digests_are_equal_exactly_where_prefixes_and_salts_are(
    first: list[int], second: list[int], salts: tuple[bool, bool]
) -> None:
    roots = [HASHER.root(b"salt" if salted else b"") for salted in salts]
    ours = HASHER.blocks(roots[0], np.array(first, np.int64))
    theirs = HASHER.blocks(roots[1], np.array(second, np.int64))
    assert len(ours) == len(first) // 4
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        end = 4 * (index + 1)
        assert (one == other) == (first[:end] == second[:end] and salts[0] == salts[1])


def test_one_block_after_the_other_is_the_chain() -> None:
    ids = np.arange(12)
    parent = HASHER.root()
    for index, digest in enumerate(HASHER.blocks(HASHER.root(), ids)):
        parent = HASHER.block(parent, ids[4 * index : 4 * index + 4])
        assert parent == digest


def test_equal_blocks_in_different_places_differ() -> None:
    digests = HASHER.blocks(HASHER.root(), np.zeros(12, np.int64))
    assert len(set(digests)) == 3


def test_digests_cannot_be_foretold() -> None:
    ids = np.arange(4)
    other = PrefixHasher(4)
    assert other.blocks(other.root(), ids) != HASHER.blocks(HASHER.root(), ids)
    assert len(HASHER.root()) >= 16
