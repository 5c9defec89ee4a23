"""What is served and how it does: models, the tokenizer's routes, probes, metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from paddock import LLM
from tests.runtime.server.in_process import serve_in_process
from tests.runtime.server.serving import Serving

ASKED: Any = [{"role": "user", "content": "What does ls do?"}]


def metrics(server: Any) -> dict[str, float]:
    """Samples without labels of their own, as Prometheus reads them."""
    status, headers, text = server.ask("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        sample.name + "".join(f"/{v}" for k, v in sample.labels.items() if k != "model_name"): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_model_is_listed_and_found(client: openai.OpenAI, server: Serving) -> None:
    [listed] = client.models.list().data
    assert listed.id == "demo"
    assert listed.owned_by == "paddock"
    assert client.models.retrieve("demo") == listed
    assert listed.model_extra == {"max_model_len": server.stats()["max_context"]}
    with pytest.raises(openai.NotFoundError, match="no model is called"):
        client.models.retrieve("gpt-4")


def test_texts_and_chats_are_tokenized_as_prompts_are(server: Serving, llm: LLM) -> None:
    tokenizer = llm.tokenizer
    for text in ("The ls command", "é \n\t 😀", ""):
        _, _, found = server.ask("/tokenize", {"prompt": text, "return_token_strs": True})
        assert found["tokens"] == tokenizer.encode(text)
        assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
        _, _, bare = server.ask("/tokenize", {"prompt": text, "add_special_tokens": False})
        assert server.ask("/detokenize", {"tokens": bare["tokens"]})[2] == {"prompt": text}
    chat = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True)
    expected = tokenizer.encode(chat, add_special_tokens=False)
    assert server.ask("/tokenize", {"messages": ASKED})[2]["tokens"] == expected
    assert server.ask("/tokenize", {"prompt": "A", "model": "other"})[0] == 404
    assert server.ask("/tokenize", {"prompt": "A", "messages": ASKED})[0] == 400
    assert server.ask("/detokenize", {"tokens": [-1]})[0] == 400


def test_metrics_count_what_was_asked(server_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under vLLM's names; the Kubernetes inference gateway asks for queue and cache."""
    monkeypatch.setenv("PADDOCK_HOME", str(server_home))
    with serve_in_process("limits.max_sequences=4") as server, server.client() as client:
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            assert metrics(server)[f"vllm:{name}"] == 0
        with client.completions.create(
            model="demo", prompt="A", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
        ) as stream:
            next(iter(stream))
            now = metrics(server)
            assert now["vllm:num_requests_running"] == 1
            assert now["vllm:kv_cache_usage_perc"] > 0
        server.wait_until(running=0)
        before = metrics(server)
        answer = client.completions.create(
            model="demo", prompt="The ls command", max_tokens=7, extra_body={"ignore_eos": True}
        )
        assert answer.usage is not None
        after = metrics(server)
        grown = {name: after[name] - before[name] for name in after}
        assert before["vllm:request_success_total/abort"] == 1
        assert grown["vllm:request_success_total/length"] == 1
        assert grown["vllm:prompt_tokens_total"] == answer.usage.prompt_tokens
        assert grown["vllm:generation_tokens_total"] == 7
        assert grown["vllm:time_to_first_token_seconds_count"] == 1
        assert grown["vllm:inter_token_latency_seconds_count"] == 6
        assert grown["vllm:e2e_request_latency_seconds_count"] == 1
        assert grown["vllm:request_queue_time_seconds_count"] == 1
        assert grown["vllm:request_prompt_tokens_sum"] == answer.usage.prompt_tokens
        assert grown["vllm:request_generation_tokens_sum"] == 7
        assert grown["paddock:steps_total"] == grown["vllm:iteration_tokens_total_count"] == 7
        [size] = [name for name in after if name.startswith("vllm:cache_config_info")]
        assert str(server.stats()["cache_blocks"]) in size.split("/")


def test_probes_say_ok(server: Serving) -> None:
    for path in ("/health", "/ready"):
        status, _, found = server.ask(path)
        assert (status, found["status"]) == (200, "ok")
    assert server.ask("/version")[2] == {
        "version": server.ask("/openapi.json")[2]["info"]["version"]
    }
    assert server.ask("/nowhere")[0] == 404
    assert server.ask("/v1/completions")[0] == 405
