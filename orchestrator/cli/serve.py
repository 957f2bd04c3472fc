"""`fathom serve`: the service of one machine. The API on uvicorn in front, the controller in a thread beside it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from orchestrator.errors import RunFailed, UsageError

if TYPE_CHECKING:
    from orchestrator.api.capacity import Capacity
    from orchestrator.api.certificates import Certificates
    from orchestrator.api.server import Server
    from orchestrator.controller.service import Controller
    from orchestrator.store.base import JobStore

PORT = 8470
_MOST_FILES = 1 << 16
_LAST_TURN_SECONDS = 15.0
"""The controller ends what it is doing; trainings are processes of their own."""


def serve_command(
    host: Annotated[str, typer.Option(help="Address to listen at; only this machine reaches 127.0.0.1.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0: a free one.", min=0, max=65_535)] = PORT,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name under which others reach it, beside --host and localhost; repeatable."),
    ] = None,
) -> None:
    """Run the service of this machine: REST API, queue of jobs and their controller, in the home FATHOM_HOME.

    Ctrl-C ends the service and no training: those go on, and the next `fathom serve` finds them again.
    """
    from orchestrator.launch.local import hold_lock
    from orchestrator.settings import Settings

    settings = Settings.load()
    allow_files(_MOST_FILES)
    make_home(settings.home)
    listener = listen(host, port)
    with listener, hold_lock(settings.home / "service.lock"):
        _serve(listener, host, allowed_host or [])


def _serve(listener: socket.socket, host: str, names: list[str]) -> None:
    from orchestrator.api.app import make_app
    from orchestrator.api.limits import LOCAL_HOSTS
    from orchestrator.controller.service import Controller
    from orchestrator.launch.local import LocalLauncher
    from orchestrator.settings import Settings
    from orchestrator.store.access import Access
    from orchestrator.store.database import NAME
    from orchestrator.store.sqlite import SqliteStore

    settings = Settings.load()
    store = SqliteStore(settings.home / NAME)
    token = Access(store.database).admin_file(settings.home)
    controller = Controller(store, LocalLauncher(settings, say=say), settings, say)
    app = make_app(
        store,
        settings,
        capacity=lambda: capacity_of(controller),
        wake=controller.wake,
        hosts=frozenset({*LOCAL_HOSTS, host, *names}),
        controller=controller.health,
    )
    url = f"http://{_shown(host)}:{listener.getsockname()[1]}"
    server = server_of(app)
    with _announced(settings.home / "service.json", url), turning(controller, server):
        say(f"fathom serves {settings.home} at {url}; the admin token is in {token} (the command line finds it)")
        if not host.startswith("127.") and host not in ("localhost", "::1"):
            say(f"{host} is open to the network, and tokens travel there in plain text: put TLS in front of it")
        server.run(sockets=[listener])
    say(_farewell(store))


def capacity_of(controller: Controller) -> Capacity:
    """As the API tells it."""
    from orchestrator.api.capacity import Capacity, Holder, Slots
    from orchestrator.launch.slots import need_of

    machine, jobs = controller.slots()
    needs = [(job, need_of(job.wish.job)) for job in jobs]
    holders = [Holder(job.namespace, job.name, Slots(need.cpus, need.gpus)) for job, need in needs]
    return Capacity(None if machine is None else Slots(machine.cpus, machine.gpus), tuple(holders))


def server_of(app: object, certificates: Certificates | None = None) -> Server:
    """Of uvicorn; told to stop, it ends its streams. With certificates it answers by https."""
    import uvicorn

    from orchestrator.api.server import Server

    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,  # the audit record and the metrics know more
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
        ssl_context_factory=None if certificates is None else lambda *_: certificates.context,
    )
    return Server(config)


class Turns(Protocol):
    """What goes on beside the server."""

    def run(self) -> None:
        """Until `stop`."""

    def stop(self) -> None:
        """From another thread."""


@contextmanager
def turning(controller: Turns, server: Server) -> Iterator[None]:
    """The controller in a thread; if that ends by itself, the service does, too."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            controller.run()
        except BaseException as error:  # noqa: BLE001 - told below, by the thread that can end the process
            failed.append(error)
        finally:
            server.should_exit = True

    # uvicorn raises what it has caught once more when it has ended: then there is still something to do here
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    thread = threading.Thread(target=run, name="controller", daemon=True)
    thread.start()
    try:
        yield
    finally:
        controller.stop()
        thread.join(_LAST_TURN_SECONDS)
        for number, handler in before.items():
            signal.signal(number, handler)
    if failed:
        raise RunFailed(f"the controller ended: {type(failed[0]).__name__}: {failed[0]}") from failed[0]


def _ignore(*_: object) -> None:
    """uvicorn has seen the signal already."""


@contextmanager
def _announced(path: Path, url: str) -> Iterator[None]:
    """Where the service is, for the command line and the client on this machine."""
    import json

    import psutil

    from orchestrator.launch.files import replace_file

    own = psutil.Process()
    about = {"url": url, "pid": own.pid, "started": own.create_time(), "boot": psutil.boot_time()}
    replace_file(path, json.dumps(about))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def allow_files(most: int) -> None:
    """As many as the system lets us: each job that waits or runs keeps a lock open, and 1024, a usual limit, leaves
    none to start a job or to answer with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with suppress(ValueError, OSError):  # a kernel may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def listen(host: str, port: int) -> socket.socket:
    """UsageError if that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"cannot listen at {host} port {port}: {why}; --port 0 takes a free one") from None


def make_home(home: Path) -> None:
    """UsageError if it cannot be made, or not written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {home}: {error.strerror}; set FATHOM_HOME to another folder") from None
    if not os.access(home, os.W_OK):
        raise UsageError(f"{home} cannot be written: set FATHOM_HOME to another folder")


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _farewell(store: JobStore) -> str:
    from orchestrator.status import Phase

    live = [job.name for job in store.open_jobs() if job.status.phase in (Phase.STARTING, Phase.RUNNING)]
    if not live:
        return "the service has ended; nothing runs"
    verb = "goes" if len(live) == 1 else "go"
    return f"the service has ended; {', '.join(live)} {verb} on without it: `fathom serve` finds what runs again"


def say(text: str) -> None:
    """In the log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
