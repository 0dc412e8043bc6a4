"""The locks of the extras."""

import re
import tomllib

import pytest

from repository import ROOT


def pins(lock: str) -> set[tuple[str, str]]:
    """Return names and versions of the packages that have hashes."""
    return set(re.findall(r"^([\w.-]+)==(\S+)[^\n]* \\\n    --hash=sha256:", (ROOT / lock).read_text(), re.M))


@pytest.mark.parametrize("extra", ["demo", "onnx"])
def test_an_extra_is_locked_with_hashes_in_the_versions_of_all_others(extra):
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    others, locked = pins("requirements.txt"), pins(f"requirements-{extra}.txt")
    assert {re.split("[<>=]", name)[0] for name in named} <= dict(locked).keys()
    assert all(pin in others for pin in locked if pin[0] in dict(others))
