"""The chat in browsers: what members see of one another, and what they see after an interruption."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from websockets.sync.client import connect

from tests.examples.demo import ChatTab, serving_demo
from tests.examples.test_demo_server import entering, received, saying
from tests.support import chromium
from tests.support.free_ports import free_port
from tests.support.tcp_proxy import proxy_to

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(chromium.MISSING is not None, reason=str(chromium.MISSING))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.running_browser() as browser:
        yield browser


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return tmp_path / "chat.sqlite3"


@pytest.fixture
def port(history: Path) -> Iterator[int]:
    """A port on which the demo is served."""
    port = free_port()
    with serving_demo(port, history):
        yield port


def test_two_tabs_see_each_other_write_and_markup_stays_text(browser, port) -> None:
    ada, ben = ChatTab(browser, port, "Ada"), ChatTab(browser, port, "Ben <i>")
    ada.page.locator("#members").get_by_text("Ben <i>", exact=True).wait_for()
    ada.page.locator("#text").press_sequentially("<b>h")
    ben.page.get_by_text("Ada is typing").wait_for()
    ada.say("<b>h\u00e9llo</b> \U0001f600")
    for tab in (ada, ben):
        tab.wait_for("<b>h\u00e9llo</b> \U0001f600")
        assert tab.page.locator("#log b, #members i").count() == 0
    ben.page.wait_for_function("document.getElementById('typing').textContent === ''")
    assert ada.page.locator("#log .mine .outcome").inner_text().endswith(" ms")
    ben.context.close()
    ada.page.locator("#members").get_by_text("Ben <i>", exact=True).wait_for(state="detached")
    assert ada.problems == []


def test_a_new_member_gets_the_history_and_a_room_counts_what_is_unread(browser, port) -> None:
    ada = ChatTab(browser, port, "Ada")
    ada.say("before")
    ada.wait_for("before")
    ben = ChatTab(browser, port, "Ben")
    ben.wait_for("before")
    ada.page.fill("#new-room", "Quiet corner")
    ada.page.press("#new-room", "Enter")
    ada.page.get_by_role("heading", name="quiet-corner").wait_for()
    ben.page.get_by_role("link", name="quiet-corner, 1 here").wait_for()
    ben.say("meanwhile")
    ada.page.get_by_role("link", name="general, 1 unread, 1 here").click()
    ada.wait_for("meanwhile")
    assert ada.log() == ben.log() == ["before", "meanwhile"]


def test_nothing_is_lost_or_doubled_while_a_tab_is_cut_off_and_the_server_is_killed(browser, history) -> None:
    port = free_port()
    with proxy_to("127.0.0.1", port) as proxy:
        with serving_demo(port, history) as server:
            ada, ben = ChatTab(browser, port, "Ada"), ChatTab(browser, proxy.port, "Ben")
            ben.say("first")
            ada.wait_for("first")

            # The server stores a message of Ben's, and its acknowledgement is lost.
            ben.wait_for("first")
            for connection in proxy.open_connections(b"GET /chat "):
                connection.to_client.is_black_hole = True
            ben.say("stored, not acknowledged")
            ada.wait_for("stored, not acknowledged")
            proxy.refuses = True
            for connection in proxy.open_connections():
                connection.end()
            ben.page.locator("#offline").wait_for()
            ben.say("written without a connection")
            ada.say("not received by Ben")
            ada.wait_for("not received by Ben")
            assert ben.kept() == 2
            server.end(signal.SIGKILL)
        ada.page.locator("#offline").wait_for()
        ada.say("written without a server")
        with serving_demo(port, history):
            proxy.heal()
            for tab in (ada, ben):
                tab.retry()
                tab.wait_for("written without a server")
                tab.wait_for("written without a connection")
            assert ada.kept() == ben.kept() == 0
            assert ada.log() == ben.log()
            assert ada.log()[:3] == ["first", "stored, not acknowledged", "not received by Ben"]
            assert sorted(ada.log()[3:]) == ["written without a connection", "written without a server"]
            ada.say("last")
            ben.wait_for("last")
            assert ada.log() == ben.log()
            assert len(ada.log()) == 6
            assert ada.problems == ben.problems == []


def test_a_tab_that_the_network_forgets_finds_out_and_sends_again(browser, history) -> None:
    port = free_port()
    with serving_demo(port, history), proxy_to("127.0.0.1", port) as proxy:
        ada, ben = ChatTab(browser, port, "Ada"), ChatTab(browser, proxy.port, "Ben")
        for connection in proxy.open_connections(b"GET /chat "):
            connection.to_server.is_black_hole = True
        ben.say("into nothing")
        assert ben.kept() == 1
        # The browser knows that the network has changed. The connection itself would be silent for minutes.
        ben.context.set_offline(True)
        ben.page.locator("#offline").wait_for()
        ben.context.set_offline(False)
        ada.wait_for("into nothing")
        ben.wait_for("into nothing")
        assert ada.log() == ben.log() == ["into nothing"]


def test_a_message_survives_a_reload_of_the_page(browser, history) -> None:
    port = free_port()
    with serving_demo(port, history), proxy_to("127.0.0.1", port) as proxy:
        ben = ChatTab(browser, proxy.port, "Ben")
        for connection in proxy.open_connections(b"GET /chat "):
            connection.to_server.is_black_hole = True
        ben.say("kept")
        assert ben.kept() == 1
        ben.page.reload()
        ben.wait_for("kept")
        assert ben.log() == ["kept"]
        assert ben.page.locator("#log .mine").count() == 1


def test_a_tab_that_comes_back_gets_more_than_one_page_of_history(browser, history) -> None:
    port = free_port()
    texts = [f"message {number}" for number in range(130)]
    with serving_demo(port, history), proxy_to("127.0.0.1", port) as proxy:
        ben = ChatTab(browser, proxy.port, "Ben")
        ben.say("before")
        ben.wait_for("before")
        proxy.refuses = True
        for connection in proxy.open_connections():
            connection.end()
        ben.page.locator("#offline").wait_for()
        with connect(f"ws://127.0.0.1:{port}/chat", proxy=None) as ada:
            ada.send(entering("Ada"))
            for text in texts:
                ada.send(saying(text))
            while received(ada, "ack")["number"] < 131:
                pass
        proxy.heal()
        ben.wait_for(texts[-1])
        assert ben.log() == ["before", *texts]


def test_the_split_view_is_another_member(browser, port) -> None:
    ada = ChatTab(browser, port, "Ada", viewport={"width": 1280, "height": 800})
    ada.page.get_by_role("button", name="Split view").click()
    second = ada.page.frame_locator("#second iframe")
    second.locator("#text").fill("from the right")
    second.locator("#text").press("Enter")
    ada.wait_for("from the right")
    assert ada.page.locator("#log .mine").count() == 0
    assert second.locator("#log .mine").count() == 1
    assert ada.problems == []


def test_a_phone_shows_everything_without_scrolling_sideways(browser, port) -> None:
    ada = ChatTab(browser, port, "Ada", viewport={"width": 400, "height": 800}, has_touch=True)
    ada.say("x" * 300)
    ada.wait_for("x" * 300)
    width = "document.scrollingElement.scrollWidth"
    assert ada.page.evaluate(width) == 400
    for name in ("Send", "Dark colours"):
        ada.page.get_by_role("button", name=name).click()
    assert ada.page.locator("html").get_attribute("data-theme") == "dark"
    ada.page.locator("#members summary").click()
    assert ada.page.get_by_role("button", name="Change your name").is_visible()


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(browser, port) -> None:
    ada = ChatTab(browser, port, "Ada", viewport={"width": 1280, "height": 800})
    focused = "document.activeElement.id || document.activeElement.hash || document.activeElement.textContent.trim()"
    assert ada.page.evaluate(focused) == "text"
    ada.page.evaluate("document.activeElement.blur(); document.getElementById('skip').focus()")
    order = []
    for _ in range(14):
        order.append(ada.page.evaluate(focused))
        ada.page.keyboard.press("Tab")
    assert order == [
        *("skip", "dashboard", "split", "new-tab", "theme", "#/general", "#/help", "#/random", "new-room", "+"),
        *("log", "text", "Send", "Members 1"),
    ]
    ada.page.evaluate("document.getElementById('skip').focus()")
    ada.page.keyboard.press("Enter")
    assert ada.page.evaluate(focused) == "text"


def test_the_browser_runs_no_script_that_is_smuggled_into_the_page(browser, port) -> None:
    ada = ChatTab(browser, port, "Ada")
    ada.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.isRun = true\">')")
    ada.page.evaluate("document.body.append(Object.assign(document.createElement('script'), { text: 'isRun = true' }))")
    ada.page.evaluate("new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))")
    assert ada.page.evaluate("window.isRun") is None
    assert any("Content Security Policy" in problem for problem in ada.problems)
