"""Links between the repository's pages, and the locks of the extras."""

import re
import subprocess
import tomllib

import pytest

from repository import ROOT

PAGES = subprocess.check_output(["git", "ls-files", "*.md", ":!stages", ":!studies"], cwd=ROOT, text=True).split()


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files_and_headings(page):
    path = ROOT / page
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        name, _, anchor = link.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), link
        headings = re.findall("^#+ (.*)$", linked.read_text(), re.M) if anchor else [""]
        assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], link


def pins(lock: str) -> set[tuple[str, str]]:
    """Return names and versions of the packages that have hashes."""
    return set(re.findall(r"^([\w.-]+)==(\S+)[^\n]* \\\n    --hash=sha256:", (ROOT / lock).read_text(), re.M))


@pytest.mark.parametrize("extra", ["demo", "onnx"])
def test_an_extra_is_locked_with_hashes_in_the_versions_of_all_others(extra):
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    others, locked = pins("requirements.txt"), pins(f"requirements-{extra}.txt")
    assert {re.split("[<>=]", name)[0] for name in named} <= dict(locked).keys()
    assert all(pin in others for pin in locked if pin[0] in dict(others))
