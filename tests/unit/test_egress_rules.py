"""What the egress rules say of a connection, by its name and its address."""

from __future__ import annotations

import pytest

from orchestrator.config import EgressSettings, environment_of, load_settings
from orchestrator.egress import Egress
from orchestrator.errors import ConfigurationError

NOTHING = Egress.of((), ())


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fd20:ce::254",
        "100.100.100.200",
        "168.63.129.16",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
    ],
)
def test_the_addresses_of_cloud_metadata_are_denied_without_any_setting(address: str) -> None:
    assert NOTHING.denial("anything.example", address) is not None


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.1.2.3", "192.168.0.1", "fd00::1", "93.184.216.34"])
def test_loopback_private_and_public_addresses_are_open_without_any_setting(address: str) -> None:
    assert NOTHING.denial("anything.example", address) is None


@pytest.mark.parametrize("wide", ["169.254.0.0/15", "0.0.0.0/0", "fe80::/9"])
def test_a_wide_allowance_does_not_open_cloud_metadata(wide: str) -> None:
    egress = Egress.of((wide,), ())
    assert egress.denial("169.254.169.254", "169.254.169.254") == "169.254.0.0/16"
    assert egress.denial("fe80::1", "fe80::1") == "fe80::/10"


def test_an_allowance_as_narrow_opens_cloud_metadata_where_it_is_meant() -> None:
    egress = Egress.of(("169.254.170.2", "100.100.100.200/32"), ())
    assert egress.denial("169.254.170.2", "169.254.170.2") is None
    assert egress.denial("100.100.100.200", "100.100.100.200") is None
    assert egress.denial("169.254.169.254", "169.254.169.254") == "169.254.0.0/16"


def test_the_narrowest_network_decides() -> None:
    egress = Egress.of(("10.1.0.0/16",), ("10.0.0.0/8", "10.1.2.0/24"))
    assert egress.denial("a", "10.9.9.9") == "10.0.0.0/8"
    assert egress.denial("a", "10.1.9.9") is None
    assert egress.denial("a", "10.1.2.9") == "10.1.2.0/24"


def test_the_narrowest_name_decides() -> None:
    egress = Egress.of(("*.b.example", "a.example"), ("*.example", "c.b.example"))
    assert egress.denial("z.example", "1.2.3.4") == "*.example"
    assert egress.denial("a.example", "1.2.3.4") is None
    assert egress.denial("deep.z.b.example", "1.2.3.4") is None
    assert egress.denial("c.b.example", "1.2.3.4") == "c.b.example"


def test_a_rule_for_all_below_a_name_is_not_for_the_name_nor_for_one_that_ends_like_it() -> None:
    egress = Egress.of((), ("*.b.example",))
    assert egress.denial("b.example", "1.2.3.4") is None
    assert egress.denial("ab.example", "1.2.3.4") is None


@pytest.mark.parametrize("host", ["B.Example", "b.example.", "B.EXAMPLE."])
def test_a_name_is_the_same_in_capitals_and_with_the_final_dot(host: str) -> None:
    assert Egress.of((), ("b.example",)).denial(host, "1.2.3.4") == "b.example"


def test_of_two_equal_rules_the_denial_decides() -> None:
    egress = Egress.of(("10.0.0.0/8", "b.example"), ("10.0.0.0/8", "b.example"))
    assert egress.denial("a", "10.0.0.1") == "10.0.0.0/8"
    assert egress.denial("b.example", "1.2.3.4") == "b.example"


def test_an_allowed_name_opens_no_denied_address() -> None:
    egress = Egress.of(("partner.example",), ("10.0.0.0/8",))
    assert egress.denial("partner.example", "10.0.0.5") == "10.0.0.0/8"
    assert egress.denial("partner.example", "169.254.169.254") == "169.254.0.0/16"


def test_the_star_denies_what_no_other_rule_speaks_of() -> None:
    egress = Egress.of(("api.example", "10.1.2.0/24"), ("*",))
    assert egress.denial("api.example", "1.2.3.4") is None
    assert egress.denial("inside.example", "10.1.2.3") is None
    assert egress.denial("10.1.2.3", "10.1.2.3") is None
    assert egress.denial("other.example", "1.2.3.4") == "*"
    assert egress.denial("1.2.3.4", "1.2.3.4") == "*"


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0", "::ffff:0.0.0.0"])
def test_an_address_is_denied_in_all_its_writings(address: str) -> None:
    assert Egress.of((), ("127.0.0.0/8",)).denial("a", address) == "127.0.0.0/8"


def test_the_unspecified_address_of_ipv6_is_this_machine() -> None:
    assert Egress.of((), ("::1",)).denial("a", "::") == "::1/128"


def test_the_rules_are_read_from_the_environment_and_handed_on_to_child_processes() -> None:
    environ = {
        "ORCHESTRATOR_EGRESS_DENY": '["10.0.0.0/8", "*.Bücher.example", "127.0.0.1"]',
        "ORCHESTRATOR_EGRESS_ALLOW": "10.1.2.3",
    }
    settings = load_settings(environ)
    assert settings.egress.deny == ("10.0.0.0/8", "*.xn--bcher-kva.example", "127.0.0.1/32")
    assert settings.egress.allow == ("10.1.2.3/32",)
    assert load_settings(environment_of(settings)) == settings
    assert EgressSettings().rules == NOTHING


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "10.0.0", "http://a.example", "a..b", "*.*", "a b", ""])
def test_what_is_no_rule_keeps_the_service_from_starting(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"ORCHESTRATOR_EGRESS_DENY: .* is not a rule; write a network"):
        load_settings({"ORCHESTRATOR_EGRESS_DENY": f'["{text}"]'})
