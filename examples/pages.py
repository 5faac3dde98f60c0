"""Pages that are one file each, and the Content-Security-Policy that allows nothing but what is in the file."""

import base64
import hashlib
import re
from pathlib import Path

INLINE = re.compile(r"<(style|script)[^>]*>(.*?)</\1>", re.DOTALL)


class Page:
    """An HTML page and the header fields that it is sent with.

    Args:
        file: the page. Its styles and scripts are in ``style`` and ``script`` elements, not in attributes.
    """

    def __init__(self, file: Path) -> None:
        text = file.read_text(encoding="utf-8")
        self.body = text.encode()
        self.headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": content_security_policy(text),
            "Cache-Control": "no-cache",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }


def content_security_policy(page: str) -> str:
    """Return a policy that names the page's own styles and scripts by their hashes.

    The browser does not run a script that was smuggled into the page: it has another hash.
    """
    hashes: dict[str, list[str]] = {"style": [], "script": []}
    for element, content in INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[element].append(f"'sha256-{digest}'")
    directives = {
        "default-src": "'none'",
        "script-src": " ".join(hashes["script"]) or "'none'",
        "style-src": " ".join(hashes["style"]) or "'none'",
        "img-src": "data:",
        "connect-src": "'self'",
        "frame-src": "'self'",
        "frame-ancestors": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())
