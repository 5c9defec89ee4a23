"""Tokenizer files of any content: they are read and used, or refused by a documented error."""

# What is drawn from is easier to read in full lines.
# ruff: noqa: E501

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from paddock.runtime.errors import RequestError
from paddock.runtime.text.tokenizer import Tokenizer, TokenizerError
from tests.fuzz.bounds import bounded, fuzz
from tests.runtime.tiny_tokenizers import byte_level, sentencepiece_like

WHOLE: list[Any] = [json.loads(made().to_str()) for made in (byte_level, sentencepiece_like)]
OTHERS = ["tokenizer_config", "special_tokens_map", "generation_config", "config"]
FIELDS = [
    *("bos_token", "eos_token", "pad_token", "additional_special_tokens", "added_tokens_decoder"),
    *("chat_template", "model_max_length", "eos_token_id", "bos_token_id", "text_config"),
    *("extra_special_tokens", "tokenizer_class", "auto_map", "unk_token"),
]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 255, 2**31, 2**32, 2**63, 2**64, 10**40, 1e30, -0.5]),
    st.text(max_size=8),
    st.sampled_from(["ByteLevel", "WordPiece", "Unigram", "BPE", "Regex", "(a+)+$", "(?<=a{0,9})", "▁"]),
    st.just([]),
    st.just({}),
    st.lists(st.integers(-1, 300), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(-1, 300), max_size=3),
    st.fixed_dictionaries({"type": st.text(max_size=4), "content": st.text(max_size=4)}),
    st.fixed_dictionaries({"content": st.text(max_size=4), "special": st.booleans()}),
)  # fmt: skip
TEXTS = ["", "the haha 日本 é🎉", "<s>[INST] \x00\ufffd", "a" * 300]


def _mutated(draw: st.DrawFn, value: Any) -> Any:
    """One place, or a few, of a JSON value changed; larger parts are walked into by chance."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while True:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key: Any = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 4)):
                place = place[key]
                continue
            change = draw(st.integers(0, 3))
            if change == 0:
                del place[key]
            elif change == 1 and isinstance(place, list):
                place.append(copy.deepcopy(place[key]))
            else:
                place[key] = draw(ODD)
            break
    return value


@st.composite
def tokenizers(draw: st.DrawFn) -> bytes:
    text = json.dumps(_mutated(draw, draw(st.sampled_from(WHOLE))))
    data = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        cut = draw(st.integers(0, len(data)))
        data = data[:cut] + draw(st.binary(max_size=4)) + data[cut:]
    return data


def _use(folder: Path) -> None:
    with bounded():
        try:
            tokenizer = Tokenizer(folder)
        except TokenizerError as error:
            message = str(error)
            assert folder.name in message
            assert len(message) < 3000
            return
        for text in TEXTS:
            with contextlib.suppress(RequestError, TokenizerError):
                ids = tokenizer.encode(text)
                assert isinstance(tokenizer.decode(ids), str)
                tokenizer.encode_within(text, text, limit=4)
        stream = tokenizer.incremental()
        for token_id in (*range(0, min(tokenizer.vocab_size, 300), 7), 2**31 - 1):
            stream.push(token_id)
            tokenizer.token_bytes(token_id)
            tokenizer.is_special(token_id)
        stream.finish()
        with contextlib.suppress(RequestError, TokenizerError):
            tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])


@fuzz(200)
@given(tokenizers())
def test_any_tokenizer_json(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "tokenizer.json").write_bytes(data)
        _use(Path(name))


@fuzz(150)
@given(
    st.dictionaries(
        st.sampled_from(OTHERS),
        st.one_of(st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=4), ODD),
        min_size=1,
        max_size=3,
    )
)
def test_any_other_file(files: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        byte_level().save(str(folder / "tokenizer.json"))
        for stem, content in files.items():
            text = json.dumps(content).encode("utf-8", "surrogatepass")
            (folder / f"{stem}.json").write_bytes(text)
        _use(folder)
