"""A page in headless Chromium, driven by its DevTools protocol: evaluate, wait, type, take pictures.

Whatever the page writes to its console as an error or warning, and every exception, is collected in `complaints`.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
START_S = 30.0


class Page:
    """One tab. Commands are awaited one after the other; events are read in between."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._session = ""
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []

    async def read(self) -> None:
        """Take answers and events until the browser ends."""
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif told["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["params"]["exceptionDetails"]))
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] in ("error", "warning"):
                self.complaints.append(told["params"]["entry"]["text"])
            elif told["method"] == "Runtime.consoleAPICalled" and told["params"]["type"] in ("error", "warning"):
                self.complaints.append(json.dumps(told["params"]["args"]))

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return what a command gives; raises AssertionError if it fails."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **session})
        told = await asyncio.wait_for(answer, START_S)
        assert "error" not in told, (method, told)
        result: dict[str, Any] = told["result"]
        return result

    async def attach(self) -> None:
        """Open the tab and have it report."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        self._session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")

    async def open(self, url: str) -> None:
        """Load a page."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, awaited if it is a promise; raises AssertionError if it throws."""
        told = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, (expression, told)
        return told["result"].get("value")

    async def until(self, expression: str, limit_s: float = 20.0) -> None:
        """Wait until an expression is true in the sense of JavaScript."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + limit_s
        while not await self.evaluate(f"!!({expression})"):
            assert loop.time() < deadline_s, f"never: {expression}; {self.complaints}"
            await asyncio.sleep(0.05)

    async def click(self, selector: str) -> None:
        """Click an element, once there is one."""
        await self.until(f"!!document.querySelector({json.dumps(selector)})")
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    async def write(self, selector: str, text: str) -> None:
        """Type into an element."""
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, code: int) -> None:
        """Press and release a key, given its virtual key code."""
        text = {"text": "\r"} if key == "Enter" else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    async def resize(self, width: int, height: int) -> None:
        """Give the page a size in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **size)

    async def prefer(self, scheme: str) -> None:
        """Have the system prefer light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def picture(self, path: Path) -> None:
        """Write a PNG of what is visible."""
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def chromium_page() -> AsyncIterator[Page]:
    """Run Chromium inside the block; gives an empty page of 1280 by 800."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(prefix="qtc", ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
        try:
            address = await _address(Path(profile, "DevToolsActivePort"))
            async with aiohttp.ClientSession() as http, http.ws_connect(address, max_msg_size=0) as socket:
                page = Page(socket)
                reading = asyncio.create_task(page.read())
                await page.attach()
                await page.resize(1280, 800)
                yield page
                reading.cancel()
        finally:
            process.kill()
            await process.wait()


async def _address(path: Path) -> str:
    deadline_s = asyncio.get_running_loop().time() + START_S
    while not path.exists() or path.read_text().count("\n") < 1:
        assert asyncio.get_running_loop().time() < deadline_s, "Chromium has not started"
        await asyncio.sleep(0.05)
    port, name = path.read_text().split("\n")[:2]
    return f"ws://127.0.0.1:{port}{name}"
