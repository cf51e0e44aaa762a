"""The pages in a real browser: nothing on the console, no overflow, the slider by keyboard, contrast."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from report_runs import write_run
from websockets.sync.client import connect

from hitdet_nni.report.page import write_comparison, write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]


class Tab:
    """One tab of a headless Chromium, steered by the DevTools protocol; notes all that is written on its console."""

    def __init__(self, socket):
        self.socket = socket
        self.ids = itertools.count(1)
        self.complaints = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self):
        message = json.loads(self.socket.recv(timeout=60))
        method, parameters = message.get("method"), message.get("params", {})
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(parameters)
        elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith(("file:", "data:")):
            self.complaints.append(parameters["request"]["url"])
        return message

    def open(self, page, *, width, scheme):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def ask(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, file):
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
        file.write_bytes(base64.b64decode(data))


@contextmanager
def browser(folder):
    command = [
        BROWSER,
        "--headless=new",
        "--hide-scrollbars",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
    ]
    command += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stderr if line.startswith("DevTools listening on "))
        host = line.split("/")[2]
        with urllib.request.urlopen(f"http://{host}/json/list") as answer:
            target = next(each for each in json.load(answer) if each["type"] == "page")
        with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    runs = [write_run(folder / name, seed=seed) for seed, name in enumerate(("finished", "other"))]
    report = write_report(runs[0], folder / "report.html", images=0)
    return {"report": report, "compare": write_comparison(runs, folder / "compare.html")}


@pytest.mark.parametrize("name", ["report", "compare"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page(tab, pages, tmp_path, name, width, scheme):
    tab.open(pages[name], width=width, scheme=scheme)
    assert tab.ask("document.documentElement.scrollWidth") == width
    background = tab.ask("getComputedStyle(document.body).backgroundColor")
    assert (int(background.strip("rgb()").split(",")[0]) < 64) == (scheme == "dark")
    folder = Path(os.environ.get("HITDET_SCREENSHOTS", tmp_path))
    tab.screenshot(folder / f"{name}-{width}-{scheme}.png")
    assert tab.complaints == []


def test_slider_by_keyboard(tab, pages):
    tab.open(pages["report"], width=1280, scheme="light")
    cell = "document.querySelector('table.heat tbody td')"
    last = tab.ask(f"{cell}.title")
    tab.ask("document.getElementById('epoch').focus()")
    tab.press("Home", 36)
    assert tab.ask("document.getElementById('epoch-shown').textContent") == "1"
    first = tab.ask(f"{cell}.title")
    assert first != last
    tab.press("End", 35)
    assert tab.ask(f"{cell}.title") == last
    assert tab.complaints == []


def contrast(one, other):
    """WCAG 2's contrast ratio of two colours (sRGB, 0 to 255)."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in colour)]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


PIXELS = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  return [...document.querySelectorAll("table.heat td")].map((cell) => {
    const style = getComputedStyle(cell);
    return [rgb(style.color), rgb(style.backgroundColor)];
  });
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_in_cells_can_be_read(tab, pages, scheme):
    tab.open(pages["report"], width=1280, scheme=scheme)
    assert min(contrast(*colours) for colours in tab.ask(PIXELS)) >= 4.5


def test_contrast_of_black_and_white():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
