"""Errors that users can fix: programs end with one line instead of a traceback, see ``program.py``."""

import re
import reprlib

from pydantic import ValidationError

MAX_LINE = 1_000  # characters
_REPR = reprlib.Repr()
_REPR.maxlist = 20
_REPR.maxstring = _REPR.maxother = 80


class UserError(Exception):
    """Invalid user input: the text says in one line what is wrong, where, and what was expected."""


class SettingError(UserError):
    """An invalid setting of ``params.yaml``: its dotted key, its value and the values allowed."""

    def __init__(self, key: str, was: object, expected: str, more: str = ""):
        super().__init__(one_line(f"params.yaml: {describe_problem(key, was, expected)}{more}"))


class _Word(str):
    """A word in place of a value; shown without quotes."""

    __repr__ = str.__str__


MISSING, UNKNOWN_KEY = _Word("missing"), _Word("an unknown key")


def describe_problem(key: str, was: object, expected: str) -> str:
    """Describe an invalid value."""
    return f"{key}: was {short_repr(was)}, expected {expected}"


def short_repr(value: object) -> str:
    """Return `repr(value)` with long parts cut."""
    return repr(value) if isinstance(value, _Word) else _REPR.repr(value)


def one_line(problem: object) -> str:
    """Return a text or an exception's message as one printable line, cut to `MAX_LINE`; else the exception's type."""
    text = " ".join(str(problem).split()) or ("no reason given" if isinstance(problem, str) else type(problem).__name__)
    text = text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def problems(error: ValidationError, see: str) -> list[tuple[str, object, str]]:
    """List (key, value, expected) for all that pydantic found; `see` names the page or file that lists the keys."""
    found: list[tuple[str, object, str]] = []
    for e in error.errors():
        key = ".".join(str(part) for part in e["loc"] if not str(part).startswith(("constrained-", "function-")))
        key = key.removesuffix(".int").removesuffix(".str") or "the file"
        expected = re.sub(
            r"^(Input|String|List) should (be|have) |^Value error, | after validation, not \d+", "", e["msg"]
        )
        expected = re.sub(r"a valid dictionary or instance of \w+", "keys and values", expected)
        absent = {"missing": (MISSING, f"a value; see {see}"), "extra_forbidden": (UNKNOWN_KEY, f"a key of {see}")}
        found.append((key, *absent.get(e["type"], (e["input"], expected))))
    return found


def describe_all(error: ValidationError, see: str) -> str:
    """Describe all that pydantic found in one line; a model validator's own message is kept as it is."""
    own = [str(e["msg"]).removeprefix("Value error, ") for e in error.errors() if not e["loc"]]
    return one_line("; ".join(own or [describe_problem(*problem) for problem in problems(error, see)]))
