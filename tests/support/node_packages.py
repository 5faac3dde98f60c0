"""npm packages that tests run. They are installed once, into a cache."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


@functools.cache
def node_modules(*packages: str) -> Path | str:
    """Return the directory of the packages, or the reason why they are missing. Each package includes its version."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "there is no Node.js on this machine"
    cache = Path(os.environ.get("WSHUB_CACHE") or Path.home() / ".cache" / "wshub")
    target = cache / f"node-{'-'.join(packages)}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            made = Path(work) / "made"
            made.mkdir()
            command = ["npm", "install", "--prefix", str(made), "--ignore-scripts", "--no-audit", "--no-fund"]
            command += ["--fetch-retries=1", *packages]
            try:
                subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
            except subprocess.CalledProcessError as error:
                return f"npm cannot install {' '.join(packages)}: {error.stderr.strip()[-300:]}"
            except subprocess.TimeoutExpired:
                return f"npm did not install {' '.join(packages)} within two minutes"
            with contextlib.suppress(OSError):  # another run was first
                made.rename(target)
    return target / "node_modules"
