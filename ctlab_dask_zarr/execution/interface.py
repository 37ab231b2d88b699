"""Which network interface the scheduler and its workers talk on."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence

__all__ = ["choose_interface", "slurm_is_this_host"]

#: The usual name of the first InfiniBand interface.
_INFINIBAND = "ib0"
#: Linux's routing table.
_ROUTES = "/proc/net/route"


def choose_interface(only_this_host: bool) -> str | None:
    """Return the interface to use where the configuration names none.

    The rule: loopback where the whole cluster is this host; else ``ib0`` where it is up; else the
    interface of the default route. None where none of them is there: dask then decides.
    """
    addresses = _ipv4_addresses()
    if only_this_host:
        return next((name for name, ip in addresses.items() if ip.startswith("127.")), None)
    if _INFINIBAND in addresses:
        return _INFINIBAND
    route = _default_route()
    return route if route in addresses else None


def _ipv4_addresses() -> Mapping[str, str]:
    """Return the IPv4 address of each interface that is up and has one."""
    import psutil

    states = psutil.net_if_stats()
    return {
        name: info.address
        for name, infos in psutil.net_if_addrs().items()
        if name in states and states[name].isup
        for info in infos
        if info.family == socket.AF_INET
    }


def _default_route() -> str | None:
    if not os.path.exists(_ROUTES):
        return None
    with open(_ROUTES) as file:
        rows = [line.split() for line in file][1:]
    return next((row[0] for row in rows if row[1] == "00000000"), None)


def slurm_is_this_host() -> bool:
    """Return whether every node of this SLURM has a loopback address: a test cluster."""
    command = ["sinfo", "--noheader", "--Node", "--format=%o"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return _all_loopback(listed.stdout.split())


def _all_loopback(addresses: Sequence[str]) -> bool:
    """Return whether all of them are; names count as elsewhere.

    Examples
    --------
    >>> _all_loopback(["127.0.0.1", "127.0.0.1"]), _all_loopback(["127.0.0.1", "node2"])
    (True, False)
    """

    def is_loopback(address: str) -> bool:
        try:
            return ipaddress.ip_address(address).is_loopback
        except ValueError:
            return address == "localhost"

    return bool(addresses) and all(map(is_loopback, addresses))
