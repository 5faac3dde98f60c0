"""No uninitialised byte is sent to a client. Valgrind's memcheck checks every send."""

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

# Frames of memcheck and the C library, which may stand on top of their caller's.
ABOVE = ("vgpreload", "libc.so", "libc-", "ld-linux")


def concerns_wshub(error: ElementTree.Element) -> bool:
    """Return False for reports about the interpreter, which reads digits of integers before it sets them.

    tests/memory/test_leaks.py covers leaks.
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
@pytest.mark.long
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
    # Check that the program sent everything.
    assert int(done.stdout.removeprefix("sent ")) > 2_000_000
    errors = ElementTree.parse(reports).getroot().findall("error")
    ours = [ElementTree.tostring(error, "unicode") for error in errors if concerns_wshub(error)]
    assert ours == []
