"""One server for the tests that leave it as they found it, and the same model in this process."""

import os
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from paddock import LLM
from tests.runtime.server.serving import Serving

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def server_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server-home")


@pytest.fixture(scope="session")
def environment(server_home: Path) -> dict[str, str]:
    """For a process: this checkout, this run's engines, no network, no keys."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PADDOCK", "HF_", "PYTHON"))}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PADDOCK_HOME": str(server_home),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "LC_ALL": "C.UTF-8",
    }


@pytest.fixture(scope="session")
def server(environment: dict[str, str], server_home: Path) -> Iterator[Serving]:
    with Serving(environment, server_home, "demo", "limits.max_sequences=8") as started:
        yield started


@pytest.fixture
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


@pytest.fixture(scope="session")
def llm(server_home: Path) -> Iterator[LLM]:
    """The same model offline, to compare with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PADDOCK_HOME", str(server_home))
        with LLM("demo", "limits.max_sequences=4") as started:
            yield started
