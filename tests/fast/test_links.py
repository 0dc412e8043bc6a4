"""Links between the repository's pages."""

import re
import subprocess

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
