"""The port where the ranks meet: checked before anything starts, if it is on this host."""

import errno
import socket

from fmscale.errors import ConfigError

DEFAULT_PORT = 29_500
"""What torchrun and deepspeed take when nobody says otherwise."""


def check_port(host: str, port: int) -> None:
    """Raise ConfigError if `port` is in use and `host` is this one; another host's is checked by rank 0 there."""
    if _is_free(host, port):
        return
    raise ConfigError(
        "The port where the ranks meet is in use",
        found=f"{host}:{port}",
        remedy=f"Another run may have it. Give a free one: --master-port {_free_port(host, port)}.",
    )


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as one:
        # as the ranks' store does: what a run left in TIME_WAIT is free
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def _free_port(host: str, taken: int) -> int:
    """The next free port; the kernel's choice would be one that it also gives to clients."""
    candidates = (*range(taken + 1, 65_536), *range(1_024, taken))
    return next((port for port in candidates if _is_free(host, port)), taken)
