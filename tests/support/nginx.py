"""A real nginx in front of a test server."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.support.programs import free_port, running_program

PATH = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

CONFIGURATION = """
daemon off;
master_process off;
pid {prefix}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/proxy;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {location}
    }}
}}
"""


@contextlib.contextmanager
def proxying(location: str, prefix: Path) -> Iterator[str]:
    """Run an nginx with that location and its files below ``prefix``. Yields its address, ``127.0.0.1:port``."""
    assert PATH is not None
    port = free_port()
    prefix.mkdir()
    file = prefix / "nginx.conf"
    file.write_text(CONFIGURATION.format(prefix=prefix, port=port, location=location))
    with running_program([PATH, "-p", str(prefix), "-c", str(file)], port=port):
        yield f"127.0.0.1:{port}"
