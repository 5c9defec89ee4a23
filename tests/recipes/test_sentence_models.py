"""Tiny encoders that sentence-transformers saved give its own vectors and scores."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock import LLM
from paddock.runtime.encoders.sentence_files import activation_of, read_sentence_files
from paddock.runtime.strict_json import TokenizerError
from tests import minilm

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(n) for n in ("torch", "sentence_transformers")),
    reason="sentence-transformers is not installed (`make parity` installs it)",
)
TEXTS = ["Hello world", "A paddock is a small field.", "a", "long " * 60]
PAIRS = [("a question", "an answer"), ("one", "two " * 40), ("", "nothing asked")]
SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}


def saved(folder: Path, kind: str, **fields: Any) -> Path:
    """A random BERT with MiniLM's tokenizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers

        torch.manual_seed(0)
        config = transformers.BertConfig(vocab_size=30522, **SIZES, **fields)
        getattr(transformers, kind)(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(minilm.folder() / name, folder)
    return folder


def test_joined_pooling_dense_layers_and_prompts(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Dense, Normalize, Transformer
        from sentence_transformers.sentence_transformer.modules.pooling import Pooling

        body = Transformer(str(saved(tmp_path / "body", "BertModel")), max_seq_length=40)
        pooling = Pooling(32, ("cls", "mean", "max"))
        modules = [body, pooling, Dense(96, 20, activation_function=torch.nn.Tanh()), Normalize()]
        model: Any = SentenceTransformer(
            modules=modules, prompts={"query": "look for: ", "document": ""}, device="cpu"
        )
        model.save(str(tmp_path / "whole"))
        plain = model.encode(TEXTS)
        queries = model.encode(TEXTS, prompt_name="query")
    with LLM(str(tmp_path / "whole")) as llm:
        found = np.stack([e.vector for e in llm.embed(TEXTS)])
        asked = np.stack([e.vector for e in llm.embed(TEXTS, prompt_name="query")])
    np.testing.assert_allclose(found, plain, atol=2e-5)
    np.testing.assert_allclose(asked, queries, atol=2e-5)
    assert np.abs(plain - queries).max() > 0.01


@pytest.mark.parametrize("activation", [None, "torch.nn.modules.linear.Identity"])
def test_scores_of_pairs_are_those_of_cross_encoders(
    tmp_path: Path, activation: str | None
) -> None:
    folder = saved(tmp_path / "scores", "BertForSequenceClassification", num_labels=1)
    if activation is not None:
        config = json.loads((folder / "config.json").read_text())
        config["sbert_ce_default_activation_function"] = activation
        (folder / "config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import CrossEncoder

        expected = CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    with LLM(str(folder)) as llm:
        found = llm.score(PAIRS)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_labels_are_those_of_pipelines(tmp_path: Path) -> None:
    labels = {0: "bad", 1: "so so", 2: "good"}
    texts = saved(tmp_path / "texts", "BertForSequenceClassification", id2label=labels)
    tokens = saved(tmp_path / "tokens", "BertForTokenClassification", id2label=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import pipeline

        whole = pipeline("text-classification", str(texts), device="cpu", top_k=None)(TEXTS)
        each = pipeline("token-classification", str(tokens), device="cpu")(TEXTS)
    with LLM(str(texts)) as llm:
        for found, wanted in zip(llm.classify(TEXTS), whole, strict=True):
            assert list(found.labels) == [w["label"] for w in wanted]
            np.testing.assert_allclose(found.scores, [w["score"] for w in wanted], atol=2e-5)
    with LLM(str(tokens)) as llm:
        for tagged, words in zip(llm.tag(TEXTS), each, strict=True):
            assert [(t.start, t.end, t.label) for t in tagged.tokens] == [
                (w["start"], w["end"], w["entity"]) for w in words
            ]


@pytest.mark.parametrize(
    ("modules", "files", "message"),
    [
        ([{"type": "x.Transformer"}, {"type": "x.LSTM", "path": "1"}], {}, "no module 'LSTM' here"),
        ([{"type": "x.Pooling", "path": "../up"}], {}, "leads out of the folder"),
        (
            [{"type": "x.Pooling", "path": "1"}],
            {"1/config.json": {"pooling_mode": "median"}},
            "pooling_mode 'median' is none of cls",
        ),
        ([{"type": "x.Normalize"}, {"type": "x.Dense", "path": "1"}], {}, "1/config.json"),
        ({"type": "x"}, {}, "modules.json"),
    ],
)
def test_files_that_are_not_known_are_refused(
    tmp_path: Path, modules: Any, files: dict[str, Any], message: str
) -> None:
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=message):
        read_sentence_files(tmp_path, causal=False)


def test_what_is_not_said_follows_the_libraries() -> None:
    assert activation_of({}, 1) == "sigmoid"
    assert activation_of({}, 3) == "softmax"
    assert activation_of({"problem_type": "multi_label_classification"}, 3) == "sigmoid"
    assert activation_of({"problem_type": "regression"}, 1) == "identity"
    with pytest.raises(TokenizerError, match="expected Identity, Sigmoid or Softmax"):
        activation_of({"sentence_transformers": {"activation_fn": "torch.nn.ReLU"}}, 1)
