"""Runs the demo, and drives its pages."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.programs import Program, environment, running_program

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TIMEOUT = 20_000
"""Milliseconds that a page has for whatever a test waits for."""


@contextlib.contextmanager
def serving_demo(port: int, history: Path, program: str = "demo.py", **variables: str) -> Iterator[Program]:
    """Run a program of the demo until the end of the block."""
    command = [sys.executable, str(EXAMPLES / program), "--port", str(port)]
    with running_program(command, port=port, env=environment(CHAT_HISTORY=str(history), **variables)) as running:
        yield running


class Tab:
    """A page in a browser profile of its own. It notes what the page's policy has forbidden and what has failed."""

    def __init__(self, browser: Browser, port: int, path: str = "/", **options: object) -> None:
        self.context = browser.new_context(**options)  # type: ignore[arg-type]
        self.context.set_default_timeout(TIMEOUT)
        self.page: Page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("dialog", lambda dialog: dialog.accept())
        self.page.goto(f"http://127.0.0.1:{port}{path}")

    def _note(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            self.problems.append(message.text)

    def wait_for_state(self, state: str) -> None:
        """Wait until the header shows that state of the connection."""
        self.page.wait_for_selector(f'#state[data-state="{state}"]')


class ChatTab(Tab):
    """A member of the chat."""

    def __init__(self, browser: Browser, port: int, name: str, room: str = "general", **options: object) -> None:
        super().__init__(browser, port, f"/#/{room}", **options)
        self.page.fill("#name", name)
        self.page.keyboard.press("Enter")
        self.wait_for_state("open")
        self.page.locator("#members").get_by_text(name, exact=True).first.wait_for(state="attached")

    def say(self, text: str) -> None:
        """Write a message, and press Enter."""
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    def wait_for(self, text: str) -> None:
        """Wait until the log shows a message that the server has stored."""
        self.page.locator("#log .message:not(.pending) .text").get_by_text(text, exact=True).wait_for()

    def retry(self) -> None:
        """Click "Try now", which is gone if the connection is back already."""
        self.page.evaluate("document.getElementById('retry').click()")

    def log(self) -> list[str]:
        """Return the texts of the messages of this room, in the order in which the page shows them."""
        return self.page.locator("#log .message .text").all_inner_texts()

    def kept(self) -> int:
        """Return how many messages the page keeps, since the server has not acknowledged them."""
        return self.page.locator("#log .pending").count()
