"""Builds the native modules; all else about the package is in pyproject.toml.

``WSHUB_BUILD`` chooses how: ``release`` (the default), ``debug`` (no optimisation, debug symbols), ``sanitize``
(AddressSanitizer and UndefinedBehaviorSanitizer), ``fuzz`` (these and libFuzzer's coverage, with clang) or ``profile``
(release, with symbols and line directives).
``WSHUB_WITHOUT_REACTOR=1`` leaves the reactor out, as on a platform without epoll.
"""

from __future__ import annotations

import os
import select
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZED = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]

FLAGS: dict[str, tuple[list[str], list[str]]] = {
    "release": (["-O3", "-g0"], []),
    "debug": (["-O0", "-g"], []),
    "profile": (["-O3", "-g", "-fno-omit-frame-pointer"], []),
    "sanitize": (SANITIZED, ["-fsanitize=address,undefined"]),
    # What they refer to is in the library that is loaded before them.
    "fuzz": ([*SANITIZED, "-fsanitize=fuzzer-no-link"], []),
}

LIBRARIES = {"deflate": ["z"], "isal": ["isal"]}

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
            # Without its library, the package does without the module.
            optional=path.stem == "isal",
            include_dirs=["src/wshub/protocol", "src/wshub/links"],
            depends=[str(header) for header in sorted(root.rglob("*.h"))],
            # Old CPython headers declare after statements; nothing of ours is to warn.
            extra_compile_args=[*compile_arguments, "-Wall", "-Wextra", "-Wno-unused-parameter"],
            extra_link_args=link_arguments,
        )
        for path in sorted(root.rglob("*.pyx"))
        if HAS_EPOLL or path.stem != "reactor"
    ]


setup(
    ext_modules=cythonize(
        extensions(),
        include_path=["src"],
        compiler_directives={"language_level": "3", "binding": True, "embedsignature": True},
        show_all_warnings=True,
    )
)
