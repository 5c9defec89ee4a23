"""How long work reports on itself: the front door shows it as bars, as lines, or not at all."""

from typing import Protocol


class Progress(Protocol):
    """What `recipes.pipeline` calls while it works, from the thread that called it."""

    def note(self, text: str) -> None:
        """One line that a person would want to read: a plan, a decision, a reason."""

    def update(self, stage: str, done: float, total: float | None, unit: str) -> None:
        """`stage` (e.g. "bind") has done so much; `done == total` ends it.

        `unit` is "bytes", "layers" or "" ; `total` is None where it is not known.
        """


class Silent:
    """Reports to nobody."""

    def note(self, text: str) -> None:
        """Nobody reads it."""

    def update(self, stage: str, done: float, total: float | None, unit: str) -> None:
        """Nobody watches."""


SILENT = Silent()
