"""Coverage-guided fuzzing of one target, with atheris (libFuzzer): ``scripts/fuzz`` builds for it and calls it."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["wshub"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Take the name of a target, and what libFuzzer takes."""
    name = sys.argv.pop(1)
    # To merge, libFuzzer calls itself again.
    sys.argv[0] = f"{sys.executable} -m tests.fuzz.run {name}"
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
