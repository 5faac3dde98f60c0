"""The chat and the dashboard on one port: ``python examples/demo.py``, then open http://127.0.0.1:8080."""

import argparse

import chat
import dashboard
from starlette.applications import Starlette
from starlette.routing import Mount

from wshub.uvicorn import run

dashboard.watched["chat"] = chat.hub
app = Starlette(routes=[*dashboard.routes, Mount("/", app=chat.app)])

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    run(app, host=arguments.host, port=arguments.port)
