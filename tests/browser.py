"""Open pages in headless Chromium without network."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")


def open_page(address: str) -> str:
    """Open a page; return its elements without scripts, after these ran, and assert that it needs no other address."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "network.json")
        result = subprocess.run(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom",
                f"--user-data-dir={folder}/profile", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                f"--log-net-log={log}", "--enable-logging=stderr", "--virtual-time-budget=10000", address,
            ],
            capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=120, check=True,
        )  # fmt: skip
        network = json.loads(log.read_text())
    start = network["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    started = [event["params"] for event in network["events"] if event["type"] == start and "params" in event]
    # Requests without an origin are Chromium's own, such as for updates.
    requests = [event["url"] for event in started if event.get("initiator", "not an origin") != "not an origin"]
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    assert re.findall(r":CONSOLE[:(]\d+\)?\] (.*)", result.stderr) == []
    return re.sub(r"<script.*?</script>", "", result.stdout, flags=re.DOTALL)


def find_all(page: str, pattern: str) -> list[str]:
    """Find a pattern's group in a page's elements, in their order."""
    return [html.unescape(text) for text in re.findall(pattern, page)]
