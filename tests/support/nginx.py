"""A real nginx in front of a test server."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.support.programs import running_program

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
    {http}
}}
"""


@contextlib.contextmanager
def running(http: str, prefix: Path, port: int) -> Iterator[None]:
    """Run an nginx with that text in its ``http`` block, which listens on the port. Its files are below ``prefix``."""
    assert PATH is not None
    prefix.mkdir()
    file = prefix / "nginx.conf"
    file.write_text(CONFIGURATION.format(prefix=prefix, http=http))
    with running_program([PATH, "-p", str(prefix), "-c", str(file)], port=port):
        yield
