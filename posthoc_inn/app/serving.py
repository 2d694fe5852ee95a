"""Serves the page: on one address, until it is stopped or the last visitor has gone."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from posthoc_inn.app.fitted import MAX_BYTES, Opened
from posthoc_inn.app.page import build, gradio, style, theme
from posthoc_inn.errors import ConfigError

HOST, PORT, PORTS = "127.0.0.1", 7860, 20
"""Where the page is by default: the first free one of these ports."""
GRACE = 10.0
"""Seconds after the last page was closed until the server stops: a page that is loaded anew comes back sooner."""


def open_socket(host: str, port: int | None) -> socket.socket:
    """Return a socket that is bound, so that nobody else takes the port while bundles are loaded.

    Args:
        host: Address or name of this machine.
        port: 0 for any free one; None for the first free one from `PORT` on.

    Raises:
        ConfigError: The address is not this machine's, or the port is taken or not allowed.
    """
    wanted = range(PORT, PORT + PORTS) if port is None else [port]
    problem: OSError | None = None
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise ConfigError(f"--host {host}: there is no such address ({error.strerror}); leave it out.") from None
    for number in wanted:
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, number))
            found.listen(128)
            return found
        except OSError as error:
            found.close()
            problem = error
    told = f"{wanted[0]}" if port is not None else f"{wanted[0]} to {wanted[-1]}"
    reason = problem.strerror if problem is not None else "none"
    raise ConfigError(
        f"The page cannot be at {host}, port {told} ({reason}). Pass another --port, or --port 0 for any free one."
    )


def is_private(host: str) -> bool:
    """Whether an address is reached from this machine alone.

    >>> is_private("127.0.0.1"), is_private("0.0.0.0")
    (True, False)
    """
    return host in ("localhost", "::1") or host.startswith("127.")


class Visitors:
    """Counts open pages, and says when the last one has gone for long enough.

    Args:
        grace: Seconds to wait for one to come back.
        clock: Seconds from some time on.
    """

    def __init__(self, grace: float = GRACE, clock: Callable[[], float] = time.monotonic) -> None:
        self._here: set[str] = set()
        self._left: float | None = None
        self._grace, self._clock, self._lock = grace, clock, threading.Lock()

    def come(self, name: str) -> None:
        """Count a page that was opened."""
        with self._lock:
            self._here.add(name)
            self._left = None

    def go(self, name: str) -> None:
        """Count a page that was closed."""
        with self._lock:
            self._here.discard(name)
            if not self._here:
                self._left = self._clock()

    @property
    def are_gone(self) -> bool:
        """Whether there were some, and there have been none for longer than the grace."""
        with self._lock:
            return self._left is not None and self._clock() - self._left > self._grace


def application(opened: Opened, visitors: Visitors | None = None) -> Any:
    """Return the page as an ASGI application: nothing is shared, counted elsewhere or shown beside it.

    Args:
        opened: Layers and pictures.
        visitors: Told of pages that are opened and closed.

    Raises:
        PluginError: gradio is not installed.
    """
    gr = gradio()
    from fastapi import FastAPI

    page = build(opened)
    if visitors is not None:
        _count(gr, page, visitors)
    undocumented: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    return gr.mount_gradio_app(
        FastAPI(**undocumented),
        page,
        path="",
        app_kwargs=undocumented,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_BYTES,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme(gr),
        # As CSS of gradio's own, its selectors would be bound below the frame that they are to reach.
        head=f"<style>{style()}</style>",
    )


def _count(gr: Any, page: Any, visitors: Visitors) -> None:
    def come(request: Any) -> None:
        visitors.come(str(request.session_hash))

    def go(request: Any) -> None:
        visitors.go(str(request.session_hash))

    come.__annotations__ = go.__annotations__ = {"request": gr.Request}
    with page:
        page.load(come, None, None, show_progress="hidden", api_visibility="private", queue=False)
        page.unload(go)


def serve(opened: Opened, listening: socket.socket, *, is_kept: bool, started: Callable[[str], None]) -> bool:
    """Serve until Ctrl-C, or until the last page was closed.

    Args:
        opened: Layers and pictures.
        listening: Where.
        is_kept: Whether to go on when the last page was closed.
        started: Called with the page's address once it can be opened.

    Returns:
        Whether it ended because the last page was closed.

    Raises:
        PluginError: gradio is not installed.
    """
    visitors = Visitors()
    app = application(opened, visitors)
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2, lifespan="on"))
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    ended = threading.Event()

    def watch() -> None:
        while not server.started and not server.should_exit:
            time.sleep(0.05)
        if server.started:
            started(f"http://{shown}:{port}/")
        while not server.should_exit:
            if not is_kept and visitors.are_gone:
                ended.set()
                server.should_exit = True
            time.sleep(0.25)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    server.should_exit = True
    watcher.join(timeout=2)
    return ended.is_set()
