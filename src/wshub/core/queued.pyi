"""The result of ``send`` and of the other methods that queue."""

from collections.abc import Generator
from typing import Literal, final

@final
class Queued:
    """The result of ``send`` and of the other methods that queue: always the same object.

    The call has queued already. ``await`` on the object does nothing and gives None. The object is false, as None is.
    """

    def __await__(self) -> Generator[None]: ...
    def __bool__(self) -> Literal[False]: ...
