"""Text made token by token is the text of all tokens, and never half a character."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from paddock.runtime.strict_json import TokenizerError
from paddock.runtime.text.detokenizer import Detokenizer
from tests.runtime.tiny_tokenizers import DEMO, byte_level, llama_decoder, sentencepiece_like

D = decoders
KINDS: dict[str, Callable[[], Backend]] = {
    "demo": lambda: Backend.from_file(str(DEMO / "tokenizer.json")),
    "byte level": byte_level,
    "llama 2": lambda: sentencepiece_like(llama_decoder()),
    "gemma": lambda: sentencepiece_like(
        D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse()])
    ),
    "metaspace": lambda: sentencepiece_like(D.Metaspace()),
    "metaspace, nothing prepended": lambda: sentencepiece_like(
        D.Sequence([D.ByteFallback(), D.Metaspace(prepend_scheme="never")])
    ),
    "strip of each token": lambda: sentencepiece_like(
        D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Strip(" ", 2, 0)])
    ),
    "strip of the text": lambda: sentencepiece_like(
        D.Sequence([D.Replace("▁", " "), D.Fuse(), D.Strip(" ", 3, 0)])
    ),
    "no decoder": lambda: Backend(models.WordLevel({"a": 0, "b": 1, "日": 2}, unk_token="a")),
}
BACKENDS = {name: make() for name, make in KINDS.items()}
DETOKENIZERS = {name: Detokenizer(backend, name) for name, backend in BACKENDS.items()}


def token_ids(backend: Backend) -> st.SearchStrategy[list[int]]:
    """Ids of all sorts: of bytes often, of special tokens, and a few of no token."""
    size = backend.get_vocab_size()
    added = sorted(backend.get_added_tokens_decoder())
    choices = [
        st.integers(0, size + 2),
        st.integers(0, min(size, 262)),
        st.integers(max(0, size - 30), size),
    ]
    if added:
        choices.append(st.sampled_from(added))
    return st.lists(st.one_of(choices), max_size=40)


kinds = st.sampled_from(sorted(KINDS))
cases = kinds.flatmap(lambda kind: st.tuples(st.just(kind), token_ids(BACKENDS[kind])))


def id_of(kind: str, token: str) -> int:
    found = BACKENDS[kind].token_to_id(token)
    assert found is not None
    return found


def pieces(kind: str, ids: Sequence[int], prompt: Sequence[int] = (), skip: bool = True) -> str:
    decoder = DETOKENIZERS[kind].start(prompt, skip)
    return "".join([*map(decoder.push, ids), decoder.finish()])


@settings(max_examples=1500, deadline=None)
@given(cases, st.booleans())
def test_the_pieces_are_the_whole(case: tuple[str, list[int]], skip: bool) -> None:
    kind, ids = case
    expected = BACKENDS[kind].decode(ids, skip_special_tokens=skip)
    assert pieces(kind, ids, skip=skip) == expected


@settings(max_examples=1000, deadline=None)
@given(cases, st.data(), st.booleans())
def test_after_a_prompt_comes_what_follows_its_text(
    case: tuple[str, list[int]], data: st.DataObject, skip: bool
) -> None:
    kind, ids = case
    split = data.draw(st.integers(0, len(ids)))
    prompt, rest = ids[:split], ids[split:]
    decoder = DETOKENIZERS[kind].start((), skip)
    final_text_of_prompt = "".join(map(decoder.push, prompt))
    expected = BACKENDS[kind].decode(ids, skip_special_tokens=skip)
    assert final_text_of_prompt + pieces(kind, rest, prompt, skip) == expected


class CountingPrompt(list[int]):
    """Counts how many of its tokens are read, from the end."""

    read = 0

    def __reversed__(self) -> Iterator[int]:
        for token_id in super().__reversed__():
            self.read += 1
            yield token_id


@pytest.mark.parametrize("kind", ["demo", "byte level", "llama 2", "gemma", "metaspace"])
@pytest.mark.parametrize("end", [[], [3], list(range(3, 200))])
def test_only_the_end_of_a_long_prompt_is_looked_at(kind: str, end: list[int]) -> None:
    prompt = CountingPrompt([5, 270, 261] * 1000 + end)
    text = pieces(kind, [200, 201], prompt)
    assert prompt.read <= len(end) + 30
    assert BACKENDS[kind].decode([*prompt, 200, 201]).endswith(text)
    assert text == pieces(kind, [200, 201], prompt[-500:])


@pytest.mark.parametrize("kind", ["demo", "byte level"])
@pytest.mark.parametrize(
    "text", ["naïve café", "日本語", "👩‍👩‍👧‍👦 family", "e\u0301", "🎉🎉", "\u202eabc"]
)
def test_no_piece_is_half_a_character(kind: str, text: str) -> None:
    ids = BACKENDS[kind].encode(text, add_special_tokens=False).ids
    decoder = DETOKENIZERS[kind].start()
    made = [decoder.push(id_) for id_ in ids]
    assert decoder.finish() == ""
    assert "".join(made) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in made)
    assert all(unicodedata.category(c) != "Cs" for piece in made for c in piece)


def test_bytes_of_a_character_wait_for_each_other() -> None:
    decoder = DETOKENIZERS["llama 2"].start([1])
    ids = [
        id_of("llama 2", token) for token in ("▁the", "<0xE6>", "<0x97>", "<0xA5>", "b", "<0xE6>")
    ]
    assert [decoder.push(id_) for id_ in ids] == ["the", "", "", "", "日b", ""]
    assert decoder.finish() == "\N{REPLACEMENT CHARACTER}"


def test_a_leading_space_is_kept_after_a_prompt() -> None:
    the = id_of("llama 2", "▁the")
    assert pieces("llama 2", [the]) == "the"
    assert pieces("llama 2", [the], prompt=[1]) == "the"
    assert pieces("llama 2", [the], prompt=[1, the]) == " the"
    assert pieces("llama 2", [the], prompt=[1], skip=False) == " the"


def test_a_character_may_begin_in_the_prompt() -> None:
    *begun, last = [id_of("byte level", c) for c in "ðŁİī"]  # the bytes of 🎉
    assert pieces("byte level", [last], prompt=[5, 5, *begun]) == "🎉"


def test_a_run_of_bytes_is_judged_from_its_start() -> None:
    letter = id_of("llama 2", "<0x41>")
    run = [id_of("llama 2", "<0xFF>"), *[letter] * 30]
    text = pieces("llama 2", [letter], prompt=[id_of("llama 2", "▁the"), *run])
    assert text == "\N{REPLACEMENT CHARACTER}" * 32


def test_impossible_bytes_do_not_hold_back_what_follows() -> None:
    backend = BACKENDS["byte level"]
    [lead] = backend.encode("日", add_special_tokens=False).ids[:1]
    broken = id_of("byte level", "æ")  # the first byte of 日
    decoder = DETOKENIZERS["byte level"].start()
    for _ in range(1000):
        decoder.push(broken)
    assert decoder.push(lead) == "\N{REPLACEMENT CHARACTER}日"


@pytest.mark.parametrize(
    "decoder",
    [
        D.WordPiece(),
        D.BPEDecoder(),
        D.CTC(),
        D.Sequence([D.Fuse(), D.Replace("ab", "c")]),
        D.Strip(" ", 0, 1),
    ],
)
def test_decoders_that_need_the_whole_text_are_refused(decoder: decoders.Decoder) -> None:
    backend = sentencepiece_like(decoder)
    with pytest.raises(TokenizerError, match=r"here.json: decoder: .* token by token .*ByteLevel"):
        Detokenizer(backend, "here.json")
