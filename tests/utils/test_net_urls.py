"""Which URLs and addresses may be fetched; no sockets here."""

from __future__ import annotations

import ipaddress
import re

import pytest

from utils.net import FetchError, FetchPolicy, check_url, is_public
from utils.urls import parse_url

PUBLIC_ONLY = FetchPolicy(max_bytes=1000)
LOOPBACK = FetchPolicy(max_bytes=1000, allowed_networks=(ipaddress.ip_network("127.0.0.0/8"),))

CLOSED = re.findall(
    r"\S+",
    """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.255
168.63.129.16 169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1
192.88.99.1 192.168.0.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1
255.255.255.255
:: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::808:808
64:ff9b:1::a00:1 100::1 2001::1 2001:0:7f00:1:: 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1:: 2002:808:808::
3ffe::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fdff::1 fe80::1 fe80::1%1 fec0::1 ff02::1 ff0e::1 4000::1
2a00:1450:4001:80b:0:5efe:7f00:1 2a00:1450:4001:80b:200:5efe:a00:1
""",
)
OPEN = re.findall(
    r"\S+",
    """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255
172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255
2606:4700:4700::1111 2001:4860:4860::8888 2a00:1450:4001:80b::200e 2003::1
""",
)


@pytest.mark.parametrize("text", CLOSED)
def test_no_special_address_is_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", OPEN)
def test_ordinary_addresses_next_to_special_ones_are_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "host",
    [text for text in CLOSED if ":" not in text]
    + [f"[{text}]" for text in CLOSED if ":" in text]
    + re.findall(
        r"\S+",
        """127.1 127.0.1 0x7f000001 0x7f.1 0X7F.0.0.1 2130706433 017700000001 0177.0.0.1 127.0.0.01 0 1 4294967295 00
    127.0.0.1. 1.2.3 256.1.1.1 1.1.1.1.1 a.1 example.0x7f 169.254.43518 [::127.1] [::1%25eth0] [1.2.3.4] [v1.a] []
    %31%32%37.0.0.1 ①②⑦.⓪.⓪.① 127。0。0。1 exämple.com -a.com a..com .com a_$.com * """,
    ),
)
def test_no_notation_of_a_closed_address_passes_as_a_host(host: str) -> None:
    with pytest.raises(FetchError):
        check_url(f"http://{host}/a.wav", PUBLIC_ONLY)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.wav",
        "//example.com/a.wav",
        "http:",
        "http:///a.wav",
        "http://:80/",
        "file:///etc/passwd",
        "ftp://example.com/a",
        "gopher://example.com/",
        "data:audio/wav;base64,AAAA",
        "javascript:alert(1)",
        "http://user@example.com/",
        "http://user:secret@example.com/",
        "http://example.com@127.0.0.1/",
        "http://@example.com/",
        "http://example.com:22/",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:x/",
        "http://example.com:-1/",
        "http://exam ple.com/",
        "http://example.com/a\r\nHost: evil",
        "http://example.com/\x00",
        "http://example.com/\x7f",
        "http://example.com/\x85",
        "http://example.com/\ud800",
        "http://example.com\\@127.0.0.1/",
        "http://[::1/",
        "http://::1/",
        "\thttp://example.com/",
        "http://example.com/\n",
        "http://" + "a" * 64 + ".com/",
        "http://" + "a." * 130 + "com/",
        "http://example.com/" + "x" * 2100,
    ],
)
def test_a_url_of_an_odd_shape_is_refused(url: str) -> None:
    with pytest.raises(FetchError) as refused:
        check_url(url, PUBLIC_ONLY)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["http://example.com", "HTTPS://Example.COM./a?b#c", "https://example.com:443/", "http://1.1.1.1/ä+b",
     "http://[2606:4700:4700::1111]:80/", "http://a_b.example-c.com/", "http://xn--exmple-cua.com/", "http://3com.com/"],
)  # fmt: skip
def test_an_ordinary_url_passes(url: str) -> None:
    check_url(url, PUBLIC_ONLY)


def test_an_opened_network_opens_its_addresses_and_their_ports_only() -> None:
    check_url("http://127.0.0.1:8080/", LOOPBACK)
    for url in ("http://10.0.0.1/", "http://[::ffff:127.0.0.1]/", "http://1.1.1.1:8080/", "http://127.1/"):
        with pytest.raises(FetchError):
            check_url(url, LOOPBACK)


def test_the_host_header_and_the_request_line_hold_plain_ascii_without_the_default_port() -> None:
    assert parse_url("http://[2606:4700:4700::1111]:80/").host_header == "[2606:4700:4700::1111]"
    assert parse_url("https://example.com:80/").host_header == "example.com:80"
    assert parse_url("http://example.com?q=ä").path == "/?q=%C3%A4"
    assert parse_url("http://example.com/ä%20+b").path == "/%C3%A4%20+b"
