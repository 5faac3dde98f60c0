"""The directory in which the hubs of several workers find one another."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.wshub_serve import Serving, serving
from wshub.brokers.workers_directory import DIRECTORY_VARIABLE
from wshub.uvicorn.running import count_workers
from wshub.uvicorn.shared_directory import LOCK, remove_abandoned, shared_directory

APP = "tests.uvicorn.shared_directory_app:app"
HUB_APP = "tests.uvicorn.shared_directory_app:app_with_hub"


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def answer(server: Serving) -> dict[str, Any]:
    return httpx.get(f"http://{server.address}/", trust_env=False).json()


def answers_of_two(server: Serving) -> dict[int, dict[str, Any]]:
    """Return an answer of each of the two workers by process, once both serve."""
    answers: dict[int, dict[str, Any]] = {}
    deadline = time.monotonic() + 30
    while len(answers) < 2:
        assert time.monotonic() < deadline, "one of the two workers does not answer"
        found = answer(server)
        answers[found["pid"]] = found
    return answers


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_workers_share_a_private_directory_that_is_removed_at_the_end(stop) -> None:
    with serving(APP, "--workers", "2") as server:
        (directory,) = {found["directory"] for found in answers_of_two(server).values()}
        assert Path(directory).name.startswith("wshub-")
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        server.end(stop)
        assert not os.path.exists(directory)


def test_a_worker_that_is_replaced_gets_the_same_directory() -> None:
    with serving(APP, "--workers", "2") as server:
        before = answers_of_two(server)
        (directory,) = {found["directory"] for found in before.values()}
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while (after := answer(server))["pid"] in before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert after["directory"] == directory
        server.end()
        assert not os.path.exists(directory)


@pytest.mark.failure("`wshub serve --workers` is killed")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_workers_end_with_a_parent_that_is_killed_and_the_next_one_tidies_up(
    loop, socket_directory, monkeypatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(socket_directory))
    with serving(HUB_APP, "--workers", "2", "--loop", loop) as server:
        workers = set(answers_of_two(server))
        (directory,) = socket_directory.iterdir()
        sockets = len(list(directory.glob("*.sock")))
        server.process.kill()
        deadline = time.monotonic() + 30
        try:
            while any(is_alive(process) for process in workers):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            for process in filter(is_alive, workers):
                os.kill(process, signal.SIGKILL)
        output = server.program.wait()
        assert output.count("the worker ends") == 2, output
        assert sockets == 2
        assert directory.exists()
    with serving(APP, "--workers", "2") as server:
        assert answer(server)["directory"] != str(directory)
        assert not directory.exists()
    assert list(socket_directory.iterdir()) == []


def test_only_directories_that_nothing_uses_are_removed(socket_directory) -> None:
    def make(name: str, *, has_lock: bool = True) -> Path:
        directory = socket_directory / name
        directory.mkdir(mode=0o700)
        if has_lock:
            (directory / LOCK).touch()
        return directory

    abandoned, served, refused = make("wshub-abandoned"), make("wshub-served"), make("wshub-refused")
    kept = [
        make("wshub-of-an-application", has_lock=False),
        make("of-another-program"),
        make("wshub-open-to-others"),
        make("wshub-locked"),
        served,
    ]
    kept[2].chmod(0o755)
    elsewhere = make("elsewhere")
    (socket_directory / "wshub-link").symlink_to(elsewhere)
    with (
        open(kept[3] / LOCK) as lock,
        socket.socket(socket.AF_UNIX) as listening,
        socket.socket(socket.AF_UNIX) as ended,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        listening.bind(str(served / "worker.sock"))
        listening.listen()
        ended.bind(str(refused / "worker.sock"))
        ended.close()
        remove_abandoned(str(socket_directory))
    assert not abandoned.exists()
    assert not refused.exists()
    assert all(directory.exists() for directory in [*kept, elsewhere])


def test_one_worker_has_none(monkeypatch) -> None:
    # This process may be a worker of another server.
    monkeypatch.setenv(DIRECTORY_VARIABLE, "/elsewhere")
    with serving(APP) as server:
        assert answer(server)["directory"] is None
    with shared_directory(1):
        assert DIRECTORY_VARIABLE not in os.environ
    assert os.environ[DIRECTORY_VARIABLE] == "/elsewhere"


def test_it_is_below_the_directory_that_systemd_gives(monkeypatch) -> None:
    with tempfile.TemporaryDirectory() as given:
        monkeypatch.setenv("RUNTIME_DIRECTORY", f"{given}:/nowhere")
        with shared_directory(2):
            assert Path(os.environ[DIRECTORY_VARIABLE]).parent == Path(given)
        assert os.listdir(given) == []


@pytest.mark.parametrize("name", ["missing", "long" * 20])
def test_a_directory_that_cannot_have_sockets_is_not_used(name, tmp_path, monkeypatch) -> None:
    if name != "missing":
        (tmp_path / name).mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / name))
    with shared_directory(2):
        assert not os.environ[DIRECTORY_VARIABLE].startswith(str(tmp_path))
        assert os.path.isdir(os.environ[DIRECTORY_VARIABLE])
    assert list(tmp_path.rglob("wshub-*")) == []


def test_without_any_directory_the_workers_serve_all_the_same(monkeypatch, caplog) -> None:
    def fail(**options: object) -> str:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("wshub.uvicorn.shared_directory.tempfile.mkdtemp", fail)
    with shared_directory(2):
        assert DIRECTORY_VARIABLE not in os.environ
    assert "Read-only" in caplog.text


def test_workers_are_counted_as_uvicorn_counts_them(monkeypatch) -> None:
    assert count_workers({}) == 1
    assert count_workers({"workers": 3}) == 3
    assert count_workers({"workers": 3, "reload": True}) == 1
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    assert count_workers({}) == 4
    assert count_workers({"workers": 2}) == 2
    monkeypatch.setenv("WEB_CONCURRENCY", "many")
    assert count_workers({}) == 1
