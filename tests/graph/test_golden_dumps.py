"""The graphs of tiny models are what they were; `make golden` takes what they are instead."""

import difflib

import pytest

from tests.golden.make_dumps import DUMPS, FOLDER


@pytest.mark.parametrize("name", DUMPS)
def test_dump(name: str) -> None:
    kept, found = (FOLDER / f"{name}.txt").read_text("utf-8"), DUMPS[name]().dump()
    difference = difflib.unified_diff(
        kept.splitlines(), found.splitlines(), "kept", "found", "", ""
    )
    text = "\n".join(list(difference)[:40])
    assert kept == found, f"{text}\nIf this is meant, run `make golden` and commit the difference."


def test_no_dump_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(DUMPS)
