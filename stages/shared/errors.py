"""A user's mistake ends a program with one line, not a traceback; see ``program.py``."""


class UserError(Exception):
    """A mistake in what the user gave: the text is one line that says what, where, and what was expected."""


def one_line(problem: object) -> str:
    """A text or an exception in one printable line; an exception without a text gives its type."""
    text = " ".join(str(problem).split()) or type(problem).__name__
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
