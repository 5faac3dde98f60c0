"""Notifications for the users of a Django project, in one file: ``python examples/django_notifications.py``.

Django serves HTTP, and its sessions say who may connect. A view sends a notice to whoever it is for. The users are ada
and ben, both with the password "wshub".
"""

import argparse
import secrets
import tempfile
from collections.abc import Awaitable, Callable
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import django
from django.conf import settings

DIRECTORY = tempfile.TemporaryDirectory()

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(DIRECTORY.name) / "users.sqlite3"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_urlsafe(32),
    USE_TZ=True,
)
django.setup()

from django.contrib.auth import aauthenticate, aget_user, alogin  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.http import HttpRequest, HttpResponse, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402

from wshub import Connection, EventHandler, Hub, HubConfig  # noqa: E402
from wshub.uvicorn import run  # noqa: E402


def make_hub(port: int) -> Hub:
    # Browsers send cookies with every WebSocket request, whichever page asks: only our own pages may.
    return Hub(HubConfig(allowed_origins=(f"http://127.0.0.1:{port}",)))


def enter(connection: Connection) -> None:
    assert connection.path_params is not None
    connection.join(f"user {connection.path_params['user']}")


class Application:
    """The ASGI application: HTTP is Django's, WebSockets are the hub's once Django knows their user."""

    def __init__(self, hub: Hub) -> None:
        self._django = get_asgi_application()
        self._hub = hub.asgi(EventHandler(on_open=enter))

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if scope["type"] == "http":
            await self._django(scope, receive, send)
        elif scope["type"] == "websocket":
            user = await user_of(scope)
            if user.is_authenticated:
                await self._hub({**scope, "path_params": {"user": user.get_username()}}, receive, send)
            else:
                await receive()
                await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
                await send({"type": "websocket.http.response.body", "body": b"Log in first."})
        else:
            await self._hub(scope, receive, send)


async def user_of(scope: dict[str, Any]) -> Any:
    """The user of the session whose cookie a request has."""
    cookies: SimpleCookie = SimpleCookie()
    for name, value in scope["headers"]:
        if name == b"cookie":
            cookies.load(value.decode("latin-1"))
    request = HttpRequest()
    session = cookies.get(settings.SESSION_COOKIE_NAME)
    request.session = SessionStore(session.value if session is not None else None)
    return await aget_user(request)


async def log_in(request: HttpRequest) -> HttpResponse:
    user = await aauthenticate(request, username=request.POST["user"], password=request.POST["password"])
    if user is None:
        return HttpResponse("who are you?", status=401)
    await alogin(request, user)
    return HttpResponse("welcome")


async def notify(request: HttpRequest) -> HttpResponse:
    """Send a notice to every connection of a user."""
    if not (await request.auser()).is_authenticated:
        return HttpResponse("log in first", status=401)
    reached = hub.broadcast(request.POST["text"], room=f"user {request.POST['user']}")
    return JsonResponse({"connections": reached})


urlpatterns = [path("login", log_in), path("notify", notify)]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    call_command("migrate", verbosity=0)
    for name in ("ada", "ben"):
        User.objects.create_user(name, password="wshub")
    hub = make_hub(arguments.port)
    run(Application(hub), host=arguments.host, port=arguments.port)
