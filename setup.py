"""Builds the native modules; all else about the package is in pyproject.toml.

``WSHUB_BUILD`` chooses how:

- ``release``, the default
- ``debug``: no optimisation, debug symbols
- ``sanitize``: AddressSanitizer and UndefinedBehaviorSanitizer
- ``fuzz``: both sanitizers and libFuzzer's coverage, with clang
- ``profile``: a release with symbols and line directives

``WSHUB_WITHOUT_REACTOR=1`` leaves the reactor out, as on a platform without epoll.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# Checks that a release does without.
CHECKED = ["-g", "-DWSHUB_CHECKS"]
SANITIZED = [
    *CHECKED,
    "-O1",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
]

FLAGS: dict[str, tuple[list[str], list[str]]] = {
    "release": (["-O3", "-g0"], []),
    "debug": (["-O0", *CHECKED], []),
    "profile": (["-O3", "-g", "-fno-omit-frame-pointer"], []),
    "sanitize": (SANITIZED, ["-fsanitize=address,undefined"]),
    # A library that is loaded before them defines the symbols.
    "fuzz": ([*SANITIZED, "-fsanitize=fuzzer-no-link"], []),
}

LIBRARIES = {"deflate": ["z"], "isal": ["isal"]}

# The package does without a module whose library is not there.
OPTIONAL = {"wshub.protocol.compression.isal"}

# The commands of setuptools that compile: `sdist` and `egg_info` need no compiler.
COMPILING = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}

PACKAGES = (
    "Debian and Ubuntu: apt-get install gcc libc6-dev zlib1g-dev python3-dev; Fedora: dnf install gcc zlib-devel "
    "python3-devel; Alpine: apk add gcc musl-dev zlib-dev python3-dev; macOS: xcode-select --install"
)

# Where the links and pictures of the README lead on the page of the package.
PAGES = "https://github.com/wshub/wshub/blob/main/"
FILES = "https://github.com/wshub/wshub/raw/main/"

# Without it, connections have the transports of the event loop.
HAS_EPOLL = hasattr(select, "epoll") and os.environ.get("WSHUB_WITHOUT_REACTOR") != "1"


def extensions() -> list[Extension]:
    """One extension module for each ``.pyx`` file, whose name is its place below ``src``."""
    compile_arguments, link_arguments = FLAGS[os.environ.get("WSHUB_BUILD", "release")]
    root = Path("src")
    return [
        Extension(
            ".".join(path.relative_to(root).with_suffix("").parts),
            [str(path)],
            libraries=LIBRARIES.get(path.stem, []),
            include_dirs=[
                "src/wshub/protocol",
                "src/wshub/protocol/compression",
                "src/wshub/links",
                "src/wshub/links/tls",
            ],
            depends=[str(header) for header in sorted(root.rglob("*.h"))],
            # Old CPython headers declare after statements; nothing of ours is to warn.
            extra_compile_args=[*compile_arguments, "-Wall", "-Wextra", "-Wno-unused-parameter"],
            extra_link_args=link_arguments,
        )
        for path in sorted(root.rglob("*.pyx"))
        if HAS_EPOLL or not path.stem.startswith("epoll_")
    ]


def description() -> str:
    """The README, whose relative links and pictures lead to the repository."""
    text = Path("README.md").read_text(encoding="utf-8")
    text = re.sub(r"(?<=\]\()(?!https?:|#)", PAGES, text)
    return re.sub(r'(?<= src=")(?!https?:)|(?<= srcset=")(?!https?:)', FILES, text)


def compiles(command: Sequence[str], source: str) -> bool:
    """Whether a compiler makes a program of ``source``. Raises OSError if it cannot be run."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "program.c")
        path.write_text(source)
        words = [*command, "-c", str(path), "-o", str(path.with_suffix(".o"))]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0


def missing() -> str | None:
    """The first thing that the required modules need and this machine lacks; None if it has them all."""
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC")
    if not compiler:
        return None  # another kind of compiler, which setuptools finds
    flags = (os.environ.get(name, "") for name in ("CFLAGS", "CPPFLAGS"))
    paths = {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}
    command = [*shlex.split(" ".join([compiler, *flags])), *(f"-I{path}" for path in sorted(paths))]
    try:
        if not compiles(command, "int main(void) { return 0; }\n"):
            return f"a C compiler ({command[0]} fails)"
    except OSError as error:
        return f"a C compiler ({command[0]}: {error.strerror})"
    for header, name in (("Python.h", "the headers of Python"), ("zlib.h", "the headers of zlib")):
        if not compiles(command, f"#include <{header}>\n"):
            return f"{name} ({header})"
    return None


def modules() -> list[Extension]:
    """The extension modules, ready to be compiled."""
    found: list[Extension] = cythonize(
        extensions(),
        include_path=["src"],
        compiler_directives={"language_level": "3", "binding": True, "embedsignature": True},
        show_all_warnings=True,
    )
    for extension in found:
        # cythonize() makes new ones, without the flag.
        extension.optional = extension.name in OPTIONAL
    return found


if COMPILING.intersection(sys.argv) and (lacking := missing()):
    # It is alone on its line, and above everything that setuptools prints.
    sys.exit(f"wshub needs {lacking} to be built. {PACKAGES}")

setup(
    ext_modules=modules(),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
    long_description=description(),
    long_description_content_type="text/markdown",
)
