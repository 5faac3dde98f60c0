"""Coverage-guided fuzzing of one target, with atheris (libFuzzer). ``scripts/fuzz`` builds the modules and runs it."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["wshub"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Run the named target. The other arguments are libFuzzer's."""
    name = sys.argv.pop(1)
    # For a merge, libFuzzer starts itself again.
    sys.argv[0] = f"{sys.executable} -m tests.fuzz.run {name}"
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
