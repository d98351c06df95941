"""Where steps may connect to: rules about names and addresses, and what they say of one connection.

A rule is a network (`10.0.0.0/8`), an address, a name, all names below one (`*.example.com`), or `*`. Each
connection has two sides, the name that was asked for and the address it led to, and must pass with both: of the
networks that hold the address, and of the names that match, the narrowest decides, and a denial of either side is
final. So an allowed name opens no denied address, which is what DNS rebinding would use it for. `*` speaks of
connections that no other rule speaks of; without it they are allowed.

Always denied, unless a rule at least as narrow allows them, are the addresses at which clouds hand credentials to
whoever asks from within the machine. Loopback and private networks are open: calling the services of one's own
network is what most workflows are for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

METADATA = (
    "169.254.0.0/16",  # link-local: AWS, Azure, Google, Oracle, DigitalOcean and others; ECS's task credentials
    "fe80::/10",  # link-local
    "fd00:ec2::/32",  # AWS: 254 is the instance's, 23 that of EKS
    "fd20:ce::254/128",  # Google
    "fd00:42::42/128",  # Scaleway
    "100.100.100.200/32",  # Alibaba
    "168.63.129.16/32",  # Azure's WireServer
    "192.0.0.192/32",  # Oracle Cloud Classic
)

_NAME = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NAT64 = IPv6Network("64:ff9b::/96")
"""IPv4 as IPv6-only networks reach it (RFC 6052)."""


@dataclass(frozen=True, slots=True)
class Rule:
    text: str
    allows: bool
    network: Network | None
    """None: it is about names."""
    weight: int
    """Which of two rules, equally narrow, decides: what is written beats what is built in, a denial an allowance."""


@dataclass(frozen=True, slots=True, eq=False)
class Egress:
    """A deployment's rules. `of` makes each set of them once, so it is itself the key by which connections are kept:
    a hash of the rules would cost each call more than the rest of it."""

    rules: tuple[Rule, ...]

    @staticmethod
    @functools.cache
    def of(allow: tuple[str, ...], deny: tuple[str, ...]) -> Egress:
        """The rules of two settings. Raises ValueError."""
        return Egress(
            (
                *(_rule(text, False, 0) for text in METADATA),
                *(_rule(text, True, 1) for text in allow),
                *(_rule(text, False, 2) for text in deny),
            )
        )

    def denial(self, host: str, address: str) -> str | None:
        """The rule that forbids to connect to `address`, found for `host` (a name, or an address); None if it may
        be done."""
        verdicts = [self._of_address(face) for face in _faces(ip_address(address.partition("%")[0]))]
        verdicts.append(self._of_name(host.lower().removesuffix(".")))
        spoken = [rule for rule in verdicts if rule is not None]
        denied = next((rule for rule in spoken if not rule.allows), None)
        if denied is None and not spoken:
            denied = next((rule for rule in self.rules if rule.text == "*" and not rule.allows), None)
        return None if denied is None else denied.text

    def _of_address(self, address: Address) -> Rule | None:
        holding = [
            (rule.network.prefixlen, rule.weight, rule)
            for rule in self.rules
            if rule.network is not None and address in rule.network
        ]
        return max(holding, key=lambda found: found[:2])[2] if holding else None

    def _of_name(self, name: str) -> Rule | None:
        matching = [rule for rule in self.rules if rule.network is None and _matches(rule.text, name)]
        # Of two that match, the longer is the narrower; the name itself is longer than any pattern for it.
        return max(matching, key=lambda rule: (len(rule.text.removeprefix("*")), rule.weight), default=None)


def rule_text(value: str) -> str:
    """`value` as a rule in its one way of writing. Raises ValueError, saying what a rule is."""
    try:
        return str(ip_network(value))
    except ValueError:
        pass
    try:
        # As clients write names on the wire.
        name = value.lower().removesuffix(".").encode("ascii" if value.isascii() else "idna").decode()
    except UnicodeError:
        name = ""
    # What consists of numbers alone is an address that somebody mistyped.
    if name == "*" or (_NAME.fullmatch(name) and not re.fullmatch(r"[\d.]*", name)):
        return name
    raise ValueError(
        f"{value!r} is not a rule; write a network without host bits (10.0.0.0/8), an address, a name, "
        "*.example.com for all names below one, or *"
    )


def _rule(text: str, allows: bool, weight: int) -> Rule:
    text = rule_text(text)
    try:
        return Rule(text, allows, ip_network(text), weight)
    except ValueError:
        return Rule(text, allows, None, weight)


def _matches(pattern: str, name: str) -> bool:
    if pattern == "*":
        return False
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern


def _faces(address: Address) -> Iterator[Address]:
    """`address`, and the one that it reaches in another writing."""
    yield address
    if address.is_unspecified:  # which connects to this machine
        yield IPv4Address("127.0.0.1") if address.version == 4 else IPv6Address("::1")
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            embedded = IPv4Address(int(address) & 0xFFFF_FFFF)
        if embedded is not None:
            yield from _faces(embedded)
