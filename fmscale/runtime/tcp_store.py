"""A key-value store over TCP that listens at one address of this node.

TCPStore by itself listens on all interfaces, whatever host it is given, and trusts every peer.
"""

import ipaddress
import logging
import os
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from fmscale.errors import ConfigError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
NAME_SECONDS = 60.0
BACKLOG = 4096
"""Connections that may wait to be accepted: all ranks dial at once."""


def serve_store(
    host: str, port: int, deadline: float, *, clients: int | None = None, meeting: int | None = None
) -> "TCPStore":
    """A store that listens only at the address of `host` on this node; port 0 takes a free port.

    `deadline`: seconds that a request waits. With `clients` the call waits for that many processes, its own included.
    `meeting` is a socket that is bound to the port already; a later call may take it again.
    Raises ConfigError if the address is not of this node, or the port is taken.
    """
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    if meeting is None:
        listener = _listen(host, port)
    else:
        listener = socket.socket(fileno=os.dup(meeting))
        listener.listen(BACKLOG)
    try:
        return TCPStore(
            host,
            listener.getsockname()[1],
            clients,
            is_master=True,
            timeout=timedelta(seconds=deadline),
            wait_for_workers=clients is not None,
            master_listen_fd=listener.detach(),
        )
    except DistError as error:
        found, remedy = str(error).splitlines()[0], "Check that all nodes were started, and that they reach this one."
        raise ConfigError("The store where the ranks meet does not start", found=found, remedy=remedy) from error


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the first address of `host` on this node."""
    failure: OSError | None = None
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        addresses, failure = [], error
    for family, kind, protocol, _, address in addresses:
        listener = socket.socket(family, kind, protocol)
        try:
            # a port that an earlier run left in TIME_WAIT is free
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
            return listener
        except OSError as error:
            listener.close()
            failure = error
    reason = f": {failure.strerror}" if failure else ""
    raise ConfigError(
        f"Rank 0 cannot open the port where the ranks meet{reason}",
        found=f"{host}:{port}",
        remedy="Set MASTER_PORT to a free one, as another run may be using this; MASTER_ADDR must be a name or an "
        "address of rank 0's node.",
    ) from failure


def await_name(host: str) -> None:
    """Wait until the name of the node where all meet resolves here: that of a pod does only once it runs. Raises
    ConfigError after NAME_SECONDS.
    """
    begin = time.monotonic()
    while True:
        try:
            socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            return
        except OSError as error:
            refuse_name(host, error, time.monotonic() - begin)
        time.sleep(1.0)


def refuse_name(host: str, error: OSError, waited: float) -> None:
    """Raise ConfigError for the name of the node where all meet after NAME_SECONDS without an address."""
    if waited > NAME_SECONDS:
        raise ConfigError(
            f"{host}, the node where all meet, does not resolve on {socket.gethostname()}",
            found=f"{error.strerror} for {NAME_SECONDS:.0f} s",
            remedy="Add it to the name service or to /etc/hosts of this node, or give its address.",
        ) from error


def warn_of_loopback(host: str) -> None:
    """Warn if `host` is a loopback address, out of other nodes' reach: /etc/hosts may have the node as 127.0.1.1."""
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return
    addresses = {str(address[0]).partition("%")[0] for *_, address in entries}
    if host != "localhost" and all(ipaddress.ip_address(address).is_loopback for address in addresses):
        logger.warning(
            "%s is %s on rank 0's node, which no other node reaches: set MASTER_ADDR to an address of the network, or "
            "correct its /etc/hosts",
            host,
            ", ".join(sorted(addresses)),
        )
