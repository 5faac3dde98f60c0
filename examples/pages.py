"""Pages that arrive whole in one response, with a Content-Security-Policy that allows nothing but what is in them."""

import base64
import hashlib
import re
from pathlib import Path

STYLE = re.compile(r'<link rel="stylesheet" href="([^"]+)">')
SCRIPT = re.compile(r'<script src="([^"]+)"></script>')


class Page:
    """An HTML page, and the header fields of the response that has it.

    Args:
        file: the page. The style sheets and scripts that it names, by paths from its folder, become a part of it.
    """

    def __init__(self, file: Path) -> None:
        self._folder = file.parent
        self._hashes: dict[str, list[str]] = {"style": [], "script": []}
        text = file.read_text(encoding="utf-8")
        text = STYLE.sub(lambda found: self._element("style", found[1]), text)
        text = SCRIPT.sub(lambda found: self._element("script", found[1]), text)
        self.body = text.encode()
        self.headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": self._policy(),
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    def _element(self, name: str, path: str) -> str:
        content = (self._folder / path).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        self._hashes[name].append(f"'sha256-{digest}'")
        return f"<{name}>{content}</{name}>"

    def _policy(self) -> str:
        """Return a policy that names the page's own styles and scripts by their hashes.

        The browser does not run a script that was smuggled into the page: it has another hash.
        """
        directives = {
            "default-src": "'none'",
            "style-src": " ".join(self._hashes["style"]),
            "script-src": " ".join(self._hashes["script"]),
            "img-src": "data:",
            "connect-src": "'self'",
            "frame-src": "'self'",
            "frame-ancestors": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
        }
        return "; ".join(f"{name} {value}" for name, value in directives.items())
