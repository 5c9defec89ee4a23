"""Paddock: a declarative model zoo that builds and serves language-model engines.

    from paddock import LLM, SamplingParams

    with LLM("demo") as llm:
        print(llm.generate("The ls command", SamplingParams(max_tokens=20))[0].text)

Names are imported when they are first used (PEP 562), so that `import paddock` costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from paddock.graph.errors import PaddockError
    from paddock.llm import LLM, Completion, Usage
    from paddock.runtime.outputs import Increment
    from paddock.runtime.sampling.sampling_params import SamplingParams

__all__ = ["LLM", "Completion", "Increment", "PaddockError", "SamplingParams", "Usage"]

_WHERE = {
    "LLM": "paddock.llm",
    "Completion": "paddock.llm",
    "Increment": "paddock.runtime.outputs",
    "PaddockError": "paddock.graph.errors",
    "SamplingParams": "paddock.runtime.sampling.sampling_params",
    "Usage": "paddock.llm",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("paddock")
    if name not in _WHERE:
        raise AttributeError(f"module 'paddock' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
