"""The page and the server of the page on reconnecting, in a real browser whose connection is cut."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import chromium
from tests.support.free_ports import free_port
from tests.support.pages import write_programs
from tests.support.programs import environment, running_program
from tests.support.tcp_proxy import proxy_to

pytestmark = [
    pytest.mark.skipif(
        "WSHUB_SANITIZED" in os.environ, reason="a browser does not start with the sanitizers preloaded"
    ),
    pytest.mark.skipif(chromium.PATH is None, reason="there is no chromium on this machine"),
]


def texts(page: Any) -> list[str]:
    found: list[str] = page.locator("#list li").all_text_contents()
    return found


def say(page: Any, *words: str) -> None:
    for text in words:
        page.fill("#text", text)
        page.press("#text", "Enter")


def wait_until_it_shows(page: Any, *expected: str) -> None:
    page.locator("#list li").nth(len(expected) - 1).wait_for()
    assert texts(page) == list(expected)


def test_a_browser_misses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    write_programs("reconnecting.md", tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "wshub", "serve", "main:app", "--port", str(port)]
    with (
        running_program(command, port=port, env=environment(), cwd=tmp_path) as program,
        proxy_to("127.0.0.1", port) as proxy,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium.PATH, args=chromium.OPTIONS)
        context = browser.new_context()
        context.set_default_timeout(20_000)
        ada, ben = context.new_page(), context.new_page()
        try:
            ada.clock.install()
            ada.goto(f"http://127.0.0.1:{proxy.port}/")
            ben.goto(f"http://127.0.0.1:{port}/")
            for page in (ada, ben):
                page.locator("#state", has_text="open").wait_for()
            say(ada, "one")
            wait_until_it_shows(ben, "one")

            # The network is away for a while. Both of them type on.
            proxy.refuses = True
            for connection in proxy.open_connections():
                connection.end()
            ada.locator("#state", has_text="waiting").wait_for()
            say(ada, "two")
            say(ben, "three", "four")
            wait_until_it_shows(ben, "one", "three", "four")
            proxy.heal()
            wait_until_it_shows(ben, "one", "three", "four", "two")
            wait_until_it_shows(ada, "one", "three", "four", "two")

            # A message has arrived, and its answer is lost.
            proxy.to_client.clear()
            say(ada, "five")
            wait_until_it_shows(ben, "one", "three", "four", "two", "five")
            for connection in proxy.open_connections():
                connection.end()
            proxy.heal()
            wait_until_it_shows(ada, "one", "three", "four", "two", "five")

            # The connection is dead, and neither side is told.
            for connection in proxy.open_connections():
                connection.to_server.is_black_hole = connection.to_client.is_black_hole = True
            say(ben, "six")
            wait_until_it_shows(ben, "one", "three", "four", "two", "five", "six")
            ada.clock.fast_forward(46_000)
            ada.clock.fast_forward(11_000)
            wait_until_it_shows(ada, "one", "three", "four", "two", "five", "six")
            say(ada, "seven")
            wait_until_it_shows(ben, "one", "three", "four", "two", "five", "six", "seven")
        finally:
            browser.close()
        assert "Traceback" not in program.end()
