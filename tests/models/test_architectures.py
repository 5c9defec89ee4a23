"""docs/architectures.md, docs/decoders.md and the README say what the registry holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddock.models import registry
from tests.golden import make_architectures as made
from tests.models.encoder_cases import NAMES, EncoderCase
from tests.models.opened import TOLERANCE

PAGES = {made.PAGE: made.page, made.DECODERS: made.decoders, made.README: made.readme}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_is_what_the_registry_gives(page: Path) -> None:
    expected = PAGES[page]()
    assert page.read_text("utf-8") == expected, "run python -m tests.golden.make_architectures"


def test_every_class_is_in_a_row() -> None:
    rows = [line for line in made.PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert len(rows) == len(registry.ARCHITECTURES)
    table = made.table()
    assert all(f"`{name}`" in table for name in registry.ARCHITECTURES)


def test_what_was_measured_is_within_what_is_tested() -> None:
    encoders = json.loads(made.ENCODER_ERRORS.read_text("utf-8"))
    assert set(encoders) == {EncoderCase(name).architecture for name in NAMES}
    for name, errors in made.measured().items():
        assert name in registry.ARCHITECTURES
        assert all(0 < errors[engine] < TOLERANCE[engine] for engine in TOLERANCE), name
