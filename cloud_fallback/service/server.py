"""Runs the service in the foreground."""

import logging
import socket
from contextlib import suppress
from typing import Final

import uvicorn
from fastapi import FastAPI

from pocketlens.core.errors import CloudError

__all__ = ["DEFAULT_PORT", "serve"]

DEFAULT_PORT: Final = 8017
"""The port that `pocketlens serve` listens on unless told otherwise."""

# Beyond the app's own queue, which answers with a typed error, this bounds mere connections.
_MAX_CONNECTIONS: Final = 256

_LOG: Final = logging.getLogger("uvicorn.error")


def serve(app: FastAPI, *, host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> None:
    """Serve `app` until SIGINT or SIGTERM; requests that have begun are answered first.

    The default host is reachable from this machine alone; there is no authentication.

    Args:
        app: from `create_app`.
        host: address to listen on.
        port: TCP port to listen on; 0 takes a free one, which the log on stderr names.

    Raises:
        CloudError: the address cannot be listened on.
    """
    config = uvicorn.Config(
        app,
        log_level="info",
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=30,
    )
    # uvicorn raises the signal again once everything is answered.
    with _listener(host, port) as listener, suppress(KeyboardInterrupt):
        # uvicorn is silent about sockets that it did not open, and its logger is set up by now.
        _LOG.info("Listening on http://%s (Ctrl+C ends)", _address(listener))
        uvicorn.Server(config).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    # Opened here, because uvicorn ends the process where an address cannot be had.
    try:
        if port not in range(2**16):
            raise OSError("a port outside 0..65535")
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise CloudError(
            f"listening on {host} port {port}",
            expected="an address of this machine and a free port",
            found=str(error),
            remedy="Choose another port, or stop the program that uses this one.",
        ) from error


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
