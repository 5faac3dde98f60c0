from typing_extensions import Buffer

from wshub.core.config import SlowConsumer
from wshub.core.connection import Connection
from wshub.core.hub_core import HubCore
from wshub.protocol.message import Message

def is_kept(hub: HubCore, room: str) -> bool: ...
def make_history_envelope(
    hub: HubCore,
    room: str,
    message: str | Buffer | Message,
    exclude: Connection | int | None,
    compress: bool | None,
    slow_consumer: SlowConsumer | None,
    key: str | None,
    publisher: Connection | str | None,
) -> bytes: ...
