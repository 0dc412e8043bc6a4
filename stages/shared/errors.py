"""A user's mistake ends a program with one line, not a traceback; see ``program.py``."""

import reprlib

LONGEST_LINE = 1_000  # characters
_SHORT = reprlib.Repr()
_SHORT.maxlist = 20
_SHORT.maxstring = _SHORT.maxother = 80


class UserError(Exception):
    """A mistake in what the user gave: the text is one line that says what, where, and what was expected."""


def shown(value: object) -> str:
    """A value as a message shows it: its `repr`, of which no part is longer than some words."""
    return _SHORT.repr(value)


def one_line(problem: object) -> str:
    """A text or an exception in one printable line, cut; an exception without a text gives its type."""
    text = " ".join(str(problem).split()) or type(problem).__name__
    text = text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
