"""Open pages in headless Chromium without network."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")


@dataclass(frozen=True)
class Shown:
    """A page after its scripts ran: its network requests, its console messages, its elements without scripts."""

    requests: list[str]
    console: list[str]
    dom: str

    def all(self, pattern: str) -> list[str]:
        """Find a pattern's group in the elements, in their order."""
        return [html.unescape(text) for text in re.findall(pattern, self.dom)]


def open_page(page: Path) -> Shown:
    """Open a file in Chromium."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "network.json")
        result = subprocess.run(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom",
                f"--user-data-dir={folder}/profile", "--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}",
                "--enable-logging=stderr", "--virtual-time-budget=10000", page.resolve().as_uri(),
            ],
            capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=120, check=True,
        )  # fmt: skip
        network = json.loads(log.read_text())
    start = network["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    started = [event["params"] for event in network["events"] if event["type"] == start and "params" in event]
    return Shown(
        # Requests without an origin are Chromium's own, such as for updates.
        [event["url"] for event in started if event.get("initiator", "not an origin") != "not an origin"],
        re.findall(r":CONSOLE[:(]\d+\)?\] (.*)", result.stderr),
        re.sub(r"<script.*?</script>", "", result.stdout, flags=re.DOTALL),
    )
