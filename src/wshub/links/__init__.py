"""Where the bytes of a connection go: the native reactor, or an asyncio transport."""
