"""The chat that misses nothing, in a real browser: servers are replaced and killed, and the engine restarts."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import chromium
from tests.support.free_ports import free_port
from tests.support.pages import write_programs
from tests.support.programs import ROOT, Program, environment, running_program
from tests.support.redis_engine import RedisEngine, running_engine

pytestmark = pytest.mark.skipif(chromium.MISSING is not None, reason=str(chromium.MISSING))

# The disk has all that the engine has answered, also if the engine is killed. The newest setting of a name counts.
KEEPS_DATA = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")

# Milliseconds: the last reconnection may wait for several seconds.
TIMEOUT = 30_000


class Deployment:
    """A server on one port, which is replaced while an engine keeps the messages."""

    def __init__(self, command: list[str], port: int, engine: RedisEngine, directory: Path) -> None:
        self.engine = engine
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"
        self._command = command
        self._directory = directory
        self._running = contextlib.ExitStack()
        self._program: Program | None = None

    def start(self) -> None:
        further = environment(WSHUB_BROKER=self.engine.url)
        self._program = self._running.enter_context(
            running_program(self._command, port=self.port, env=further, cwd=self._directory)
        )

    def replace(self, signal_number: int) -> None:
        """End the server with a signal, and start another one."""
        output = self.end(signal_number)
        assert "Traceback" not in output, output
        self.start()

    def end(self, signal_number: int = signal.SIGTERM) -> str:
        assert self._program is not None
        output = self._program.end(signal_number)
        self._running.close()
        return output

    def restart_engine(self, signal_number: int) -> None:
        self.engine.stop(signal_number)
        self.engine.start()


@contextlib.contextmanager
def deployed(program: str, directory: Path) -> Iterator[Deployment]:
    """Start an engine that keeps its data, and the example or the program of the page."""
    port = free_port()
    if program == "example":
        command = [sys.executable, str(ROOT / "examples" / "recovering_chat.py"), "--port", str(port)]
    else:
        write_programs("recovering.md", directory)
        command = [sys.executable, "-m", "wshub", "serve", "main:app", "--port", str(port)]
    with running_engine("redis", *KEEPS_DATA) as engine:
        deployment = Deployment(command, port, engine, directory)
        deployment.start()
        try:
            yield deployment
        finally:
            deployment.end()


@contextlib.contextmanager
def pages_of(deployment: Deployment, count: int) -> Iterator[list[Any]]:
    """Open the page in several tabs."""
    with chromium.running_browser() as browser:
        context = browser.new_context()
        context.set_default_timeout(TIMEOUT)
        pages = [context.new_page() for _ in range(count)]
        for page in pages:
            page.goto(deployment.url)
            page.locator("#state", has_text="open").wait_for()
        yield pages


def texts(page: Any) -> list[str]:
    found: list[str] = page.locator("#messages li").all_text_contents()
    return found


def wait_for(page: Any, text: str) -> None:
    page.locator("#messages li").get_by_text(text, exact=True).wait_for(state="attached")


def say(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


@pytest.mark.parametrize("program", ["example", "page"])
def test_pages_miss_nothing_while_servers_are_replaced_and_the_engine_restarts(program: str, tmp_path: Path) -> None:
    count = 300
    with deployed(program, tmp_path) as deployment, pages_of(deployment, 2) as (ada, ben):
        numbers = [sys.executable, "-m", "tests.support.numbered_messages"]
        command = [*numbers, deployment.engine.url, "chat", str(count), "0.01"]
        with running_program(command, port=deployment.port, env=environment()) as publisher:
            wait_for(ada, "20")
            deployment.replace(signal.SIGTERM)
            wait_for(ada, "80")
            say(ada, "one of ada")
            deployment.restart_engine(signal.SIGTERM)
            say(ben, "one of ben")
            wait_for(ben, "150")
            deployment.restart_engine(signal.SIGKILL)
            deployment.replace(signal.SIGKILL)
            say(ada, "two of ada")
            for page in (ada, ben):
                wait_for(page, str(count))
                for text in ("one of ada", "one of ben", "two of ada"):
                    wait_for(page, text)
            assert "Traceback" not in publisher.wait()
        shown = texts(ada)
        assert texts(ben) == shown
        assert [text for text in shown if text.isdecimal()] == [str(number) for number in range(1, count + 1)]
        assert sorted(text for text in shown if not text.isdecimal()) == ["one of ada", "one of ben", "two of ada"]


def test_pages_begin_anew_if_the_engine_has_lost_its_messages(tmp_path: Path) -> None:
    with deployed("example", tmp_path) as deployment, pages_of(deployment, 1) as (page,):
        say(page, "lost")
        wait_for(page, "lost")
        # The page is a member: the next message shows it.
        deployment.engine.command("FLUSHALL")
        say(page, "new")
        wait_for(page, "new")
        assert texts(page) == ["new"]
        # The page is away, and comes back with a position that says nothing.
        deployment.end()
        deployment.engine.command("FLUSHALL")
        deployment.start()
        page.locator("#state", has_text="open").wait_for()
        page.wait_for_function("document.querySelectorAll('#messages li').length === 0")
        say(page, "newer")
        wait_for(page, "newer")
        assert texts(page) == ["newer"]


def test_a_message_that_was_stored_before_its_page_learned_of_it_comes_once(tmp_path: Path) -> None:
    with deployed("example", tmp_path) as deployment, pages_of(deployment, 1) as (page,):
        # The engine stores the message, and the server ends before the page hears of it.
        page.evaluate("chat.receive = () => {}")
        say(page, "once")
        deadline = time.monotonic() + 15
        while not any(deployment.engine.command("XLEN", key) for key in streams_of(deployment.engine)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        page.evaluate("delete chat.receive")
        deployment.replace(signal.SIGKILL)
        wait_for(page, "once")
        page.locator("#state", has_text="open").wait_for()
        say(page, "next")
        wait_for(page, "next")
        assert texts(page) == ["once", "next"]


def streams_of(engine: RedisEngine) -> list[str]:
    found = engine.command("KEYS", "*")
    return [key for key in found if engine.command("TYPE", key) == "stream"]
