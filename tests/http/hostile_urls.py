"""Thousands of ways to write an address that may not be called from outside."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from itertools import product

INTERNAL = ["127.0.0.1", "127.1.2.3", "10.0.0.5", "172.16.3.4", "192.168.1.1", "169.254.169.254"]
INTERNAL += ["100.64.0.1", "0.0.0.0", "198.18.0.9", "224.0.0.1", "255.255.255.255", "192.0.0.192"]

INTERNAL_V6 = ["::1", "::", "fe80::1", "fe80::1%25eth0", "fc00::1", "fd00:ec2::254", "ff02::1"]
INTERNAL_V6 += ["64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "::127.0.0.1", "::ffff:0:1"]

NAMES = ["localhost", "LOCALHOST.", "a.localhost", "redis", "metadata.google.internal", "db.local"]
NAMES += ["localhost.localdomain", "kubernetes.default.svc", "router.home.arpa", "ip6-localhost"]
NAMES += ["127.0.0.1.nip.io", "169.254.169.254.nip.io", "internal.example.com", "xn--.example"]


def internal_hosts() -> Iterator[str]:
    """Yield every spelling of an internal host that some parser or resolver understands."""
    yield from NAMES
    for address in INTERNAL_V6:
        yield from (f"[{address}]", f"[{address.upper()}]", address)
    for address in INTERNAL:
        yield from _spellings(IPv4Address(address))


def _spellings(address: IPv4Address) -> Iterator[str]:
    number = int(address)
    a, b, c, d = address.packed
    yield from (str(address), f"{address}.", f"{number}", f"0x{number:x}", f"0X{number:08X}")
    yield from (f"0{number:o}", f"{number + 2**32}", f"{a}.{number & 0xFFFFFF}")
    yield from (
        f"{a}.{b}.{c * 256 + d}",
        f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}",
        f"0x{a:x}.{b}.{c}.{d}",
    )
    yield from (f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"{a:04o}.{b:04o}.{c:04o}.{d:04o}")
    yield from (f"{a:03d}.{b:03d}.{c:03d}.{d:03d}", f"{a}.{b}.{c}.0{d:o}", f"{a}.{b}.{c}.0x{d:x}")
    yield from (f"[::ffff:{address}]", f"[::ffff:{a:x}{b:02x}:{c:x}{d:02x}]", f"[::{address}]")
    yield from (f"[64:ff9b::{address}]", f"[2002:{a:02x}{b:02x}:{c:02x}{d:02x}::]", f"[{address}]")
    yield str(address).replace(".", "。")  # the ideographic full stop
    yield "".join(chr(0xFF10 + int(char)) if char.isdigit() else char for char in str(address))
    yield str(address).replace(".", "%2e")
    yield str(address).replace(".", "%E3%80%82")
    yield f"\u200b{address}"


_WRAPPINGS = [
    "https://{}/v1",
    "https://{}",
    "https://{}:443/v1",
    "https://{}:6379/v1",
    "https://{}:443:80/",
    "https://api.openai.com@{}/v1",
    "https://user:pass@{}/v1",
    "https://{}#@api.openai.com/v1",
    "https://{}?@api.openai.com/v1",
    "https://{}\\@api.openai.com/v1",
    "https://api.openai.com\\@{}/v1",
    "https://api.openai.com%00@{}/v1",
    "https://{}%23.example.com/v1",
    "https://api.openai.com\n@{}/v1",
    "https:\t//{}/v1",
    "https:////{}/v1",
    "https:/{}/v1",
    "https:{}/v1",
    "//{}/v1",
    "{}/v1",
    "HTTPS://{}/v1",
    "http://{}/v1",
    "hTtP://{}:80/v1",
    "ftp://{}/v1",
    "file://{}/etc/passwd",
    "gopher://{}:6379/_FLUSHALL",
    "http+unix://{}/v1",
    "unix://{}/run/docker.sock",
    "data:text/plain,{}",
    "https://{}/v1/../../x",
    "https://{}/v1%2f..%2fx",
    " https://{}/v1 ",
    "https://{}/v1\r\nX-Evil: 1",
    "https://[{}]/v1",
    "https://{}/;@api.openai.com",
]


def hostile_urls() -> list[str]:
    """Return every wrapping of every spelling."""
    pairs = product(_WRAPPINGS, internal_hosts())
    return list(dict.fromkeys(wrapping.format(host) for wrapping, host in pairs))


def resolve(host: str, port: int, **options: object) -> list[tuple[object, ...]]:
    """Resolve as a machine with everything against it: any name is internal, any spelling is read."""
    try:
        address = str(ip_address(host))
    except ValueError:
        try:
            address = socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            address = "169.254.169.254" if len(host) % 2 else "127.0.0.1"
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]
