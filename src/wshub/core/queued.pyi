from collections.abc import Generator
from typing import Literal, final

@final
class Queued:
    def __await__(self) -> Generator[None]: ...
    def __bool__(self) -> Literal[False]: ...
