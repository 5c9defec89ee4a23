"""Finding stop strings in text that arrives in pieces."""


class StopStrings:
    """Holds text back until it cannot be part of a stop string any more.

    Where several stop strings occur, the one that is complete first wins (of those complete at
    the same character, the longest), whatever pieces the text came in. Each string is followed
    by its Knuth-Morris-Pratt automaton, so a character costs O(strings) on average.
    """

    def __init__(self, strings: tuple[str, ...], *, keep: bool) -> None:
        """`strings`: none is empty. `keep`: the found stop string stays in the text."""
        self._strings = sorted(strings, key=len, reverse=True)
        self._failures = [_failures(string) for string in self._strings]
        self._matched = [0] * len(self._strings)
        self._held = ""
        self._keep = keep
        self.found: str | None = None

    def push(self, piece: str, *, may_stop: bool = True) -> str:
        """The text that is final now. After a match (`found`), everything up to it.

        A stop string that becomes complete while `may_stop` is false is passed over.
        """
        text = self._held + piece
        start = len(self._held)
        for position in range(start, len(text)):
            self._advance(text[position])
            for which, string in enumerate(self._strings):
                if self._matched[which] < len(string):
                    continue
                if may_stop:
                    self.found = string
                    self._held = ""
                    end = position + 1
                    return text[: end if self._keep else end - len(string)]
                self._matched[which] = self._failures[which][len(string)]
        held = max(self._matched, default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """The text still held back, where the end came before a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> None:
        for which, string in enumerate(self._strings):
            matched = self._matched[which]
            while matched and string[matched] != character:
                matched = self._failures[which][matched]
            if string[matched] == character:
                matched += 1
            self._matched[which] = matched


def _failures(string: str) -> list[int]:
    """[n]: the longest proper prefix of `string` that also ends `string[:n]`."""
    failures = [0, 0]
    for end in range(1, len(string)):
        matched = failures[end]
        while matched and string[matched] != string[end]:
            matched = failures[matched]
        failures.append(matched + 1 if string[matched] == string[end] else 0)
    return failures
