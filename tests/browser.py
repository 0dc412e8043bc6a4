"""What headless Chromium makes of a page when there is no network."""

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
    """A page after its scripts ran: what it asked of the network or wrote to the console; its elements, no scripts."""

    requests: list[str]
    console: list[str]
    dom: str

    def all(self, pattern: str) -> list[str]:
        """What a pattern's group finds in the elements, in their order."""
        return [html.unescape(text) for text in re.findall(pattern, self.dom)]


def opened(page: Path, screenshot: Path | None = None, dark: bool = False, width: int = 1300) -> Shown:
    """Open a file in Chromium; with `screenshot`, a PNG to write, of the page's first 3,000 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "network.json")
        result = subprocess.run(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                f"--user-data-dir={folder}/profile", "--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}",
                "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", f"--window-size={width},3000",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                *([f"--screenshot={screenshot}"] if screenshot else []), page.resolve().as_uri(),
            ],
            capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=120, check=True,
        )  # fmt: skip
        network = json.loads(log.read_text())
    begin = network["constants"]["logEventPhase"]["PHASE_BEGIN"]
    start = network["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    started = [event["params"] for event in network["events"] if event["type"] == start and event["phase"] == begin]
    return Shown(
        # What no page has asked for is Chromium's own: its updates, say.
        [request["url"] for request in started if request["initiator"] != "not an origin"],
        re.findall(r":CONSOLE[:(]\d+\)?\] (.*)", result.stderr),
        re.sub(r"<script.*?</script>", "", result.stdout, flags=re.DOTALL),
    )
