"""Where the bytes of a connection go: the native reactor, an asyncio transport, an ASGI server, or memory."""
