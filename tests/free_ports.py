"""Ports for the servers that tests start."""

import itertools
import os
import socket

_numbers = itertools.count(64 * os.getpid())


def free_port() -> int:
    """A port of 127.0.0.1 that another worker of pytest-xdist is not given meanwhile, and that lies
    below those from which Linux makes connections."""
    while True:
        port = 20_000 + next(_numbers) % 12_000
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
