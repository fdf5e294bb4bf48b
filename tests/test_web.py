"""Documents of hostile servers, on loopback sockets: what they send is refused, in time."""

import socket
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from catalog.ranges import connect
from catalog.schema import InputError
from catalog.web import Unanswered, check_url, fetch, parse_json, parse_xml

OK = b"HTTP/1.0 200 OK\r\n"


@contextmanager
def _server(talk):
    """`host:port` where `talk(connection, request)` answers each connection; and how often it was asked."""
    asked, ended = [], threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)

        def serve():
            while not ended.is_set():
                try:
                    connection, _ = listening.accept()
                except TimeoutError:
                    continue
                connection.settimeout(5)
                asked.append(connection.recv(65536))
                try:
                    talk(connection, asked[-1])
                except OSError:
                    pass  # the client left, as it should
                finally:
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}", asked
        finally:
            ended.set()
            thread.join()


def _saying(text):
    return _server(lambda connection, _: connection.sendall(text))


def _trickling(head, piece):
    def talk(connection, _):
        connection.sendall(head)
        for _ in range(200):
            connection.sendall(piece)
            time.sleep(0.02)

    return _server(talk)


def _fetch(host, **limits):
    return fetch(f"http://{host}/x", hosts=[host], **{"tries": 1, "timeout_s": 5.0, **limits})


def test_fetch_reads_what_is_there():
    with _saying(OK + b"Content-Length: 2\r\n\r\nhi") as (host, asked):
        assert _fetch(host) == b"hi"
    assert b"User-Agent: landslidenet" in asked[0]


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
def test_fetch_asks_this_machine_without_a_proxy(name, monkeypatch):
    for other in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with _saying(OK + b"Content-Length: 2\r\n\r\nhi") as (host, _):
            assert _fetch(host) == b"hi"
            parts = urlsplit(f"http://{host}/x")
            connection = connect(parts, hosts=[host])
            assert (connection.host, connection.port) == (parts.hostname, parts.port)
            connection.close()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://a.org/x", "gopher://a.org", "//a.org/x", "a.org", "", "http://", "https:///x",
        "http://user@a.org/", "http://user:pw@a.org/", "http://@a.org/", "http://a.org:x/", "http://a.org:99999/",
        "http://[::1", "http://b.org/", "http://a.org.b.org/", "http://xa.org/", "http://b.org#a.org", "http://a.org./",
        "http://a.org\\@b.org/", "http://a.org\n.b.org/", "http://a.org\t/", "http://a.org/ x", "http://ａ.org/",
        "http://127.0.0.1/", "http://2130706433/", "http://0x7f.1/", "http://[::ffff:127.0.0.1]/", "http://localhost/",
        "http://169.254.169.254/latest/meta-data/",
    ],
)  # fmt: skip
def test_check_url_refuses(url):
    with pytest.raises(InputError):
        check_url(url, hosts=["a.org"])


@pytest.mark.parametrize(
    ("url", "entry"),
    [("https://A.org/x?y=1", "a.org"), ("http://a.org:8080/", "a.org:8080"), ("https://a.org/", "a.org:443")],
)
def test_check_url_takes_what_is_named(url, entry):
    assert check_url(url, hosts=[entry]).hostname == "a.org"


def test_check_url_keeps_to_a_named_port():
    with pytest.raises(InputError, match="is not allowed"):
        check_url("http://a.org:22/", hosts=["a.org:80"])


def test_check_url_refuses_a_subdomain_that_leads_inward():
    with pytest.raises(InputError, match="leads to 127.0.0.1, which is not public"):
        check_url("http://127.0.0.1/", hosts=["*.0.0.1"])


def test_fetch_refuses_a_name_that_leads_inward_only_when_it_connects(monkeypatch):
    asked, resolve = [], socket.getaddrinfo

    def rebinding(host, *arguments, **options):
        asked.append(host)
        return resolve("8.8.8.8" if len(asked) == 1 else "127.0.0.1", *arguments, **options)

    with _saying(OK + b"\r\nsecret") as (host, _):
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        with pytest.raises(InputError, match="led to 127.0.0.1, which is not public"):
            fetch(f"http://x.example.org:{host.partition(':')[2]}/", hosts=["*.example.org"], tries=1)
    assert asked == ["x.example.org"] * 2


def test_check_url_does_not_take_the_bare_domain_for_a_subdomain():
    with pytest.raises(InputError, match="is not allowed"):
        check_url("http://localhost/", hosts=["*.localhost"])


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:1/secret", "file:///etc/passwd", "http://169.254.169.254/", "//x/"]
)
def test_fetch_refuses_a_redirect_to_another_host(target):
    with _saying(b"HTTP/1.0 302 Found\r\nLocation: " + target.encode() + b"\r\n\r\n") as (host, asked):
        with pytest.raises((InputError, Unanswered), match="not allowed|expected http"):
            _fetch(host)
        assert len(asked) == 1


def test_fetch_follows_a_redirect_to_an_allowed_host():
    with _saying(OK + b"\r\nthere") as (there, _):
        with _saying(b"HTTP/1.0 302 Found\r\nLocation: http://" + there.encode() + b"/\r\n\r\n") as (host, _):
            assert fetch(f"http://{host}/", hosts=[host, there], tries=1) == b"there"


def test_fetch_ends_a_circle_of_redirects():
    with _saying(b"HTTP/1.0 302 Found\r\nLocation: /x\r\n\r\n") as (host, asked):
        with pytest.raises(Unanswered):
            _fetch(host)
        assert len(asked) < 20


def test_fetch_refuses_what_says_that_it_is_too_large():
    with _saying(OK + b"Content-Length: 99999999999\r\n\r\n") as (host, _):
        with pytest.raises(InputError, match="has 99999999999 bytes; expected 1000 at most"):
            _fetch(host, max_bytes=1000)


def test_fetch_refuses_what_is_too_large_and_does_not_say_so():
    with _trickling(OK + b"\r\n", b"x" * 1000) as (host, _):
        with pytest.raises(InputError, match="more than 5000 bytes"):
            _fetch(host, max_bytes=5000)


def test_fetch_stops_at_the_stated_length():
    with _saying(OK + b"Content-Length: 2\r\n\r\nhello") as (host, _):
        assert _fetch(host) == b"he"


def test_fetch_does_not_take_a_part_for_the_whole():
    with _saying(OK + b"Content-Length: 100\r\n\r\nhi") as (host, _):
        with pytest.raises(Unanswered, match="cut off after 2 of 100 bytes"):
            _fetch(host)


@pytest.mark.parametrize("length", [b"-1", b"abc", b"1e3", b"9" * 5000])
def test_fetch_survives_a_senseless_length(length):
    with _saying(OK + b"Content-Length: " + length + b"\r\n\r\nhi") as (host, _):
        try:
            assert _fetch(host) == b"hi"
        except (Unanswered, InputError):
            assert length.startswith(b"9")


@pytest.mark.parametrize("piece", [b"x", b""])
def test_fetch_ends_a_trickle_in_time(piece):
    with _trickling(OK + b"\r\n", piece) as (host, _):
        start = time.monotonic()
        with pytest.raises(Unanswered, match="not whole after 0.3 s|timed out"):
            _fetch(host, timeout_s=0.3)
        assert time.monotonic() - start < 2


def test_fetch_ends_trickling_headers_in_time():
    with _trickling(OK + b"X: ", b"x") as (host, _):
        start = time.monotonic()
        with pytest.raises(Unanswered, match="not whole after 0.3 s"):
            _fetch(host, timeout_s=0.3)
        assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "answer",
    [b"", b"garbage\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
     OK + b"X" * 70_000 + b"\r\n\r\n", OK + b"X: y\r\n" * 200 + b"\r\n"],
)  # fmt: skip
def test_fetch_calls_what_is_no_http_unanswered(answer):
    with _saying(answer) as (host, _):
        with pytest.raises(Unanswered, match="no answer in 1 tries"):
            _fetch(host)


def test_fetch_tries_again_after_a_servers_error_only():
    with _saying(b"HTTP/1.0 404 Not Found\r\n\r\n") as (host, asked):
        with pytest.raises(Unanswered, match="answered 404"):
            _fetch(host, tries=3)
        assert len(asked) == 1
    with _saying(b"HTTP/1.0 503 Busy\r\n\r\n") as (host, asked):
        with pytest.raises(Unanswered, match="no answer in 2 tries, last: 503"):
            _fetch(host, tries=2)
        assert len(asked) == 2


def test_fetch_says_when_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(Unanswered, match="no answer in 1 tries"):
        _fetch(f"127.0.0.1:{port}")


def test_fetch_does_not_unpack():
    with _saying(OK + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b") as (host, _):
        assert _fetch(host) == b"\x1f\x8b"


def test_fetch_leaves_no_thread_behind():
    with _saying(OK + b"\r\nhi") as (host, _):
        before = threading.active_count()
        _fetch(host, timeout_s=100.0)
        time.sleep(0.05)
        assert threading.active_count() == before


BOMB = b'<!DOCTYPE b [<!ENTITY a "x"><!ENTITY b "&a;&a;&a;&a;">]><b>&b;</b>'


@pytest.mark.parametrize(
    "data",
    [
        BOMB,
        b'<!DOCTYPE b [<!ENTITY x SYSTEM "file:///etc/passwd">]><b>&x;</b>',
        b'<!DOCTYPE b SYSTEM "http://127.0.0.1/x.dtd"><b/>',
        b'<!DOCTYPE b [<!ENTITY % x SYSTEM "http://127.0.0.1/x">%x;]><b/>',
        b"<!DOCTYPE b><b/>",
        b"<b>&undefined;</b>", b"<b>", b"", b"\x00", b"{}", b'<?xml version="1.0" encoding="none-such"?><b/>',
    ],
)  # fmt: skip
def test_parse_xml_refuses(data):
    with pytest.raises(InputError, match="grid: not XML that is read here"):
        parse_xml(data, where="grid")


def test_parse_xml_reads_a_document():
    assert parse_xml(b"<a><b c='1'/></a>", where="grid")[0].attrib == {"c": "1"}


@pytest.mark.parametrize("data", [b'{"a": Infinity}', b"[-Infinity]", b"NaN", b"{", b"\xff", b"[" * 200 + b"]" * 200])
def test_parse_json_refuses(data):
    with pytest.raises(InputError, match="^feed: "):
        parse_json(data, where="feed")


def test_parse_json_reads_what_is_nested_as_deep_as_allowed():
    assert parse_json(b"[" * 64 + b"]" * 64, where="feed")
