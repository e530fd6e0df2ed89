"""A headless Chromium through its WebDriver: enough to open a page, run a script in it and look at it."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage",
)  # fmt: skip


def missing() -> str | None:
    """Why there is no browser here, None where there is one."""
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(lacking)} on this machine" if lacking else None


class Page:
    """One browser window."""

    def __init__(self, base: str, session: str) -> None:
        self._base, self._session = base, session

    def call(self, what: str, **values: Any) -> Any:
        return _post(f"{self._base}/session/{self._session}/{what}", values)

    def open(self, path: Path) -> None:
        self.call("url", url=path.resolve().as_uri())

    def run(self, script: str) -> Any:
        return self.call("execute/sync", script=script, args=[])

    def errors(self) -> list[str]:
        """What the console says is wrong."""
        return [entry["message"] for entry in self.call("se/log", type="browser") if entry["level"] == "SEVERE"]

    def shot(self, path: Path, *, dark: bool = False, width: int = 1100, height: int = 0) -> None:
        """A picture of the whole page at a width in pixels."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.chrome("Emulation.setEmulatedMedia", features=features)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.chrome("Emulation.setDeviceMetricsOverride", **size)
        size["height"] = height or self.run("return document.documentElement.scrollHeight")
        self.chrome("Emulation.setDeviceMetricsOverride", **size)
        taken = self.chrome("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def chrome(self, command: str, **values: Any) -> Any:
        return self.call("goog/cdp/execute", cmd=command, params=values)


@contextmanager
def browser() -> Iterator[Page]:
    """A fresh headless browser, ended on the way out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], **quiet)
        try:
            options = {"args": [*FLAGS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            _wait(base)
            made = _post(f"{base}/session", {"capabilities": {"alwaysMatch": wanted}})
            page = Page(base, made["sessionId"])
            yield page
            urllib.request.urlopen(
                urllib.request.Request(f"{base}/session/{made['sessionId']}", method="DELETE"), timeout=60
            ).close()
        finally:
            driver.terminate()
            driver.wait(30)


def _wait(base: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"{base}/status", timeout=10) as answer:
                if json.load(answer)["value"]["ready"]:
                    return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise TimeoutError("chromedriver does not answer")


def _post(url: str, values: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(values).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()[:2000]) from error
