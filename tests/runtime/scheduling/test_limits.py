"""Limits that do not hold together are refused by name."""

from typing import Any

import pytest

from paddock.runtime.errors import LimitsError
from tests.runtime.harness import make_limits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_sequences": 0}, r"limits\.max_sequences must be positive, it is 0"),
        ({"aging_s": -1.0}, r"limits\.aging_s must be positive"),
        ({"prefill_chunk": 0}, r"limits\.prefill_chunk must be positive"),
        ({"max_sequences": 17}, r"max_tokens_per_step \(16\) must be at least.*\(17\)"),
        ({"max_queued_tokens": 63}, r"max_queued_tokens \(63\) must be at least.*\(64\)"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LimitsError, match=message):
        make_limits(**changes)
