"""The rate of tokens over the last seconds."""

import pytest

from paddock.runtime.stats import WINDOW_S, TokenRate


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = TokenRate()
    assert rate.per_second(0.0) == 0.0
    for step in range(2000):  # twenty seconds of a hundred steps, two tokens each
        rate.add(step / 100, 2)
    assert rate.per_second(20.0) == pytest.approx(200, rel=0.05)
    assert len(rate._counts) <= WINDOW_S / 0.1 + 1
    assert rate.per_second(20.0 + WINDOW_S / 2) == pytest.approx(100, rel=0.05)
    assert rate.per_second(20.0 + 2 * WINDOW_S) == 0.0


def test_the_first_tokens_do_not_count_as_infinitely_fast() -> None:
    rate = TokenRate()
    rate.add(7.0, 3)
    assert rate.per_second(7.0) == 30.0
