from collections.abc import Callable
from typing import Any

class StoredSender:
    def __init__(self, send_stored: Callable[[str, bytes, Any], bool], channel: str, config: Any) -> None: ...
