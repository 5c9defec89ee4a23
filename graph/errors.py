"""The errors that a user may cause; each room derives its own from `PaddockError`."""

import difflib
from collections.abc import Iterable


class PaddockError(Exception):
    """Something a user can mend: `str()` is one message that names it and the next step."""


class GraphError(PaddockError):
    """An op was given operands that it does not take, or a graph does not hold together."""


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """`"; nearest is 'a'"` or `"; nearest are 'a', 'b'"`, or nothing where no name comes close."""
    names = difflib.get_close_matches(name, list(known), n=count)
    if not names:
        return ""
    return f"; nearest {'is' if len(names) == 1 else 'are'} {', '.join(map(repr, names))}"
