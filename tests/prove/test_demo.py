"""`demo.py` as people use it: in a browser without network, and many at once."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM, needs_chromium
from repository import ROOT
from repository import wait_for as wait_for_output
from stages.training import keras, model_files

gradio_client = pytest.importorskip("gradio_client", reason="no gradio, an extra of pyproject.toml")
UNSURE = {"validation": {"threshold": [0.0, 0.9], "accuracy": [0.5, 0.99]}}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Start the demo with two models that say "ant", one of them never surely enough; return its address."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "models/export").mkdir(parents=True)
    layers = [keras.layers.Conv2D(2, 3, name="conv"), keras.layers.Rescaling(1e-5), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Dense(2, activation="softmax")])
    model.layers[-1].bias.assign([1, 0])
    for name, metadata in {"sure": {}, "unsure": UNSURE}.items():
        model_files.save(model, folder / f"models/{name}.keras", ["ant", "bee"], **metadata)
    log = folder / "log"
    with log.open("w") as file:
        demo = subprocess.Popen([sys.executable, ROOT / "demo.py"], cwd=folder, stdout=file, stderr=file)
    wait_for_output("and stop with", demo, log)
    yield log.read_text().split()[1]
    demo.terminate()
    demo.wait()
    assert "Traceback" not in log.read_text()


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_a_dropped_picture_is_classified_in_a_browser_without_network(address, tmp_path, width):
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "photo.png")
    (tmp_path / "text.txt").write_text("no picture")
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile")
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    pipe = ("sh", "-c", 'exec "$0" "$@" 3<&0 4>&1 >/dev/null 2>&1', CHROMIUM, "--remote-debugging-pipe")
    browser = subprocess.Popen([*pipe, *options, offline, "about:blank"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    session, requests = {}, []

    def call(method, **params):  # of the DevTools protocol
        browser.stdin.write(json.dumps({"id": 1, "method": method, "params": params, **session}).encode() + b"\0")
        browser.stdin.flush()
        while "id" not in (answer := json.loads(b"".join(iter(lambda: browser.stdout.read(1), b"\0")))):
            requests.extend([answer["params"]["request"]["url"]] if "request" in answer["params"] else [])
        return answer["result"]

    def wait_for(script, meanwhile=lambda: time.sleep(0.1)):
        start = time.monotonic()
        while not (found := call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")):
            assert time.monotonic() < start + 60, (
                script,
                call("Runtime.evaluate", expression="document.body.innerText"),
            )
            meanwhile()
        return found

    def drop(file):
        box = wait_for("document.querySelector('[data-testid=image]')?.getBoundingClientRect().toJSON()")
        data = {"items": [], "files": [str(tmp_path / file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            call("Input.dispatchDragEvent", type=kind, data=data, x=box["x"] + 99, y=box["y"] + 99)

    page = next(one["targetId"] for one in call("Target.getTargets")["targetInfos"] if one["type"] == "page")
    session = {"sessionId": call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]}
    call("Network.enable")
    call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    call("Page.navigate", url=address)
    wait_for("document.body.innerText.includes('Invalid file type: text.txt')", meanwhile=lambda: drop("text.txt"))
    drop("photo.png")
    wait_for("document.body.innerText.includes('ant, 7') && document.images.length == 2")
    wait_for(f"document.documentElement.scrollWidth <= {width}")
    session = {}
    call("Browser.close")
    browser.communicate()
    assert len(requests) > 20
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


def test_ten_at_once_get_an_answer_or_the_reason_in_a_sentence(address, tmp_path):
    Image.new("L", (20_000, 20_000)).save(tmp_path / "huge.jpg")
    Image.fromarray(np.eye(40, dtype=np.uint8)).save(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("no picture")

    def answer(model, file):
        file = gradio_client.handle_file(tmp_path / file)
        return gradio_client.Client(address, verbose=False).predict(model, file, api_name="/answer")

    asked = [("sure", "photo.png"), ("unsure", "photo.png"), ("sure", "huge.jpg"), ("sure", "text.png")] * 3
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(answer, *zip(*asked, strict=True)))
    assert [text[:9] for text, _, _ in answers] == ["## ant, 7", "## none o", "## ant, 7", "This cann"] * 3
    assert [heat is None for _, _, heat in answers] == [file == "text.png" for _, file in asked]
