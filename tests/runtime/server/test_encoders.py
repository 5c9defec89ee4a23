"""`/v1/embeddings`, `/rerank` and `/classify`: against the same model offline, and transformers'.

The demo decoder, pooled, gives vectors; a tiny BERT classifier with random weights is made by
transformers itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from paddock import LLM
from tests.runtime.server.serving import Serving

TEXTS = ["The ls command lists files", "A symbolic link", "apt installs packages", "é ünï"]
POOLED = ("demo", "task=embed", "pooling=mean", "normalize=true")


@pytest.fixture(scope="module")
def embedder(environment: dict[str, str], server_home: Path) -> Iterator[Serving]:
    with Serving(environment, server_home, *POOLED, "server.max_inputs=16") as started:
        yield started


@pytest.fixture(scope="module")
def vectors(server_home: Path) -> np.ndarray:
    """Of TEXTS, offline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PADDOCK_HOME", str(server_home))
        with LLM(*POOLED) as llm:
            return np.stack([one.vector for one in llm.running.encoder.embed(TEXTS)])


def test_vectors_are_those_of_the_model(embedder: Serving, vectors: np.ndarray) -> None:
    """The official client asks for base64 by itself."""
    with embedder.client() as client:
        found = client.embeddings.create(model="demo", input=TEXTS)
        assert [one.index for one in found.data] == [0, 1, 2, 3]
        got = np.array([one.embedding for one in found.data], np.float32)
        np.testing.assert_allclose(got, vectors, atol=1e-5)
        assert found.usage.prompt_tokens == found.usage.total_tokens > len(TEXTS)
        plain = client.embeddings.create(model="demo", input=TEXTS[0], encoding_format="float")
        np.testing.assert_allclose(plain.data[0].embedding, vectors[0], atol=1e-5)
        short = client.embeddings.create(model="demo", input=TEXTS[0], dimensions=8)
        assert len(short.data[0].embedding) == 8


def test_token_ids_may_be_given(embedder: Serving, vectors: np.ndarray) -> None:
    ids = [embedder.ask("/tokenize", {"prompt": text})[2]["tokens"] for text in TEXTS]
    with embedder.client() as client:
        several = client.embeddings.create(model="demo", input=ids)
        one = client.embeddings.create(model="demo", input=ids[1])
    np.testing.assert_allclose([d.embedding for d in several.data], vectors, atol=1e-5)
    np.testing.assert_allclose(one.data[0].embedding, vectors[1], atol=1e-5)


def test_documents_are_ranked_by_their_cosines(embedder: Serving, vectors: np.ndarray) -> None:
    cosines = vectors @ vectors[0]
    order = np.argsort(-cosines)
    for path in ("/rerank", "/v1/rerank"):
        status, _, found = embedder.ask(
            path,
            {
                "model": "demo",
                "query": TEXTS[0],
                "documents": [*TEXTS[:2], {"text": TEXTS[2]}, TEXTS[3]],
            },
        )
        assert status == 200
        assert [one["index"] for one in found["results"]] == order.tolist()
        scores = [one["relevance_score"] for one in found["results"]]
        np.testing.assert_allclose(scores, cosines[order], atol=1e-5)
        assert found["results"][0]["document"] == {"text": TEXTS[0]}
    status, _, found = embedder.ask(
        "/rerank",
        {
            "model": "demo",
            "query": TEXTS[0],
            "documents": TEXTS,
            "top_n": 2,
            "return_documents": False,
        },
    )
    assert [one["document"] for one in found["results"]] == [None, None]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/embeddings", {"input": "word " * 3000}, "takes 1024"),
        ("/v1/embeddings", {"input": ["A"] * 17}, "16 at once"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": [99999]}, "99999"),
        ("/v1/embeddings", {"input": "A", "dimensions": 10_000}, "dimensions"),
        ("/v1/embeddings", {"input": "A", "prompt_name": "query"}, "prompt"),
        ("/classify", {"input": "A"}, "labels"),
        ("/v1/embeddings", {"input": "A", "truncat": "end"}, "truncat"),
    ],
)
def test_what_cannot_be_encoded_is_refused(
    embedder: Serving, path: str, body: dict[str, Any], message: str
) -> None:
    status, _, answer = embedder.ask(path, {"model": "demo", **body})
    assert status == 400, answer
    assert message in answer["error"]["message"]


def test_an_encoder_has_what_every_server_has(embedder: Serving) -> None:
    assert embedder.ask("/health")[0] == embedder.ask("/ready")[0] == 200
    assert embedder.ask("/v1/models")[2]["data"][0]["id"] == "demo"
    assert embedder.stats()["sequences"] > 0
    assert "vllm:num_requests_waiting" in embedder.ask("/metrics")[2]
    assert embedder.ask("/v1/chat/completions", {"model": "demo"})[0] == 404
    assert embedder.ask("/")[0] == 404
    with embedder.client() as client, pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nobody", input="A")


def test_a_classifier_says_what_transformers_says(
    environment: dict[str, str], server_home: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = tmp_path / "classifier"
    _write_classifier(transformers, torch, folder)
    ignored = "ignore_config=[tie_word_embeddings]"
    with Serving(environment, server_home, str(folder), ignored) as server:
        texts = ["good file", "bad link", "the file is good good"]
        status, _, found = server.ask("/classify", {"model": server.told["model"], "input": texts})
    assert status == 200, found
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert [one["index"] for one in found["data"]] == [0, 1, 2]
    for text, one in zip(texts, found["data"], strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        np.testing.assert_allclose(one["probs"], logits.softmax(-1).numpy(), atol=1e-5)
        assert one["labels"] == ["bad", "good", "neither"]
        assert one["label"] == one["labels"][int(logits.argmax())]
        assert one["num_classes"] == 3


def _write_classifier(transformers: Any, torch: Any, folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "file", "link", "the", "is"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=3,
        initializer_range=0.5,
        id2label={0: "bad", 1: "good", 2: "neither"},
        label2id={"bad": 0, "good": 1, "neither": 2},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
