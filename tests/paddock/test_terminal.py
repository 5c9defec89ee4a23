"""What a model writes cannot take over the terminal; bars and tables fit it."""

import io
import logging
import warnings
from collections.abc import Iterator

import pytest

from paddock.commands import terminal
from paddock.progress_bars import ProgressBars


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_control_characters_are_shown_on_a_terminal_and_kept_elsewhere() -> None:
    text = "a\tb\n\033]0;title\a\033[2J\x9b1m\x7f\rfine é 字"
    screen, pipe = Screen(), io.StringIO()
    terminal.write_text(text, screen)
    terminal.write_text(text, pipe)
    assert pipe.getvalue() == text
    assert screen.getvalue() == "a\tb\n␛]0;title␇␛[2J\ufffd1m␡␍fine é 字"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0004, "0.4 ms"),
        (0.0123, "12.3 ms"),
        (0.25, "250 ms"),
        (1.84, "1.8 s"),
        (200, "3 min 20 s"),
        (7300, "2 h"),
        (10 * 86400, "10 days"),
    ],
)
def test_durations_are_for_people(seconds: float, expected: str) -> None:
    assert terminal.format_seconds(seconds) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5120.0 GiB")],
)
def test_sizes_are_for_people(count: int, expected: str) -> None:
    assert terminal.format_bytes(count) == expected


def test_tables_are_cut_at_the_edge_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("NO_COLOR", "1")
    rows = [["one", "x" * 40 + "y"], ["two", ""]]
    for stream, first in (
        (Screen(), "one  " + "x" * 14 + "…"),
        (io.StringIO(), f"one  {rows[0][1]}"),
    ):
        monkeypatch.setattr("sys.stdout", stream)
        terminal.print_table(["a", "b"], rows)
        assert stream.getvalue().splitlines() == ["a    b", first, "two"]


@pytest.fixture
def handlers() -> Iterator[None]:
    """Leaves the loggers and warnings as they were."""
    root, show = logging.getLogger(), warnings.showwarning
    kept = list(root.handlers)
    yield
    warnings.showwarning = show
    root.handlers[:] = kept


@pytest.mark.usefixtures("handlers")
def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.warn_in_one_line()
    logging.getLogger("paddock.weights").warning("slot %s:\n is odd", "x")
    logging.getLogger("paddock.weights").info("nobody asked")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        terminal.warn_in_one_line()
        warnings.warn("two\nlines", stacklevel=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "paddock: warning: slot x: is odd"
    assert lines[-1] == "paddock: warning: two lines"


def test_bars_are_for_terminals_and_notes_for_everybody() -> None:
    pipe, screen = io.StringIO(), Screen()
    for stream in (pipe, screen):
        bars = ProgressBars(stream)
        bars.update("bind", 0, 4 << 20, "bytes")
        bars.note("a remark")
        bars.update("bind", 2 << 20, 4 << 20, "bytes")
        bars.update("compile", 0, None, "")
        bars.update("compile", 1, 1, "")
        bars.update("check", 1, 1, "")  # was over before it could be shown
        bars.note("done")
        bars.close()
    assert pipe.getvalue() == "a remark\ndone\n"
    shown = screen.getvalue()
    assert "bind" in shown
    assert "4.00M" in shown
    assert "compile" in shown
    assert "check" not in shown
    assert shown.endswith("done\n")
    assert "a remark\n" in shown
