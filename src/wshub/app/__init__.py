"""Whole applications: HTTP by Starlette and uvicorn, WebSockets by a hub."""

from wshub.app.app import App
from wshub.app.context import Context
from wshub.app.serving import run

__all__ = ["App", "Context", "run"]
