"""The files in the how-to pages: code blocks whose first line names a file."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.programs import ROOT

HOW_TO = ROOT / "docs" / "how-to"

# A block of code, and the name that its first line gives it: `# main.py`, `// client.js` or `<!-- page.html -->`.
BLOCK = re.compile(r"^```\w+\n((?:# |// |<!-- )([\w-]+\.\w+|Dockerfile|Caddyfile)(?: -->)?\n.*?)^```$", re.M | re.S)


def files_of(page: str) -> dict[str, str]:
    """Return the files of a page by their names. Of several with one name, the first counts."""
    files: dict[str, str] = {}
    for text, name in BLOCK.findall((HOW_TO / page).read_text()):
        files.setdefault(name, text)
    return files


def write_files(page: str, directory: Path, *names: str) -> None:
    """Write files of a page into a directory: all of them, or those that are named."""
    files = files_of(page)
    for name in names or files:
        (directory / name).write_text(files[name])


def replaced(text: str, replacements: dict[str, str]) -> str:
    """Return the text with some parts replaced, each of which must be there."""
    for part, new in replacements.items():
        assert part in text, part
        text = text.replace(part, new)
    return text
