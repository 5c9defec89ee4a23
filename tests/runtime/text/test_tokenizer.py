"""A checkpoint's tokenizer: what transformers makes of the same files, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from paddock.runtime.errors import RequestError
from paddock.runtime.text.tokenizer import Tokenizer, TokenizerError
from tests.runtime.tiny_tokenizers import (
    DEMO,
    byte_level,
    sentencepiece_like,
    write_checkpoint,
)

TEXTS = (
    *("", " ", "  ", "\n", "\t\t", "a", " a", "a ", "Hello world", "  two  spaces  ", "\r\n\r\n"),
    *(
        "naïve café",
        "e\u0301 e\u0301\u0301",
        "日本語のテキスト",
        "한국어",
        "עברית",
        "العربية",
        "ไทย",
    ),
    *("👍", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "\u200d\u200d", "\ufeffbom", "\u00a0\u2003", "\u202eabc"),
    *("\x00", "a\x00b", "\x01\x1f\x7f\x80\x9f", "\uffff", "\ufffd", "\U0010ffff", "\U00020000"),
    *("<|bos|>", "<|eos|>text<|pad|>", "<|user|>hi<|assistant|>", "<|bos|", "<|user |>", "<||>"),
    *("<|user|><|user|>", " <|user|> ", "x<|eos|>", "<s> </s>", "<tool>", " spaced token ", "▁the"),
    *(
        "the" * 500,
        "9" * 1000,
        " " * 300,
        "a\n" * 200,
        "def f(x):\n    return x  # y\n",
        "it's we'LL",
    ),
)


def many_texts() -> list[str]:
    """The above, and some hundreds of random mixtures of them and of random characters."""
    generator = random.Random(0)
    ranges = ((0x20, 0x7F), (0, 0x250), (0x300, 0x370), (0x1F300, 0x1FAFF), (0x3040, 0x30FF))
    texts = list(TEXTS)
    for _ in range(400):
        parts = [
            generator.choice(TEXTS)[:40]
            if generator.random() < 0.5
            else chr(generator.randrange(*generator.choice(ranges)))
            for _ in range(generator.randrange(1, 12))
        ]
        texts.append("".join(parts))
    return texts


DEMO_TOKENIZER = Tokenizer(DEMO)


@pytest.fixture
def demo() -> Tokenizer:
    return DEMO_TOKENIZER


def truncating() -> Any:
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9, pad_token="<|end|>")
    return tokenizer


def with_bos_template() -> Any:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "byte level": {"tokenizer_config": {"eos_token": "<|end|>"}},
    "its post-processor adds a beginning, the configuration says no": {
        "tokenizer": with_bos_template(),
        "tokenizer_config": {"bos_token": "<s>", "eos_token": "<|end|>", "add_bos_token": False},
    },
    "the configuration says to add a beginning and an end": {
        "tokenizer_config": {
            "bos_token": "<|end|>",
            "eos_token": "<|end|>",
            "add_bos_token": True,
            "add_eos_token": True,
        },
    },
    "sentencepiece": {
        "tokenizer": sentencepiece_like(),
        "tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "special_tokens_map": {"bos_token": {"content": "<s>", "lstrip": False}},
    },
    "special tokens that are not among the added ones": {
        "tokenizer": sentencepiece_like(),
        "tokenizer_config": {"eos_token": "▁the", "additional_special_tokens": ["▁x▁y", "new"]},
    },
    "added tokens with other settings": {
        "tokenizer_config": {
            "eos_token": "<|end|>",
            "added_tokens_decoder": {
                str(byte_level().token_to_id("<tool 日>")): {
                    "content": "<tool 日>",
                    "lstrip": True,
                    "rstrip": True,
                    "normalized": False,
                    "single_word": False,
                    "special": True,
                },
                str(byte_level().get_vocab_size()): {
                    "content": "<new>",
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "single_word": False,
                    "special": False,
                },
            },
        },
    },
    "truncation and padding": {
        "tokenizer": truncating(),
        "tokenizer_config": {"eos_token": "<|end|>", "pad_token": "<|end|>"},
    },
}


def assert_same_as_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="compares with it, live")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    ours = Tokenizer(folder)
    for text in many_texts():
        for add in (True, False):
            expected = theirs.encode(text, add_special_tokens=add)
            assert ours.encode(text, add_special_tokens=add) == expected, text
        for skip in (True, False):
            assert ours.decode(expected, skip) == theirs.decode(expected, skip_special_tokens=skip)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.vocab_size == len(theirs)


def test_the_demo_is_read_as_transformers_reads_it() -> None:
    assert_same_as_transformers(DEMO)


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.filterwarnings("ignore")
def test_checkpoints_are_read_as_transformers_reads_them(name: str, tmp_path: Path) -> None:
    assert_same_as_transformers(write_checkpoint(tmp_path, **CHECKPOINTS[name]))


def test_what_the_demo_says(demo: Tokenizer) -> None:
    assert demo.vocab_size == 4096
    assert demo.bos_token_id == 0
    assert demo.eos_token_ids == {1}
    assert demo.encode("Hi")[0] == 0
    assert 0 not in demo.encode("Hi", add_special_tokens=False)
    assert demo.token(3) == "<|user|>"
    assert demo.token(5000) is None


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_text_comes_back(text: str) -> None:
    assert DEMO_TOKENIZER.decode(DEMO_TOKENIZER.encode(text)) == text


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 7}, {}, {7}),
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 3}, {3, 7, 9}),
        ({"eos_token_id": None}, {"text_config": {"eos_token_id": 5}}, {5}),
        ({}, {}, set()),
    ],
)
def test_ends_are_gathered_from_all_files(
    tmp_path: Path, generation: dict[str, Any], config: dict[str, Any], expected: set[int]
) -> None:
    own = byte_level().token_to_id("<|end|>")
    write_checkpoint(tmp_path / "a", generation_config=generation, config=config)
    assert Tokenizer(tmp_path / "a").eos_token_ids == expected
    write_checkpoint(
        tmp_path / "b",
        generation_config=generation,
        config=config,
        tokenizer_config={"eos_token": "<|end|>", "bos_token": "<|end|>"},
    )
    assert Tokenizer(tmp_path / "b").eos_token_ids == expected | {own}
    assert Tokenizer(tmp_path / "b").bos_token_id == own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc\ud83d", r"the prompt: character 3 .*U\+D83D"),
        ("\udc80", r"character 0 .*U\+DC80.*bytes that are not UTF-8"),
    ],
)
def test_text_that_is_none_is_refused(demo: Tokenizer, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        demo.encode(text)


def test_other_types_are_refused(demo: Tokenizer) -> None:
    with pytest.raises(RequestError, match="expected text, found bytes"):
        demo.encode(b"abc")  # type: ignore[arg-type]
    for ids in ([-1], [2**32], ["a"]):
        with pytest.raises(RequestError, match="token ids: expected integers"):
            demo.decode(ids)  # type: ignore[arg-type]


GOOD = json.loads(byte_level().to_str())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "tokenizer.json: not a tokenizer .*line 1"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json: not a tokenizer"),
        ("tokenizer.json", json.dumps(GOOD | {"model": {"type": "BPE"}}).encode(), "vocab"),
        ("tokenizer_config.json", b"\xff", "tokenizer_config.json: not UTF-8 at byte 0"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: expected a JSON object"),
        ("tokenizer_config.json", b'{"a": 1,}', "not JSON at line 1, column 9"),
        ("tokenizer_config.json", b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ("tokenizer_config.json", b'{"a": NaN}', "NaN is not JSON"),
        ("tokenizer_config.json", b'{"a":' * 100_000, "nested too deeply"),
        ("tokenizer_config.json", b'{"a": 1' + b"0" * 5000 + b"}", "4300 digits"),
        ("tokenizer_config.json", b'{"eos_token": 5}', "eos_token: .*found 5"),
        ("tokenizer_config.json", b'{"eos_token": {"lstrip": true}}', "eos_token.content: .*requ"),
        ("tokenizer_config.json", b'{"eos_token": {"content": ""}}', "eos_token.content: "),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder.x"),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"3": {"content": "<|end|>"}}}',
            "added_tokens_decoder.3: the token '<|end|>' has id 2",
        ),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat_template"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "a"}]}', "chat_template"),
        (
            "tokenizer_config.json",
            json.dumps({"chat_template": [{"name": "a", "template": ""}] * 2}).encode(),
            "chat_template: the name 'a' occurs twice",
        ),
        ("special_tokens_map.json", b'{"bos_token": []}', "special_tokens_map.json: bos_token"),
        ("generation_config.json", b'{"eos_token_id": "1"}', "eos_token_id.0: .*found '1'"),
        ("generation_config.json", b'{"eos_token_id": [1, -1]}', "eos_token_id.1: .*found -1"),
        ("generation_config.json", b'{"eos_token_id": true}', "eos_token_id.0: "),
        ("config.json", b'{"bos_token_id": 1.5}', "config.json: bos_token_id.0: "),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: not UTF-8"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as error:
        Tokenizer(tmp_path)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TokenizerError, match=r"config.json: 1099511627776 bytes; more than"):
        Tokenizer(tmp_path)


def test_a_folder_without_tokenizer_json_says_how_to_convert(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such checkpoint folder"):
        Tokenizer(tmp_path / "absent")
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json, nor any other"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a")
    (tmp_path / "vocab.json").write_bytes(b"{}")
    with pytest.raises(
        TokenizerError, match=r"only tokenizer\.model, vocab\.json; .*save_pretrained"
    ):
        Tokenizer(tmp_path)


def test_decoders_that_cannot_stream_are_refused_on_opening(tmp_path: Path) -> None:
    content = GOOD | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}
    write_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: decoder: .*WordPiece"):
        Tokenizer(tmp_path)
