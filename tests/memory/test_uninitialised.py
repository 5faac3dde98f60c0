"""No byte of memory that nobody has written leaves for a client, whatever is sent: valgrind's memcheck watches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.memory.conftest import ROOT, TIMEOUT
from tests.support.reactor import needs_reactor

# Whatever memcheck itself and the C library put on top of the stack of whoever has called them.
ABOVE = ("vgpreload", "libc.so", "libc-", "ld-linux")


def concerns_wshub(error: ElementTree.Element) -> bool:
    """Whether a report is not one of the interpreter's own, which looks at digits of integers before they are there.

    What is lost at the end is for tests/memory/test_leaks.py.
    """
    kind = error.findtext("kind") or ""
    stack = error.find("stack")
    assert stack is not None
    objects = [frame.findtext("obj") or "" for frame in stack.iter("frame")]
    innermost = next((path for path in objects if not Path(path).name.startswith(ABOVE)), "")
    if kind.startswith("Leak"):
        return False
    if kind == "SyscallParam":
        return True
    return "/wshub/" in (innermost if kind.startswith("Uninit") else " ".join(objects))


@needs_reactor
@pytest.mark.skipif("WSHUB_SANITIZED" in os.environ, reason="memcheck and the sanitizers do not run together")
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_nothing_uninitialised_is_sent_or_decides(tmp_path: Path) -> None:
    reports = tmp_path / "reports.xml"
    memcheck = ["valgrind", "-q", "--num-callers=40", "--xml=yes", f"--xml-file={reports}"]
    done = subprocess.run(
        [*memcheck, sys.executable, "-W", "ignore", "-m", "tests.memory.uninitialised"],
        cwd=ROOT,
        env=os.environ | {"PYTHONMALLOC": "malloc"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # That all of it was sent.
    assert int(done.stdout.removeprefix("sent ")) > 2_000_000
    errors = ElementTree.parse(reports).getroot().findall("error")
    ours = [ElementTree.tostring(error, "unicode") for error in errors if concerns_wshub(error)]
    assert ours == []
