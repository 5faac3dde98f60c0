"""The pages of the demo pass the checks of axe-core: contrast, names, landmarks, roles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.examples.demo import ChatTab, Tab, serving_demo
from tests.support import chromium
from tests.support.free_ports import free_port
from tests.support.node_packages import node_modules

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [
    pytest.mark.skipif(chromium.MISSING is not None, reason=str(chromium.MISSING)),
    pytest.mark.parametrize(
        ("width", "scheme"),
        [
            (1280, "light"),
            (400, "dark"),
            pytest.param(1280, "dark", marks=pytest.mark.long),
            pytest.param(400, "light", marks=pytest.mark.long),
        ],
    ),
]


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core."""
    modules = node_modules("axe-core@4.10.3")
    if isinstance(modules, str):
        pytest.skip(modules)
    return (modules / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    with serving_demo(port, tmp_path_factory.mktemp("demo") / "chat.sqlite3", PRICES_PER_SECOND="500"):
        yield port


def violations(tab: Tab, axe: str) -> list[str]:
    """Return what axe-core finds fault with, for each rule the elements."""
    tab.page.evaluate(axe)
    found = tab.page.evaluate("axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa', 'best-practice'] })")
    return [
        f"{violation['id']}: {node['html'][:120]} {node['failureSummary']}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


def test_the_chat(browser: Browser, port: int, axe: str, scheme: str, width: int) -> None:
    # A message that fades in has too little contrast at first.
    options: dict[str, object] = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    options["reduced_motion"] = "reduce"
    dialog = Tab(browser, port, **options)
    dialog.page.get_by_role("dialog").wait_for()
    assert violations(dialog, axe) == []
    room = f"{scheme}-{width}"
    ada, ben = (ChatTab(browser, port, name, room, **options) for name in ("Ada", "Ben"))
    ben.say("hello")
    ada.wait_for("hello")
    ada.say("hi")
    ada.wait_for("hi")
    assert violations(ada, axe) == []
    ada.page.evaluate("link.connect('/nowhere')")
    ada.say("kept")
    ada.page.locator("#offline").wait_for()
    assert violations(ada, axe) == []
    for tab in (dialog, ada, ben):
        tab.context.close()


def test_the_dashboard(browser: Browser, port: int, axe: str, scheme: str, width: int) -> None:
    tab = Tab(browser, port, "/dashboard", color_scheme=scheme, viewport={"width": width, "height": 800})
    tab.page.get_by_role("switch", name="Slow reader").click()
    tab.page.locator("#board [data-skipped]").first.wait_for()
    tab.page.locator("#hubs tr").first.wait_for()
    assert violations(tab, axe) == []
    tab.context.close()
