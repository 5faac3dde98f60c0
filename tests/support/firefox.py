"""Firefox without a window, driven over WebDriver BiDi, which is JSON over a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import websockets

PATH = shutil.which("firefox-esr") or shutil.which("firefox")
LISTENING = b"WebDriver BiDi listening on "

# They turn off work that a new profile does on its own, some of it over the network.
PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.newtabpage.enabled": False,
    "browser.safebrowsing.update.enabled": False,
    "browser.startup.page": 0,
    # The viewer of JSON lets its page connect to nothing.
    "devtools.jsonview.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.getAddons.cache.enabled": False,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.proxy.type": 0,
    "services.settings.server": "data:,#remote-settings-dummy/v1",
    "toolkit.telemetry.reportingpolicy.firstRun": False,
}

MISSING = (
    "there is no firefox on this machine"
    if PATH is None
    else "a browser does not start with the sanitizers preloaded"
    if "WSHUB_SANITIZED" in os.environ
    else None
)
"""Why a test cannot have Firefox; None if it can."""


class Firefox:
    """A running browser with one page. It trusts every certificate."""

    def __init__(self, connection: websockets.ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count()
        self._context = ""

    async def start(self) -> None:
        await self._call("session.new", capabilities={"alwaysMatch": {"acceptInsecureCerts": True}})
        tree = await self._call("browsingContext.getTree")
        self._context = tree["contexts"][0]["context"]

    async def end(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            await self._call("browser.close")

    async def goto(self, url: str) -> None:
        """Load a page."""
        await self._call("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def evaluate(self, function: str, *arguments: str) -> Any:
        """Call a function of JavaScript with strings, wait for its promise, and return the value, through JSON."""
        found = await self._call(
            "script.callFunction",
            functionDeclaration=f"async (...arguments) => JSON.stringify(await (\n{function}\n)(...arguments))",
            arguments=[{"type": "string", "value": argument} for argument in arguments],
            target={"context": self._context},
            awaitPromise=True,
        )
        assert found["type"] == "success", found["exceptionDetails"]["text"]
        return json.loads(found["result"]["value"])

    async def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        await self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await self._connection.recv())
            if message.get("id") == number:
                assert message["type"] == "success", message
                return message["result"]


async def _address(process: asyncio.subprocess.Process) -> str:
    """Return where the browser listens, which it says when it has started."""
    assert process.stderr is not None
    output = b""
    while line := await process.stderr.readline():
        output += line
        if line.startswith(LISTENING):
            return line.removeprefix(LISTENING).decode().strip()
    raise RuntimeError(f"firefox has ended: {output.decode(errors='replace')}")


def _write_preferences(profile: Path) -> None:
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items()]
    (profile / "user.js").write_text("".join(lines))


@contextlib.asynccontextmanager
async def running_firefox() -> AsyncIterator[Firefox]:
    """Run a browser with a new profile until the end of the block."""
    assert PATH is not None
    with tempfile.TemporaryDirectory(prefix="wshub-firefox-", ignore_cleanup_errors=True) as profile:
        _write_preferences(Path(profile))
        process = await asyncio.create_subprocess_exec(
            *(PATH, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0", "about:blank"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "HOME": profile, "MOZ_CRASHREPORTER_DISABLE": "1"},
        )
        assert process.stderr is not None
        reading: asyncio.Task[bytes] | None = None
        try:
            address = await _address(process)
            reading = asyncio.ensure_future(process.stderr.read())
            async with websockets.connect(f"{address}/session", proxy=None, max_size=None) as connection:
                firefox = Firefox(connection)
                await firefox.start()
                yield firefox
                await firefox.end()
        finally:
            if reading is None or not reading.done():
                # Its processes for content end with it.
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            await process.wait()
            if reading is not None:
                await reading
