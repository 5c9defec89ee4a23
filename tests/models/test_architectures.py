"""docs/architectures.md says what the registry holds."""

from __future__ import annotations

import json

from paddock.models import registry
from tests.golden.make_architectures import MEASURED, PAGE, page
from tests.models.encoder_cases import NAMES, EncoderCase
from tests.models.opened import TOLERANCE


def test_the_page_is_what_the_registry_gives() -> None:
    assert PAGE.read_text("utf-8") == page(), "run python -m tests.golden.make_architectures"


def test_every_class_is_in_a_row_of_its_own() -> None:
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert len(rows) == len(registry.ARCHITECTURES)


def test_what_was_measured_is_within_what_is_tested() -> None:
    measured = json.loads(MEASURED.read_text("utf-8"))
    assert set(measured) == {EncoderCase(name).architecture for name in NAMES}
    for errors in measured.values():
        assert all(0 < errors[engine] < TOLERANCE[engine] for engine in TOLERANCE)
