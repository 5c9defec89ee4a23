"""Replicas behind one endpoint, as real processes of the demo."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from paddock import LLM, SamplingParams
from paddock.recipes.errors import RecipeError
from tests import minilm
from tests.paddock.conftest import Run
from tests.runtime.server.serving import Serving

PROMPTS = ["The ls command", "A package is", "To copy a file, use", "The file"]
GREEDY = ["--temperature", "0", "--max-tokens", "12", "--quiet"]


def test_generate_writes_what_one_replica_writes(paddock: Run) -> None:
    asked = [argument for prompt in PROMPTS for argument in ("--prompt", prompt)]
    one = paddock("generate", "demo", *asked, *GREEDY)
    two = paddock("generate", "demo", "mesh=dp2", *asked, *GREEDY)
    assert one.stdout
    assert (two.stdout, two.stderr, two.returncode) == (one.stdout, "", 0)


def test_both_replicas_work_and_keep_their_prefixes(
    paddock_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PADDOCK_HOME", str(paddock_home))
    long = "The ls command lists the files of a directory, one after the other. " * 4
    with LLM("demo", "mesh.dp=2", "limits.cache_gib=0.01") as llm:
        params = SamplingParams(max_tokens=4)
        loop = llm.running.loop
        llm.generate(["One " + long, "Two " + long], params)
        again = [llm.generate(first + long + "So", params)[0] for first in ("One ", "Two ")]
        for completion in again:
            size = llm.running.session.block_size
            shared = len(llm.tokenizer.encode("One " + long)) // size * size
            assert completion.usage.prompt_tokens_cached >= shared - size
        assert len(llm.running.sessions) == 2
        assert loop.stats().requests_finished == 4
        assert loop.limits.cache_blocks * llm.running.session.block_bytes <= 0.02 * 2**30


def test_a_replica_that_loses_a_rank_leaves_the_other(
    environment: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("mpi4py", reason="needs an MPI: pip install 'paddock[mpi]'")
    with Serving(environment, tmp_path, "demo", "mesh.dp=2", "mesh.tp=2") as server:
        client = server.client()

        def ask(text: str, tokens: int) -> str:
            answer = client.completions.create(
                model="demo", prompt=text, max_tokens=tokens, extra_body={"ignore_eos": True}
            )
            return answer.choices[0].text

        before = ask("The ls command", 8)
        outcomes: list[Any] = []

        def ask_long(text: str) -> None:
            try:
                outcomes.append(ask(text, 300))
            except openai.APIError as error:
                outcomes.append(error)

        asking = [threading.Thread(target=ask_long, args=(text,)) for text in PROMPTS]
        for thread in asking:
            thread.start()
        server.wait_until(running=4)
        ranks = [
            child
            for child in psutil.Process(server.process.pid).children(recursive=True)
            if "paddock.recipes.rank" in child.cmdline() and not child.children()
        ]
        assert len(ranks) == 4
        ranks[0].kill()
        for thread in asking:
            thread.join(60)
        errors = [str(one) for one in outcomes if isinstance(one, Exception)]
        assert len(outcomes) == 4
        assert 1 <= len(errors) <= 3
        assert all(f"(process {ranks[0].pid}) has died" in error for error in errors)

        end = time.monotonic() + 10
        while (found := server.ask("/health"))[2]["status"] != "degraded":
            assert time.monotonic() < end
            time.sleep(0.05)
        assert found[0] == 200
        assert "of 2 has stopped: rank" in found[2]["message"]
        assert server.ask("/ready")[0] == 200
        assert [ask("The ls command", 8) for _ in range(4)] == [before] * 4


def test_an_encoder_refuses_replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_HOME", str(tmp_path))
    encoder = str(minilm.folder())
    with pytest.raises(RecipeError, match="only models that write text run as replicas"):
        LLM(encoder, "mesh.dp=2")


def test_a_launcher_has_one_replica(paddock: Run) -> None:
    pytest.importorskip("mpi4py", reason="needs an MPI: pip install 'paddock[mpi]'")
    launcher = Path(sys.executable).parent / "mpirun"
    done = paddock(
        *("generate", "demo", "mesh.dp=2", "mesh.tp=2", "--prompt", "x", *GREEDY),
        before=["timeout", "60", str(launcher), "-n", "2"],
    )
    assert done.returncode not in (0, 124)
    assert "mesh.dp=2: under a launcher there is one replica" in done.stderr
