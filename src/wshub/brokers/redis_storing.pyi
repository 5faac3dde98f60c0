from wshub.brokers.redis_sender import EnvelopeSender
from wshub.brokers.stored_sender import StoredSender
from wshub.links.byte_stream import ByteStream

class StoreCalls:
    loaded_over: ByteStream | None
    is_reloading: bool

    def __init__(self, sender: EnvelopeSender) -> None: ...
    def store(self, channel: str, head: bytes, envelope: bytes) -> bool: ...
    def stored_sender(self, head: bytes) -> StoredSender: ...
