"""The browser with which tests look at pages."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PATH = shutil.which("chromium")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

MISSING = (
    "there is no chromium on this machine"
    if PATH is None
    else "a browser does not start with the sanitizers preloaded"
    if "WSHUB_SANITIZED" in os.environ
    else None
)
"""Why a test cannot have a browser; None if it can."""


@contextlib.contextmanager
def running_browser() -> Iterator[Browser]:
    """Run a browser without a window until the end of the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PATH, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()
