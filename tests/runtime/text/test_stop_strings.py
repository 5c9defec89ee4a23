"""Stop strings in text that comes in pieces."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paddock.runtime.text.stop_strings import StopStrings
from tests.runtime.alone import find_stop

strings = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4, unique=True).map(tuple)
pieces = st.lists(st.tuples(st.text("ab", max_size=4), st.booleans()), max_size=8)


def holds_back(text: str, stop: tuple[str, ...]) -> int:
    """The length of the longest end of `text` that begins a stop string."""
    begins = (string[:end] for string in stop for end in range(len(string)))
    return max((len(begin) for begin in begins if text.endswith(begin)), default=0)


@settings(deadline=None, max_examples=300)
@given(given_pieces=pieces, stop=strings, keep=st.booleans())
@example(given_pieces=[("ab", True)], stop=("abc", "b"), keep=False)
@example(given_pieces=[("a", True), ("b", True)], stop=("b", "ab"), keep=False)
def test_text_is_cut_where_the_first_stop_string_is_complete(
    given_pieces: list[tuple[str, bool]], stop: tuple[str, ...], keep: bool
) -> None:
    matcher = StopStrings(stop, keep=keep)
    text = out = ""
    for piece, may_stop in given_pieces:
        seen, text = len(text), text + piece
        out += matcher.push(piece, may_stop=may_stop)
        found = find_stop(text, seen, stop) if may_stop else None
        if found is not None:
            start, string = found
            assert matcher.found == string
            assert out == text[: start + len(string) if keep else start]
            return
        assert matcher.found is None
        assert out == text[: len(text) - holds_back(text, stop)], "as much as can be, no more"
    assert out + matcher.finish() == text


@pytest.mark.parametrize("keep", [False, True])
def test_a_stop_string_over_several_pieces(keep: bool) -> None:
    matcher = StopStrings(("\n\nUser:",), keep=keep)
    out = [matcher.push(piece) for piece in ("Yes.", "\n", "\nUs", "er", ": no")]
    assert out[:4] == ["Yes.", "", "", ""]
    assert out[4] == ("\n\nUser:" if keep else "")
    assert matcher.found == "\n\nUser:"


def test_held_text_comes_out_when_it_turns_out_harmless() -> None:
    matcher = StopStrings(("aab",), keep=False)
    assert [matcher.push(piece) for piece in "aaac"] == ["", "", "a", "aac"]


def test_long_stop_strings_cost_no_more_than_the_text() -> None:
    """A million characters that keep beginning a long stop string; a naive search would hang."""
    matcher = StopStrings(("a" * 50_000 + "b",), keep=False)
    assert matcher.push("a" * 200_000) == "a" * 150_000
    assert matcher.push("c") == "a" * 50_000 + "c"
