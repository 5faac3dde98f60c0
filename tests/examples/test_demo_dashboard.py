"""The dashboard in browsers: a slow reader beside a fast one, and a server that restarts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.examples.demo import Tab, serving_demo
from tests.support import chromium
from tests.support.free_ports import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(chromium.MISSING is not None, reason=str(chromium.MISSING))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.running_browser() as browser:
        yield browser


def wait_for(tab: Tab, condition: str) -> None:
    """Wait for a condition on the numbers of the page: arrived, replaced, waiting."""
    numbers = ", ".join(
        f"{name} = Number(document.getElementById('{name}').textContent.replaceAll(',', ''))"
        for name in ("arrived", "replaced", "waiting")
    )
    tab.page.wait_for_function(f"() => {{ const {numbers}; return {condition}; }}")


def test_a_slow_reader_has_prices_replaced_and_another_tab_gets_all(browser: Browser, tmp_path: Path) -> None:
    port = free_port()
    with serving_demo(port, tmp_path / "chat.sqlite3", PRICES_PER_SECOND="1000"):
        slow, fast = (Tab(browser, port, "/dashboard") for _ in range(2))
        for tab in (slow, fast):
            wait_for(tab, "arrived > 500 && replaced === 0")
        slow.page.get_by_role("switch", name="Slow reader").click()
        wait_for(slow, "arrived > 20 && arrived < 400 && replaced > 300 && waiting > 0")
        wait_for(fast, "arrived > 500 && replaced === 0 && waiting < 64 * 1024")
        assert slow.page.locator("#board [data-skipped]").count() > 10
        assert slow.page.locator("#hubs tr").count() == 2
        slow.page.get_by_role("switch", name="Slow reader").press("Space")
        wait_for(slow, "arrived > 500 && replaced === 0")
        assert slow.problems == fast.problems == []


def test_the_dashboard_comes_back_after_the_server(browser: Browser, tmp_path: Path) -> None:
    port = free_port()
    with serving_demo(port, tmp_path / "chat.sqlite3", PRICES_PER_SECOND="1000") as server:
        tab = Tab(browser, port, "/dashboard")
        wait_for(tab, "arrived > 500")
        server.end(signal.SIGKILL)
    tab.wait_for_state("connecting")
    with serving_demo(port, tmp_path / "chat.sqlite3", PRICES_PER_SECOND="1000"):
        tab.wait_for_state("open")
        wait_for(tab, "arrived > 500 && replaced === 0")
        tab.page.get_by_role("link", name="Chat").click()
        tab.page.get_by_role("dialog", name="Join the chat").wait_for()
        assert tab.problems == []


def test_a_phone_shows_the_dashboard_without_scrolling_sideways(browser: Browser, tmp_path: Path) -> None:
    port = free_port()
    with serving_demo(port, tmp_path / "chat.sqlite3", "dashboard.py", PRICES_PER_SECOND="1000"):
        tab = Tab(browser, port, "/dashboard", viewport={"width": 400, "height": 800})
        wait_for(tab, "arrived > 500")
        assert tab.page.evaluate("document.scrollingElement.scrollWidth") == 400
        assert tab.page.get_by_role("link", name="Chat").count() == 0
