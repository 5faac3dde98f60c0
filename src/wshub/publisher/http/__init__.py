"""An HTTP API that sends messages to the connections of hubs: for programs in other languages, and for the shell.

::

    app.mount("/api", HttpApi(hub, tokens=[os.environ["API_TOKEN"]]))

``GET /openapi.json`` describes it.
"""

from wshub.publisher.http.api import HttpApi

__all__ = ["HttpApi"]
