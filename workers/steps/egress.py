"""The one place where the calls of steps get their addresses: resolved, checked, and then connected to.

Whoever connects takes the addresses from here and resolves nothing again, so what was checked is what is
connected to, whatever a name server says the next time; each redirect that leads elsewhere comes by here too.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

from orchestrator.egress import Egress
from orchestrator.errors import StepFailed


def addresses(egress: Egress, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[str]:
    """The addresses of `host` that may be connected to, in the system's order.

    Raises OSError when there is no such host, and StepFailed of the kind `egress` when none of them may.
    """
    # In brackets, as a URL has it, an IPv6 address has no other meaning.
    return permitted(egress, host, socket.getaddrinfo(host.strip("[]"), port, family, socket.SOCK_STREAM))


def permitted(egress: Egress, host: str, found: Iterable[tuple[Any, ...]]) -> list[str]:
    """The same of what getaddrinfo has `found` for `host`."""
    denials: dict[str, str | None] = {}
    for *_, where in found:
        denials[where[0]] = egress.denial(host.strip("[]"), where[0])
    open_ones = [address for address, rule in denials.items() if rule is None]
    if open_ones:
        return open_ones
    said = ", ".join(f"{address} by the rule {rule}" for address, rule in denials.items())
    raise StepFailed(
        f"connecting to {host} is denied: {said}; the operator can open it with egress.allow",
        kind="egress",
        retryable=False,
    )
