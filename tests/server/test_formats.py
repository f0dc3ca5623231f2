"""What each format of the configuration takes and refuses."""

import pytest

from homeport.server.formats import FORMATS, Address, format_address, is_loopback_host, parse_address

VALID = {
    "base-path": ["/", "/homeport", "/a/b/", "/v1.0/~x_-"],
    "bind-host": ["127.0.0.1", "0.0.0.0", "::", "::1", "fe80::1%eth0", "localhost", "my_host", "a.b.example."],
    "host-name": ["sync.example.com", "SYNC.Example.COM", "xn--bcher-kva.example", "10.0.0.7", "2001:db8::7", "a"],
    "ip-network": ["10.0.0.0/8", "192.168.1.7", "::1", "2001:db8::/32", "0.0.0.0/0", "10.0.0.0/255.0.0.0"],
    "listen-address": ["127.0.0.1:8000", "localhost:0", "[::1]:65535", "unix:/run/homeport.sock", "unix:x y.sock"],
    "origin": ["https://app.example.com", "http://localhost:3000", "tauri://localhost", "http://[::1]:80"],
    "path": ["", "data/homeport.db", "/a b/ü.db", "~/x"],
    "public-url": ["", "https://sync.example.com", "http://localhost:8000", "https://a.example/base/", "https://[::1]"],
    "rate-limit": ["600/hour", "20 per 10 seconds", "1/second", "5 / 2 minutes", "10000000/day"],
    "storage-url": [
        *["", "memory:", "file:data", "file:/var/lib/homeport", "sqlite:homeport.db", "sqlite:/a b.db", "sqlite:~/x"],
        *["package.module:factory", "module:Factory"],
    ],
    "client-id": ["desktop", "com.example.app", "A-1_2", "n" * 100],
    "command": ["claude", "claude --model opus", "'/opt/my tools/run' -x", "a 'b c'"],
    "cron": ["0 0 1 * *", "*/5 * * * *", "0 3 * * 1-5"],
    "redirect-uri": [
        *["https://a.example", "https://a.example/cb?x=1", "http://127.0.0.1/cb", "http://[::1]:8080/cb"],
        *["http://localhost:3000/", "com.example.app:/oauth"],
    ],
    "collection-name": ["n", "notes", "my-notes_2", "n" * 50],
    "field-name": ["title", "Title", "a b", "größe", "_id", "a__gte"],
}
INVALID = {
    "client-id": ["", "a b", "a/b", "ä", "n" * 101, "a\n"],
    "command": ["", " ", "claude 'x", "a\nb"],
    "cron": ["", "monthly", "0 0 1 *", "61 * * * *", "0 0 31 2 * *"],
    "redirect-uri": [
        *["", "a.example", "/cb", "http://a.example/cb", "https://a.example/#x", "javascript:alert(1)", "app:/cb"],
        *["https://", "https://a b", "http://127.0.0.1.example/cb", "com.example.app:", "https://a.example/cb\n"],
    ],
    "collection-name": ["", "Notes", "1notes", "_notes", "no tes", "no/tes", "notes\n", "n" * 51, "nötes", "a.b"],
    "field-name": ["", "-title", "a\0b", "id", "_meta"],
    "base-path": ["", "homeport", "/a//b", "/a b", "/..", "/a/./b", "/%41", "/a?b", "//", "/a\n"],
    "bind-host": ["", "*", "127.0.0.1:8000", "[::1]", "http://a", "256.0.0.1", "1.2.3", "a..b", "-a", "a b", "a\n"],
    "host-name": ["", "*.example.com", "a:80", "https://a.example", "bücher.example", "a/b", "a" * 64, "127.1", "٣"],
    "ip-network": ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "localhost", "10.0.0.0-10.0.0.9", "10.0.0.0 "],
    "listen-address": [
        *["", "8000", ":8000", "localhost", "localhost:", "a:b", "a:65536", "::1:8000", "[::1]", "[1.2.3.4]:80"],
        *["unix:", "unix:a\0b", "a:٨٠", "a:80\n"],
    ],
    "origin": ["", "*", "null", "https://", "https://a.example/", "https://a.example/x", "//a", "a.example", "1://a"],
    "path": ["a\nb", "a\0b", "\x7f"],
    "public-url": [
        *["sync.example.com", "ftp://a", "https://", "https://u:p@a", "https://a?b", "https://a#b", "https://a b"],
        *["https://a:x", "https://[::1", "https://a\n", "https://ä.example"],
    ],
    "rate-limit": ["", "fast", "600", "600/fortnight", "0/hour", "-1/hour", "1/second;5/minute", "1.5/hour", "600/"],
    "storage-url": [
        *["memory", "memory:x", "file:", "sqlite:", "sqlite::memory:", "sqlite:///x.db", "sqlite:a\nb", "x.db"],
        *["postgresql://localhost/homeport", "redis://localhost", "package.module:", ":factory", "a-b:c", "a..b:c"],
    ],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in VALID.items() for text in texts])
def test_takes(name: str, text: str) -> None:
    assert FORMATS[name].valid(text)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in INVALID.items() for text in texts])
def test_refuses(name: str, text: str) -> None:
    assert not FORMATS[name].valid(text)


def test_every_format_is_tried_and_takes_its_own_example() -> None:
    assert FORMATS.keys() == VALID.keys() == INVALID.keys()
    assert [name for name, form in FORMATS.items() if form.example and not form.valid(form.example)] == []


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:8000", Address("127.0.0.1", 8000), True),
        ("[::1]:0", Address("::1", 0), True),
        ("0.0.0.0:80", Address("0.0.0.0", 80), False),
        ("[::]:80", Address("::", 80), False),
        ("localhost:80", Address("localhost", 80), True),
        ("unix:/run/a.sock", Address("/run/a.sock", None), True),
    ],
)
def test_addresses_are_read_and_written_alike(text: str, address: Address, loopback: bool) -> None:
    assert parse_address(text) == address
    assert format_address(address) == text
    assert address.loopback is loopback


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("app.localhost", True),
        ("127.0.0.1", True),
        ("127.255.0.3", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("notlocalhost", False),
        ("localhost.example.com", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback_hosts(host: str, loopback: bool) -> None:
    assert is_loopback_host(host) is loopback
