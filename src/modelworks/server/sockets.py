"""The addresses to listen on: taken before anything else, and explained when they cannot be had."""

from __future__ import annotations

import errno
import ipaddress
import socket

import psutil

from modelworks.core.config import Settings
from modelworks.core.errors import Invalid, Unavailable

BACKLOG = 2048
WHY = {
    errno.EACCES: "ports below 1024 belong to the administrator; choose one with --port",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose one with --host",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(settings: Settings) -> None:
    """Raises Invalid when others could reach the server and it would ask nobody for a key."""
    if not is_loopback(settings.host) and not settings.keys and not settings.insecure_no_auth:
        raise Invalid(
            f"--host {settings.host} lets other machines in, so an API key is needed: set MODELWORKS_API_KEY, "
            "or say --insecure-no-auth if everybody who can reach it may do everything"
        )


def listen(host: str, port: int) -> list[socket.socket]:
    """Take `port` (0: a free one) on `host`; on loopback for IPv6 too, where the machine has it.

    Raises:
        Unavailable: it cannot be had, with who has it.
    """
    first = _bind("127.0.0.1" if host == "localhost" else host, port)
    sockets = [first]
    if host in {"127.0.0.1", "localhost"}:
        try:
            sockets.append(_bind("::1", first.getsockname()[1]))
        except Unavailable:
            # Without it, clients that try ::1 first come back to 127.0.0.1.
            return sockets
    return sockets


def url_of(host: str, port: int) -> str:
    """Where a client on this machine finds a server that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}: {error}; choose another with --host") from None
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        taken.bind(address)
        # Only now is the port ours: another that is bound but not yet listening would share it.
        taken.listen(BACKLOG)
    except OSError as error:
        taken.close()
        why = WHY.get(error.errno or 0, str(error))
        if error.errno == errno.EADDRINUSE:
            why = f"{_holder(port)} has it; choose another with --port, or --port 0 for a free one"
        raise Unavailable(f"cannot listen on {host} port {port}: {why}") from None
    return taken


def _holder(port: int) -> str:
    """Who listens on a port, as far as we may know."""
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN
            if listens and getattr(connection.laddr, "port", None) == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        return "another process"
    return "another process"
