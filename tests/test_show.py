"""``watch --show``: what the server answers to friends and to others, and the page in a real browser."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fer_edge
from fer_edge.classifier import Prediction
from fer_edge.cli import main
from fer_edge.errors import UsageError

pytest.importorskip("cv2")

from chromium import Browser, until

from fer_edge.live import server as room
from fer_edge.live import show as shown
from fer_edge.live.events import Event
from fer_edge.live.faces import Face, FaceFinder
from fer_edge.live.outputs import Setup
from fer_edge.live.pipeline import Step, TrackState
from fer_edge.live.server import CONNECTIONS, SECURITY, address_of
from fer_edge.live.show import LONGEST, PAGE, VIEWERS, Show, open_output
from fer_edge.live.sources import Frame, Gap
from fer_edge.live.watch import watch

SETUP = Setup("front door", True, ("happiness", "sadness"), "two", "default", "ab12", "openvino", "CPU", "int8", "yunet")
COLOURS = re.findall('"(#[0-9a-f]{6})"', PAGE.read_text().partition("const COLOURS")[2].partition(";")[0])


def page(token: str = "", at: str = "0", setup: Setup = SETUP) -> Show:
    return Show(address_of(at, "--show"), setup, token)


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for anybody."""
    monkeypatch.setattr(shown, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(shown, "FAREWELL_SECONDS", 0.0)
    monkeypatch.setattr(room, "TICK", 0.05)


@pytest.fixture
def show(hurry: None) -> Iterator[Show]:
    """A page without a watch behind it."""
    found = page()
    yield found
    found.close()


def port(show: Show) -> int:
    return int(show.url.rstrip("/").rpartition(":")[2])


def step(number: int = 0, pixels: np.ndarray | None = None, label: str = "happiness") -> Step:
    """A frame with one face of a certain label, and one that was not judged."""
    pixels = np.full((60, 80, 3), number % 256, np.uint8) if pixels is None else pixels
    marks = ((1.0, 1.0),) * 5
    said = Prediction(label, {label: 0.9, "x": 0.1}, True)
    tracks = (TrackState(1, Face((10, 20, 30, 40), 0.9, marks), said), TrackState(2, Face((50, 5, 8, 9), 0.9, marks), None))
    return Step(Frame(number, number / 25, pixels, time.monotonic()), (), tracks, 1, {}, 0.005, number)


def event(label: str | None = "happiness", kind: Any = "appear", track: int = 1) -> Event:
    return Event(kind, 1.0, 3, track, (1, 2, 3, 4), label, {label: 1.0} if label else {}, True, 0.5)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


def raw(show: Show, request: bytes, host: str = "127.0.0.1") -> bytes:
    """Everything that comes back for these bytes until the end, which the server makes or we do."""
    with socket.create_connection((host, port(show)), timeout=10) as connection:
        connection.sendall(request)
        parts = []
        with suppress(ConnectionResetError):
            while part := connection.recv(1 << 16):
                parts.append(part)
        return b"".join(parts)


def ask(show: Show, path: str = "/", method: str = "GET", host: str | None = None, **headers: str) -> Reply:
    """A request by hand: clients would mend what we want to send."""
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {f'127.0.0.1:{port(show)}' if host is None else host}",
        "Connection: close",
    ]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head, _, body = raw(show, ("\r\n".join(lines) + "\r\n\r\n").encode()).partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    return Reply(int(first.split()[1]), dict(line.split(": ", 1) for line in rest), body)


def following(show: Show, viewer: str = "me", **query: Any) -> tuple[dict[str, Any], bytes]:
    """What the page asks for: what is told, and the picture."""
    reply = ask(show, f"/next?viewer={viewer}" + "".join(f"&{name}={value}" for name, value in query.items()))
    assert reply.status == 200, reply.body
    length = int.from_bytes(reply.body[:4], "big")
    return json.loads(reply.body[4 : 4 + length]), reply.body[4 + length :]


# The server


def test_the_page_is_one_file_and_fetches_nothing() -> None:
    text = PAGE.read_text()
    assert not re.search(
        r"https?:|url\(|@import|<(img|iframe|link(?! rel=\"icon\" href=\"data:,\"))|innerHTML|document\.write|eval", text
    )
    assert len(text) < 30_000


def test_headers_of_every_answer(show: Show) -> None:
    show.step(step())
    for path, host in (
        ("/", None),
        ("/next?viewer=a", None),
        ("/nothing", None),
        ("/", "evil.example"),
        ("/next?viewer=_", None),
    ):
        headers = ask(show, path, host=host).headers
        assert SECURITY.keys() <= headers.keys(), path
        assert not [name for name in headers if name.startswith("Access-Control")], "nobody else's page may read"
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Server"].strip() == "fer-edge"
    text = ask(show).body.decode()
    policy = ask(show).headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        inside = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        assert f"{tag}-src 'sha256-{b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'" in policy


def test_a_picture_with_what_was_seen(show: Show, portrait: Path) -> None:
    pixels = np.asarray(Image.open(portrait).convert("RGB").resize((1600, 900)))
    show.step(step(7, pixels))
    show.event(event())
    about, jpeg = following(show)
    picture = Image.open(io.BytesIO(jpeg))
    assert picture.format == "JPEG"
    assert picture.size == (LONGEST, 540)
    small = np.asarray(Image.fromarray(pixels).resize(picture.size, Image.Resampling.BOX), np.float64)
    assert np.abs(np.asarray(picture.convert("RGB"), np.float64) - small).mean() < 4, "the same picture, colours in order"
    assert (about["picture"]["width"], about["picture"]["height"]) == (1600, 900)
    judged, other = about["picture"]["faces"]
    assert judged == {"track": 1, "box": [10, 20, 30, 40], "label": "happiness", "score": 0.9, "certain": True}
    assert other == {"track": 2, "box": [50, 5, 8, 9], "label": None}
    assert about["faces"] == about["picture"]["faces"]
    assert (about["frames"], about["dropped"], about["gaps"], about["state"]) == (1, 7, 0, "live")
    assert 0 <= about["picture"]["age"] < 5
    (line,) = about["events"]
    assert (line["event"], line["track"], line["label"]) == ("appear", 1, "happiness")
    again, nothing = following(show, run=about["run"], picture=about["picture"]["number"], event=about["last_event"])
    assert (again["picture"], nothing, again["events"]) == (None, b"", []), "only what is new"
    _, other_run = following(show, run="ffffffff", picture=99, event=99)
    assert other_run == jpeg, "numbers of an earlier watch mean nothing"
    _, still = following(show, still=1)
    assert still == b""


def test_states(show: Show) -> None:
    def state() -> tuple[str, str]:
        about, _ = following(show, still=1)
        return about["state"], about["reason"]

    assert state() == ("waiting", "")
    show.step(step())
    assert state() == ("live", "")
    show.lost(Gap(1.0, "cut"))
    show.lost(Gap(2.0, "no route"))
    assert state() == ("lost", "no route")
    assert following(show, still=1)[0]["faces"] == []
    show.step(step(1))
    assert state() == ("live", "")
    assert following(show, still=1)[0]["gaps"] == 1


def test_old_events_are_forgotten(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        show.event(event(track=number))
    kept = following(show, still=1)[0]["events"]
    assert [line["track"] for line in kept] == list(range(100, 300))
    monkeypatch.setattr(shown, "EVENT_SECONDS", 0.0)
    assert following(show, still=1)[0]["events"] == []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:9999", 200),  # through a tunnel
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("evil.example:8000", 421),
        ("localhost.evil.example", 421),
        ("192.168.1.5", 421),
        ("0.0.0.0", 421),
        ("", 421),
        ("a b", 421),
        ("[evil]", 421),
    ],
)
def test_names_that_reach_the_page(show: Show, host: str, status: int) -> None:
    """A stranger's name that points to 127.0.0.1 (DNS rebinding) does not."""
    assert ask(show, host=host).status == status
    assert ask(show, "/next?viewer=a&still=1", host=host).status == status


def test_two_names_or_none(show: Show) -> None:
    assert raw(show, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert raw(show, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert raw(show, b"GET /\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_names_on_another_address(hurry: None) -> None:
    """Numbers and the box's own names; a name that others may point here is none of them."""
    found = page("t" * 20, "0.0.0.0:0")
    try:
        for host in ("192.168.1.5", "[fe80::1]:8000", socket.gethostname(), f"{socket.gethostname()}.local:80", "0.0.0.0"):
            assert ask(found, host=host).status == 403, "a token is asked for"
        for host in ("evil.example", "192.168.1.5.evil.example"):
            assert ask(found, host=host).status == 421
    finally:
        found.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "X" * 50])
def test_only_reading(show: Show, method: str) -> None:
    reply = ask(show, method=method)
    assert reply.status == 405
    assert reply.headers["Allow"] == "GET, HEAD"


def test_head_has_no_body(show: Show) -> None:
    reply = ask(show, method="HEAD")
    assert (reply.status, reply.body) == (200, b"")
    assert int(reply.headers["Content-Length"]) == len(PAGE.read_bytes())


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/show.html",
        "/./",
        "http://127.0.0.1/",
        "/\\..\\x",
        "*",
        "/%00",
    ],
)
def test_there_is_no_other_file(show: Show, path: str) -> None:
    reply = ask(show, path)
    assert reply.status == 404
    assert b"root" not in reply.body


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"431"),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", b"505"),
        (b"\x16\x03\x01\x02\x00\x01\x00 \n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
    ],
)
def test_what_is_no_request(show: Show, request_bytes: bytes, status: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    found = raw(show, request_bytes)
    assert found.split()[1] == status
    assert found.count(b"HTTP/1.1 ") == 1, "what follows is no second request"
    assert ask(show).status == 200
    assert capfd.readouterr() == ("", ""), "standard error belongs to the watch"


def test_another_page_cannot_make_a_browser_ask(show: Show) -> None:
    """It could not read the answer, but take the places of those who look."""
    for site in ("cross-site", "same-site"):
        assert ask(show, "/next?viewer=a", Sec_Fetch_Site=site).status == 403
    assert ask(show, "/next?viewer=a&still=1", Sec_Fetch_Site="same-origin").status == 200
    assert ask(show, "/", Sec_Fetch_Site="cross-site").status == 200, "a link may lead here"


def test_a_token_opens_the_page(hurry: None) -> None:
    found = page("right-token-right-token", "0.0.0.0:0")
    found.step(step())
    try:
        for path in ("/", "/next?viewer=a", "/nothing"):
            for wrong in (
                "",
                "token=",
                "token=wrong",
                "token=right-token-right-toke",
                "token=%C3%A9",
                "token=right-token-right-tokenx",
            ):
                reply = ask(found, f"{path}{'&' if '?' in path else '?'}{wrong}", Cookie=f"fer-edge-{port(found)}=wrong")
                assert reply.status == 403
                assert b"right-token" not in reply.body
        reply = ask(found, "/?token=right-token-right-token")
        assert reply.status == 303
        assert "token" not in reply.headers["Location"], "the address bar does not keep it"
        cookie = reply.headers["Set-Cookie"]
        assert {"HttpOnly", "SameSite=Lax"} <= set(cookie.split("; "))
        pair = cookie.partition(";")[0]
        assert ask(found, "/", Cookie=f"other=1; {pair}").status == 200
        assert ask(found, "/next?viewer=a", Cookie=pair).status == 200
        assert ask(found, "/next?viewer=a&token=right-token-right-token").status == 200
        assert ask(found, "/", Cookie='"\\').status == 403
        assert b"right-token" not in ask(found, "/", Cookie=pair).body
    finally:
        found.close()


def test_a_token_where_others_can_come(hurry: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On loopback anybody looks; on an address that is named a fresh token is told once; a file's is not told."""
    told = []
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    for named, kept in (("0", None), ("0.0.0.0:0", None), ("0.0.0.0:0", None), ("0", file)):
        output = open_output({"show": named, "show_token_file": kept}, SETUP)
        assert output is not None
        told.append(capsys.readouterr().err)
        assert ask(output).status == (200 if told[-1].endswith("/\n") else 403)
        if kept:
            assert ask(output, "/?token=0123456789abcdef").status == 303
        output.close()
    tokens = [re.search(r"\?token=(\S+)$", text) for text in told]
    assert tokens[0] is None
    assert tokens[1] is not None
    assert tokens[2] is not None
    assert tokens[1][1] != tokens[2][1]
    assert len(tokens[1][1]) >= 32
    assert "0123456789abcdef" not in told[3]
    assert str(file) in told[3]
    assert open_output({"show": None, "show_token_file": None}, SETUP) is None


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--show", "x"], "give a port"),
        (["--show", "192.0.2.1:8000"], "this box has no such address"),
        (["--show", "taken"], "is in use there; name another one"),
        (["--show-token-file", "t"], "--show-token-file goes with --show"),
        (["--show", "0", "--show-token-file", "none"], "none cannot be read"),
        (["--show", "0", "--show-token-file", "short"], "a token is one line of 16 to 200"),
    ],
)
def test_a_wrong_option_is_one_line(
    arguments: list[str],
    part: str,
    portrait: Path,
    yunet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("secret\n")
    with socket.create_server(("127.0.0.1", 0)) as other:
        named = [str(other.getsockname()[1]) if word == "taken" else word for word in arguments]
        with pytest.raises(SystemExit) as end:
            main(["watch", str(portrait), "--detector", str(yunet), *named])
    told = capsys.readouterr()
    assert (end.value.code, told.out, told.err.count("\n")) == (2, "", 1)
    assert part in told.err


def test_a_port_of_root_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(room.TCPServer, "server_bind", refuse)
    with pytest.raises(UsageError, match=r"--show 127\.0\.0\.1:80: port 80 is for root alone; take one from 1024 on"):
        page(at="80")


LISTENS = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("a socket was opened")
socket.socket.bind = socket.socket.listen = socket.getaddrinfo = refuse
from fer_edge.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("option", [None, "--show", "--metrics"])
def test_nobody_listens_unasked(option: str | None, portrait: Path, yunet: Path, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(portrait.read_bytes())
    arguments = ["watch", str(tmp_path), "--detector", str(yunet), *([option, "0"] if option else [])]
    done = subprocess.run([sys.executable, "-c", LISTENS, *arguments], capture_output=True, text=True)
    assert ("a socket was opened" in done.stderr) is bool(option)
    assert done.returncode == (2 if option else 0), done.stderr


# Many, slow and dead visitors


def numbers() -> tuple[int, int]:
    """(threads, descriptors) of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def back_to(before: tuple[int, int]) -> None:
    """Wait until there are no more of both; a thread of an earlier test may have ended meanwhile."""
    until(lambda: all(now <= then for now, then in zip(numbers(), before, strict=True)))


def test_nothing_is_left_of_fifty_visitors(show: Show) -> None:
    shown.encode(step())  # what a first use opens
    before = numbers()
    show.step(step())
    for number in range(50):
        with socket.create_connection(("127.0.0.1", port(show))) as connection:
            line = "/" if number % 2 else "/next?viewer=a&still=1"
            connection.sendall(f"GET {line} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            if number % 3:
                connection.recv(1)
    back_to(before)


@pytest.mark.parametrize(("count", "lag"), [(100, 0.0), (60, 0.3)], ids=["quick", "busy"])
def test_a_hundred_idle_connections_keep_nobody_out(
    show: Show, count: int, lag: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``lag``: seconds until a thread sees that its connection was cut, as on a busy box (60 fit in the port's queue)."""
    cut = room._cut
    if lag:
        monkeypatch.setattr(room, "_cut", lambda connection: threading.Timer(lag, cut, [connection]).start())
    before = numbers()
    idle = [socket.create_connection(("127.0.0.1", port(show))) for _ in range(count)]
    try:
        assert ask(show).status == 200
        assert numbers()[1] - before[1] - len(idle) <= CONNECTIONS
        until(lambda: numbers()[0] - before[0] <= CONNECTIONS)  # a thread ends a little after it has closed
    finally:
        for connection in idle:
            connection.close()
    back_to(before)


def test_slow_senders_and_slow_readers_are_cut(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends a byte now and then, and one that never takes its answer, however long they would go on."""
    monkeypatch.setattr(room, "READ_SECONDS", 0.4)
    monkeypatch.setattr(room, "WRITE_SECONDS", 0.4)
    before = numbers()
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    monkeypatch.setattr(shown, "encode", lambda step: noise.tobytes())
    show.step(step())
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", port(show)))
    deaf.sendall(b"GET /next?viewer=deaf HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with socket.create_connection(("127.0.0.1", port(show))) as slow:
        letters = iter(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1000)

        def is_cut() -> bool:
            try:
                return not slow.send(bytes([next(letters)]))
            except OSError:
                return True

        until(is_cut)
    for number in range(100):
        show.step(step(number))  # would hang if a viewer held the frames
    until(lambda: numbers()[0] <= before[0])
    deaf.close()


def test_no_viewer_no_work_and_many_viewers_one_work(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def encode(step: Step) -> bytes:
        made.append(step.frame.number)
        return b"%d" % step.frame.number

    monkeypatch.setattr(shown, "encode", encode)
    for number in range(100):
        show.step(step(number))
    assert made == [], "nobody looks"
    following(show, "paused", still=1)
    assert made == [], "nor does somebody who has paused"
    found: dict[int, set[bytes]] = {}

    def look(viewer: int) -> None:
        about, _ = following(show, f"v{viewer}", still=1)
        number = 0
        for _ in range(3):
            about, body = following(show, f"v{viewer}", run=about["run"], picture=number)
            if about["picture"]:
                number = about["picture"]["number"]
                found.setdefault(number, set()).add(body)

    monkeypatch.setattr(shown, "PICTURES", 10.0)
    began, threads = time.monotonic(), [threading.Thread(target=look, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    number = 100
    while any(thread.is_alive() for thread in threads):
        show.step(step(number))
        number += 1
        time.sleep(0.004)
    assert len(made) == len(set(made)), "each once"
    assert all(len(bodies) == 1 for bodies in found.values()), "the same for all"
    assert len(made) <= 10 * (time.monotonic() - began) + 1, "no more a second than were asked for"
    assert len(made) < number - 100


def test_one_thread_at_a_time_makes_pictures(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly: frames and viewers wait for nobody, and newer frames are not begun beside it."""
    at_work, most, over = 0, 0, threading.Event()

    def encode(step: Step) -> bytes:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        time.sleep(0.1)
        at_work -= 1
        return b"x"

    monkeypatch.setattr(shown, "encode", encode)
    monkeypatch.setattr(shown, "PICTURES", 1000.0)
    monkeypatch.setattr(shown, "BEAT_SECONDS", 1.0)

    def look(viewer: int) -> None:
        while not over.is_set():
            following(show, f"v{viewer}", picture=0)

    threads = [threading.Thread(target=look, args=(viewer,)) for viewer in range(4)]
    for thread in threads:
        thread.start()
    for number in range(100):
        show.step(step(number))
        time.sleep(0.005)
    over.set()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_new_frame_is_shown_when_it_comes(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "BEAT_SECONDS", 60.0)  # nobody would wait for that
    found: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: found.append(following(show)[0]))
    thread.start()
    until(lambda: show._waiting)
    show.step(step())
    thread.join()
    assert found[0]["picture"]["number"] == 1


def test_the_ninth_viewer_waits(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    for viewer in range(VIEWERS):
        assert following(show, f"v{viewer}", still=1)[0]["viewers"] == viewer + 1
    reply = ask(show, "/next?viewer=ninth&still=1")
    assert (reply.status, reply.body) == (503, b"8 pages look already.\n")
    assert ask(show, "/next?viewer=v3&still=1").status == 200, "those who look go on"
    monkeypatch.setattr(shown, "GONE_SECONDS", 0.0)
    assert ask(show, "/next?viewer=ninth&still=1").status == 200


def test_the_end_is_told_before_the_silence() -> None:
    before = numbers()
    found = page()
    found.step(step())
    last: list[dict[str, Any]] = []
    closes = threading.Event()

    def look(viewer: str, wait: float) -> None:
        run = following(found, viewer)[0]["run"]
        began.wait()
        closes.wait(wait)
        last.append(following(found, viewer, run=run, picture=1)[0])

    began = threading.Barrier(3)
    threads = [threading.Thread(target=look, args=("asks", 0.0)), threading.Thread(target=look, args=("draws", 10.0))]
    for thread in threads:
        thread.start()
    began.wait()
    until(lambda: found._waiting)
    idle = socket.create_connection(("127.0.0.1", port(found)))
    until(lambda: numbers()[0] >= before[0] + 5)
    threading.Timer(0.2, closes.set).start()
    found.close()
    for thread in threads:
        thread.join()
    found.close()
    assert not [thread for thread in threading.enumerate() if "process_request" in thread.name], (
        "nobody works for it any more"
    )
    idle.close()
    assert [about["state"] for about in last] == ["ended", "ended"], "also to one that was drawing meanwhile"
    back_to(before)  # and nothing of it is left when it is closed
    with pytest.raises(ConnectionRefusedError):
        ask(found)


# The page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@dataclass
class Camera:
    """A live source that a test moves: 25 frames of ``picture`` a second while it is ``on``."""

    picture: np.ndarray
    name: str = "a camera"
    live: bool = True
    dropped: int = 0
    on: bool = True
    over: bool = False
    sent: int = field(default=0)

    def __iter__(self) -> Iterator[Frame | Gap]:
        while not self.over:
            if not self.on:
                yield Gap(self.sent / 25, "the camera was unplugged")
                while not (self.on or self.over):
                    time.sleep(0.01)
            yield Frame(self.sent, self.sent / 25, self.picture, time.monotonic())
            self.sent += 1
            time.sleep(0.04)

    def close(self) -> None:
        self.over = True


@contextmanager
def watching(picture: np.ndarray, yunet: Path) -> Iterator[tuple[Camera, Show]]:
    """A real watch of a camera, on a page."""
    camera, output = Camera(picture), page()

    def work() -> None:
        with fer_edge.load(threads=1) as clf, FaceFinder(yunet) as finder:
            for _ in watch(camera, clf, finder, outputs=[output]):
                pass

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield camera, output
    finally:
        camera.close()
        thread.join()


@pytest.fixture(scope="module")
def scene(portrait: Path) -> np.ndarray:
    """The portrait in a larger, dark picture with two coloured corners: (480, 854, 3)."""
    found = np.full((480, 854, 3), 40, np.uint8)
    found[20:420, 400:800] = np.asarray(Image.open(portrait).convert("RGB").resize((400, 400)))
    found[420:, :60], found[420:, 794:] = (190, 40, 40), (40, 40, 190)
    return found


def extent(shot: np.ndarray, colour: str) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels of a colour."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    rows, columns = np.nonzero((np.abs(shot.astype(int) - rgb) < 12).all(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (360, 740)])
def test_what_is_seen(browser: Browser, scene: np.ndarray, yunet: Path, width: int, height: int) -> None:
    """The picture, the face's box where the face is, its label, the lists; nothing beside the screen."""
    with FaceFinder(yunet) as finder:
        (face,) = finder.find(scene)
    with watching(scene, yunet) as (_, output):
        browser.open(output.url, width, height)
        browser.wait("shown && shown.faces.length && shown.faces[0].label")
        shot = browser.picture()
        stage = browser.run("(b => [b.left, b.top, b.width, b.height])(el('stage').getBoundingClientRect())")
        fit = min(stage[2] / 854, stage[3] / 480)
        left, top = stage[0] + (stage[2] - fit * 854) / 2, stage[1] + (stage[3] - fit * 480) / 2
        for x, y in ((100, 100), (30, 450), (824, 450)):
            seen = shot[round(top + fit * y), round(left + fit * x)].astype(int)
            assert np.abs(seen - scene[y, x]).max() < 12, f"the picture is where it should be, at {x}, {y}"
        box = [left + fit * face.box[0], top + fit * face.box[1]]
        box += [box[0] + fit * face.box[2], box[1] + fit * face.box[3]]
        part = shot[: round(stage[1] + stage[3]), : round(stage[0] + stage[2])]
        found = extent(part, COLOURS[0])
        chip = 17 if width < 500 else 20
        assert np.abs(np.array([found[0], found[1] + chip, found[3]]) - [box[0], box[1], box[3]]).max() <= 3
        chip_pixels = part[found[1] : found[1] + chip, found[0] : found[0] + 60]
        assert (chip_pixels.max(-1) < 60).sum() > 20, "dark letters on it"
        below = extent(part[round(box[1]) + 5 :], COLOURS[0])
        assert abs(below[2] - box[2]) <= 3
        assert browser.run("el('picture').getAttribute('aria-label')") == "Picture with happiness"
        assert re.fullmatch(r"1\s*happiness\s*[0-9]+%", browser.run("el('faces').innerText"))
        assert re.fullmatch(r"1\s*appeared: happiness\s*[0-9]+ s ago", browser.run("el('events').innerText"))
        assert re.fullmatch(r"[0-9]+(\.[0-9]+)? s", browser.run("el('age').innerText"))
        browser.wait("el('state').innerText === 'Live'")
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert "Nothing is stored" in browser.run("document.body.innerText")
        assert browser.log == [], "its own policy blocks nothing that it needs"


IN_FLIGHT = """
(async () => {
  const asked = ask(), before = shown.number;
  paused = true;
  await asked;
  return [before, shown.number];
})()
"""


def test_a_pause_is_of_the_picture_alone(browser: Browser, scene: np.ndarray, yunet: Path) -> None:
    with watching(scene, yunet) as (camera, output):
        browser.open(output.url)
        browser.wait("shown && shown.faces.length")
        browser.click("#pause")
        browser.wait("el('state').innerText === 'Paused'")
        assert browser.run("el('pause').getAttribute('aria-pressed')") == "true"
        still = browser.run("el('picture').toDataURL()")
        frames = browser.run("about.frames")
        camera.picture = np.full_like(scene, 200)
        browser.wait("/gone/.test(el('events').innerText)")
        assert browser.run("el('faces').innerText") == "None."
        assert browser.run("about.frames") > frames
        assert browser.run("el('picture').toDataURL()") == still
        assert browser.run("performance.now() - shown.arrived") > 1000, "its age goes on"
        assert "watch goes on" in browser.run("el('pausing').innerText")
        browser.click("#pause")
        browser.wait("el('state').innerText === 'Live'")
        before, after = browser.run(IN_FLIGHT)
        assert before == after, "what was on its way when the button was pressed is not shown either"
        browser.run("paused = false")
        browser.wait(f"el('picture').toDataURL() !== {json.dumps(still)}")
        assert browser.run("el('picture').getContext('2d').getImageData(300, 200, 1, 1).data[0]") > 190


def test_a_lost_source_is_told_and_its_return(browser: Browser, scene: np.ndarray, yunet: Path) -> None:
    with watching(scene, yunet) as (camera, output):
        browser.open(output.url, dark=True)
        browser.wait("shown && shown.faces.length")
        assert browser.picture()[-1, 0].max() < 60, "dark, as the visitor has it"
        camera.on = False
        browser.wait("/^Source lost .* ago$/.test(el('state').innerText)")
        assert "the camera was unplugged" in browser.run("el('veil').innerText")
        assert not browser.run("el('veil').hidden")
        assert browser.run("el('faces').innerText") == "None."
        camera.on = True
        browser.wait("el('state').innerText === 'Live'")
        assert browser.run("el('veil').hidden")
        assert browser.run("el('gaps').innerText") == "1"
        browser.wait("about.faces.length")
        camera.over = True
        browser.wait("el('state').innerText === 'Ended'")
        assert re.search("watch has ended\\s+[0-9]+ frames, 2 faces", browser.run("el('veil').innerText"))
        time.sleep(1.2)
        assert browser.run("el('state').innerText") == "Ended", "the silence after the end is no loss"


def test_a_page_before_the_first_picture(browser: Browser, hurry: None) -> None:
    found = page()
    try:
        browser.open(found.url)
        browser.wait("el('state').innerText === 'Waiting'")
        assert "Waiting for the first picture" in browser.run("el('veil').innerText")
    finally:
        found.close()


WILD = "<img src=x onerror=document.title='taken'><script>document.title='taken'</script>"


def test_names_of_strangers_are_text(browser: Browser, hurry: None) -> None:
    """Labels come from bundles, reasons and names from cameras."""
    found = page(setup=Setup(WILD, True, (WILD,), "x", WILD, "d", "r", "d", "p", "y"))
    try:
        found.step(step(label=WILD))
        found.event(event(WILD))
        browser.open(found.url)
        browser.wait("shown")
        found.lost(Gap(1.0, WILD))
        browser.wait("about.state === 'lost'")
        browser.wait("/onerror/.test(el('veil').innerText)")
        for node in ("source", "events", "veil", "about"):
            assert WILD in browser.run(f"el('{node}').innerText"), node
            assert browser.run(f"el('{node}').querySelector('img, script')") is None
        assert browser.run("document.title") == "fer-edge watch"
    finally:
        found.close()


def test_a_token_in_a_browser(browser: Browser, hurry: None) -> None:
    found = page("a-token-of-20-letters", "0.0.0.0:0")
    try:
        found.step(step())
        address = f"http://127.0.0.1:{port(found)}/"
        browser.open(address)
        assert "Open the whole address" in browser.run("document.body.innerText")
        browser.open(f"{address}?token=a-token-of-20-letters")
        browser.wait("typeof shown !== 'undefined' && shown")
        assert browser.run("location.href") == address
        assert "token" not in browser.run("document.cookie")
    finally:
        found.close()


def test_a_ninth_page_says_why(browser: Browser, hurry: None) -> None:
    found = page()
    try:
        for viewer in range(VIEWERS):
            following(found, f"v{viewer}", still=1)
        browser.open(found.url)
        browser.wait("el('state').innerText === 'Refused'")
        assert "8 pages look already." in browser.run("el('veil').innerText")
    finally:
        found.close()


def long_clip(file: Path, portrait: Path) -> None:
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 320, "yuv420p"
        pixels = np.asarray(Image.open(portrait).convert("RGB").resize((320, 320)))
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        for frame.pts in range(2000):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_killed_watch_and_a_new_one(browser: Browser, portrait: Path, yunet: Path, tmp_path: Path) -> None:
    """The command itself: killed, it is told as lost; begun anew at its place, the page goes on by itself; ended by SIGTERM,
    it says so."""
    clip = tmp_path / "clip.mkv"
    long_clip(clip, portrait)

    @contextmanager
    def command(where: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
        line = [sys.executable, "-m", "fer_edge", "watch", str(clip), "--detector", str(yunet), "--show", where]
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                yield process, next(line.split()[2] for line in process.stderr if line.startswith("Look at: "))
            finally:
                process.kill()

    with command("0") as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+/", url)
        browser.open(url)
        browser.wait("shown && shown.faces.length && el('state').innerText === 'Live'")
        process.send_signal(signal.SIGKILL)
        process.wait()
        browser.wait("el('state').innerText === 'Connection lost'")
        assert "Connection to watch lost" in browser.run("el('veil').innerText")
    with command(url.split("/")[2]) as (process, _):
        browser.wait("el('state').innerText === 'Live' && shown.faces.length")
        process.send_signal(signal.SIGTERM)
        browser.wait("el('state').innerText === 'Ended'")
        assert "watch has ended" in browser.run("el('veil').innerText")
        assert process.wait(10) == 143
