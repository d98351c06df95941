"""Whether the service may listen where it is told to, and how that is written."""

from __future__ import annotations

from ipaddress import ip_address

from orchestrator.config import Settings
from orchestrator.errors import ConfigurationError


def is_loopback(host: str) -> bool:
    """Of an address, in brackets or not; names other than localhost may lead anywhere."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def netloc(host: str, port: int) -> str:
    """Both as a URL has them."""
    return f"[{host.strip('[]')}]:{port}" if ":" in host else f"{host}:{port}"


def check_exposure(settings: Settings) -> None:
    """Raises ConfigurationError if keys would travel over a network as plain text, and nobody has said so be it."""
    if is_loopback(settings.host) or settings.api.behind_tls or settings.api.insecure:
        return
    raise ConfigurationError(
        f"refusing to listen on {settings.host}: without TLS, whoever can read the traffic can read the keys in it.\n"
        "  - Behind a reverse proxy that speaks TLS: --behind-tls (ORCHESTRATOR_API_BEHIND_TLS=true)\n"
        "  - In a network that you trust with the keys: --insecure (ORCHESTRATOR_API_INSECURE=true)\n"
        "  - For this machine alone: leave --host (ORCHESTRATOR_HOST) away"
    )
