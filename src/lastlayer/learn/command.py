"""The command ``lastlayer learn``: serve the page on this machine and open the browser."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import socket
import sys
from collections.abc import Sequence

NEEDED = ("starlette", "uvicorn")
HOST = "127.0.0.1"


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lastlayer learn` with these arguments; return the exit code: 2 for a user's mistake, 0 after Ctrl-C.

    Example:
        >>> main(["--port", "70000"])
        2
    """
    arguments = _parser().parse_args(argv)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return _complain(f'{" and ".join(missing)} not installed: pip install "lastlayer[learn]"')
    if not 0 <= arguments.port <= 65535:
        return _complain(f"--port: expected a number from 0 (any free port) to 65535, got {arguments.port}")
    try:
        listening = _listen(arguments.port)
    except OSError as error:
        return _complain(f"--port {arguments.port}: {error.strerror or error}")
    # On Ctrl-C uvicorn closes everything and then passes the signal on; it may also come before uvicorn is there.
    with listening, contextlib.suppress(KeyboardInterrupt):
        _serve(listening, browser=arguments.browser)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lastlayer learn",
        description="Ten lessons from odds to cross-entropy, on a page of this machine: every number can be dragged.",
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="the port; any free one by default")
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="only print the address")
    return parser


def _complain(message: str) -> int:
    print(f"lastlayer learn: {message}", file=sys.stderr)
    return 2


def _listen(port: int) -> socket.socket:
    """Return a socket that listens on the loopback interface; bound before the address is printed, so it is ours."""
    # With the protocol named, asyncio switches off the wait for fuller packets, which would cost 40 ms an answer.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(64)
    except OSError:
        listening.close()
        raise
    return listening


def _serve(listening: socket.socket, *, browser: bool) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    from lastlayer.learn.server import application

    port = listening.getsockname()[1]
    address = f"http://{HOST}:{port}/"
    config = uvicorn.Config(
        application(port),
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
        ws="none",
        lifespan="off",
    )

    async def run() -> None:  # the address is told when Ctrl-C has somebody who hears it
        print(f"lastlayer learn: {address}   (Ctrl-C stops)", flush=True)
        if browser:
            _open(address)
        await uvicorn.Server(config).serve(sockets=[listening])

    asyncio.run(run())


def _open(address: str) -> None:
    """Open the browser without waiting for it; without one, the printed address has to do."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
