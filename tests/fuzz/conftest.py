"""Fuzzing bounds the memory of its process, which must be its own.

Native threads of an engine that another test opened do not survive an allocation that fails.
"""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    if len(ours) < len(items):
        reason = "needs a process of its own: pytest tests/fuzz (make test runs it)"
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))
