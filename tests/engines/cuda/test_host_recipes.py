"""`mesh.tp=2 engine=cuda` from a recipe: real ranks over MPI, on the double of the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddock import LLM, SamplingParams
from paddock.runtime.distributed.front import ChoosingRemoteSession

pytest.importorskip("mpi4py", reason="needs an MPI: pip install 'paddock[mpi]'")

PROMPTS = ["The ls command", "To copy a file, use"]
DOUBLE = ("engine=cuda", "dtype=f32", "plugins=[tests.engines.cuda.host_gpu]")
SMALL = ("limits.cache_gib=0.05", "limits.max_sequences=4", "limits.max_tokens_per_step=64")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def texts(*overrides: str) -> tuple[list[tuple[int, ...]], bool]:
    params = [
        SamplingParams(max_tokens=6, temperature=0),
        SamplingParams(max_tokens=6, temperature=0.8, top_k=20, seed=7),
        SamplingParams(max_tokens=6, temperature=0, logprobs=1),  # needs logits: steps that wait
    ]
    with LLM("demo", *overrides) as llm:
        ahead = isinstance(llm.running.session, ChoosingRemoteSession)
        handles = [llm.submit(prompt, one) for prompt in PROMPTS for one in params]
        return [h.result().sequences[0].token_ids for h in handles], ahead


@pytest.mark.usefixtures("home")
def test_ranks_write_what_one_writes_and_run_ahead() -> None:
    """Tokens are chosen by the ranks, and steps launched before those of the last are known."""
    expected, _ = texts("engine=reference", "dtype=f32")
    assert texts(*DOUBLE, *SMALL, "mesh.tp=2") == (expected, True)


@pytest.mark.usefixtures("home")
def test_a_cache_of_e4m3() -> None:
    """The check of its build allows what the rounding of keys and values makes."""
    found, _ = texts(*DOUBLE, *SMALL, "engine.cache_dtype=fp8")
    assert all(len(ids) == 6 for ids in found)


@pytest.mark.usefixtures("home")
def test_stages_write_what_one_writes() -> None:
    expected, _ = texts("engine=reference", "dtype=f32")
    assert texts(*DOUBLE, *SMALL, "mesh.pp=2") == (expected, False)


@pytest.mark.usefixtures("home")
def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(Exception, match=r"2 ranks on .* need a GPU each"):
        texts(*DOUBLE, *SMALL, "mesh.tp=2")
