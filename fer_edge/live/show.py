"""``watch --show``: a page that shows what a watch sees, for a handful of browsers.

A page asks for the next picture when it has drawn the last one. So a slow page gets fewer pictures and never an old one,
nobody's network holds up the frames, and where nobody looks nothing is done: pictures are made smaller and encoded when they
are asked for, by the server's threads, once for all pages."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, TypeVar

import click

from fer_edge import __version__
from fer_edge.console import say
from fer_edge.errors import UsageError

from .events import Event, Summary
from .outputs import Setup
from .pipeline import Step, TrackState
from .server import SECURITY, Address, Answer, Request, Server, address_of
from .sources import Gap

F = TypeVar("F", bound=Callable[..., Any])

PAGE = Path(__file__).with_name("show.html")
LONGEST = 960
"""Pixels of the longer side of a picture; larger ones are made smaller."""
PICTURES = 12.0
"""A second, at most."""
QUALITY = 80
"""Of JPEG."""
VIEWERS = 8
"""At one time. One that has not asked for GONE_SECONDS has gone."""
GONE_SECONDS = 5.0
BEAT_SECONDS = 1.0
"""After so long an answer comes without a picture: the page sees that watch is there."""
EVENT_SECONDS, EVENTS = 60.0, 200
"""How old an event may be, and how many of them are kept."""
FAREWELL_SECONDS = 1.5
"""How long ``close`` waits for the pages to learn that watch has ended."""
TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,200}")
"""What may stand in an address as it is; 16 characters of it cannot be guessed over a network."""

NEEDS = {"show_token_file": "show"}


def output_options(command: F) -> F:
    """--show and --show-token-file."""
    options = (
        click.option(
            "--show",
            metavar="[HOST:]PORT",
            help="A page with the picture, faces and events, on 127.0.0.1. On an address that is named it wants a token.",
        ),
        click.option(
            "--show-token-file",
            type=click.Path(path_type=Path),
            help="The page's token, at least 16 characters. Default: a fresh one, where one is wanted.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def open_output(options: dict[str, Any], setup: Setup) -> Show | None:
    """The page, where it is asked for. Raises UsageError."""
    named, file = options.pop("show"), options.pop("show_token_file")
    if named is None:
        return None
    address = address_of(named, "--show")
    token = read_token(file) if file else "" if address.loopback else secrets.token_urlsafe(24)
    output = Show(address, setup, token)
    secret = f"?token={token}" if token and not file else ""
    say(f"Look at: {output.url}{secret}{f' (with ?token=, and what {file} holds)' if file else ''}")
    return output


def read_token(file: Path) -> str:
    """The token that a file holds on its only line. Raises UsageError."""
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text of ASCII"
        raise UsageError(f"--show-token-file {file} cannot be read: {why}") from None
    if not TOKEN.fullmatch(token):
        raise UsageError(f"--show-token-file {file}: a token is one line of 16 to 200 letters, digits and . _ ~ -")
    return token


@dataclass(frozen=True)
class _Picture:
    """A frame as pages get it. ``number`` counts the pictures, from 1."""

    number: int
    jpeg: bytes
    arrived: float
    about: dict[str, Any]


class Show:
    """The page, under ``url`` from the beginning on. ``token``: what a browser has to know; "" where anybody may look."""

    name = "show"

    def __init__(self, address: Address, setup: Setup, token: str = "") -> None:
        self._page = PAGE.read_bytes()
        self._policy = policy(self._page.decode())
        self._setup, self._token = setup, token
        self._run = secrets.token_hex(4)
        """Tells the pages of an earlier watch, whose numbers mean nothing here, from this one's."""
        self._change = threading.Condition()
        self._step: Step | None = None
        self._stale = True
        """There is no step that is not shown yet."""
        self._picture = _Picture(0, b"", 0.0, {})
        self._busy, self._due = False, 0.0
        """A thread is at work on a picture; when the next one may be begun."""
        self._waiting = 0
        self._viewers: dict[str, float] = {}
        self._told: set[str] = set()
        """Viewers that know of the end."""
        self._events: deque[tuple[int, float, Event]] = deque(maxlen=EVENTS)
        self._event_number = self._frames = self._dropped = self._gaps = 0
        self._state, self._since, self._reason = "waiting", time.monotonic(), ""
        self._summary: Summary | None = None
        self._server = Server(address, self._answer)
        self._cookie = f"fer-edge-{self._server.port}"
        self.url = self._server.url

    def event(self, event: Event | Summary) -> None:
        """Keep it for a minute."""
        with self._change:
            if isinstance(event, Summary):
                self._enter("ended")
                self._summary = event
                self._change.notify_all()
            else:
                self._event_number += 1
                self._events.append((self._event_number, time.monotonic(), event))

    def step(self, step: Step) -> None:
        """Keep the newest frame, until the next one."""
        with self._change:
            if self._waiting and self._stale:
                self._change.notify_all()
            self._step, self._stale = step, False
            self._frames, self._dropped = self._frames + 1, step.dropped
            if self._state != "live":
                self._enter("live")

    def lost(self, gap: Gap) -> None:
        """Tell the pages."""
        with self._change:
            if self._state != "lost":
                self._gaps += 1
                self._enter("lost")
            self._reason = gap.reason

    def close(self) -> None:
        """Let the pages know, and stop."""
        with self._change:
            if self._state != "ended":
                self._enter("ended")
            self._change.notify_all()
            self._change.wait_for(lambda: self._here() <= self._told, FAREWELL_SECONDS)
            self._step = None
        self._server.close()

    def _enter(self, state: str) -> None:
        self._state, self._since, self._reason = state, time.monotonic(), ""

    def _here(self) -> set[str]:
        """The viewers that still look."""
        last = time.monotonic() - GONE_SECONDS
        self._viewers = {viewer: seen for viewer, seen in self._viewers.items() if seen > last}
        return set(self._viewers)

    def _answer(self, request: Request) -> Answer:
        if self._token:
            given = request.query.get("token", "")
            if request.path == "/" and self._is_token(given):
                cookie = f"{self._cookie}={given}; Path=/; HttpOnly; SameSite=Lax"
                # The address bar, the history and what is copied from them do not keep it.
                return Answer(status=HTTPStatus.SEE_OTHER, headers={"Location": "./", "Set-Cookie": cookie})
            if not self._is_token(given or self._token_in(request)):
                return Answer(
                    "Open the whole address that watch has printed: it holds a token.\n", status=HTTPStatus.FORBIDDEN
                )
        if request.path == "/":
            return Answer(self._page, "text/html; charset=utf-8", headers={"Content-Security-Policy": self._policy})
        if request.path == "/next":
            return self._next(request)
        return Answer("There is one page here: /\n", status=HTTPStatus.NOT_FOUND)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _token_in(self, request: Request) -> str:
        try:
            cookie = SimpleCookie(request.headers.get("Cookie", "")).get(self._cookie)
        except CookieError:
            cookie = None
        return cookie.value if cookie else ""

    def _next(self, request: Request) -> Answer:
        """JSON, its length in 4 bytes before it, and the picture behind it."""
        viewer = request.query.get("viewer", "")
        ours = request.query.get("run") == self._run
        after, event = (_number(request.query.get(name, "")) if ours else 0 for name in ("picture", "event"))
        if not re.fullmatch("[a-z0-9]{1,32}", viewer):
            return Answer("A viewer has a name.\n", status=HTTPStatus.BAD_REQUEST)
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return Answer("Another page asks.\n", status=HTTPStatus.FORBIDDEN)
        with self._change:
            if viewer not in self._here() and len(self._viewers) >= VIEWERS:
                text = f"{VIEWERS} pages look already.\n"
                return Answer(text, status=HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "5"})
            self._viewers[viewer] = time.monotonic()
        came = time.monotonic()
        picture = self._await(after, came + BEAT_SECONDS, wanted="still" not in request.query)
        with self._change:
            about = self._about(picture, event, came)
            self._viewers[viewer] = time.monotonic()
            if about["state"] == "ended":
                self._told.add(viewer)
                self._change.notify_all()
        head = json.dumps(about, allow_nan=False).encode()
        body = len(head).to_bytes(4, "big") + head + (picture.jpeg if picture else b"")
        return Answer(body, "application/octet-stream")

    def _await(self, after: int, until: float, wanted: bool) -> _Picture | None:
        """A picture with a higher number; None where there is none until then, or none is wanted."""
        with self._change:
            self._waiting += 1
            try:
                while True:
                    if wanted and self._picture.number > after:
                        return self._picture
                    now = time.monotonic()
                    fresh = wanted and not self._busy and not self._stale
                    if fresh and now >= self._due:
                        return self._make(now)
                    if self._state == "ended" or now >= until:
                        return None
                    self._change.wait(min(until, self._due if fresh else until) - now)
            finally:
                self._waiting -= 1

    def _make(self, now: float) -> _Picture:
        """The newest frame as a picture, made without the lock."""
        assert self._step is not None
        step, self._busy, self._stale, self._due = self._step, True, True, now + 1 / PICTURES
        self._change.release()
        try:
            jpeg = encode(step)
        finally:
            self._change.acquire()
            self._busy = False
        self._picture = _Picture(self._picture.number + 1, jpeg, step.frame.arrived, faces(step))
        self._change.notify_all()
        return self._picture

    def _about(self, picture: _Picture | None, event: int, came: float) -> dict[str, Any]:
        now = time.monotonic()
        return {
            "run": self._run,
            "version": __version__,
            "source": self._setup.source,
            "bundle": self._setup.bundle,
            "state": self._state,
            "since": now - self._since,
            "reason": self._reason,
            "waited": now - came,
            "clock": now,
            "frames": self._frames,
            "dropped": self._dropped,
            "gaps": self._gaps,
            "viewers": len(self._here()),
            "most": VIEWERS,
            "faces": faces(self._step)["faces"] if self._step and self._state == "live" else [],
            "last_event": self._event_number,
            "events": [
                {**_line(kept), "ago": now - at, "number": number}
                for number, at, kept in self._events
                if number > event and now - at < EVENT_SECONDS
            ],
            "picture": picture and {"number": picture.number, "age": now - picture.arrived, **picture.about},
            "summary": self._summary and self._summary.to_dict(),
        }


def encode(step: Step) -> bytes:
    """The frame as JPEG, no side longer than LONGEST."""
    import cv2

    pixels = step.frame.pixels  # quicker than ``shrunk``, which keeps its tables for the detector's size
    high, wide = pixels.shape[:2]
    shrink = max(high, wide) / LONGEST
    if shrink > 1:
        size = (max(1, round(wide / shrink)), max(1, round(high / shrink)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done
    return bytes(jpeg)


def faces(step: Step) -> dict[str, Any]:
    """What is drawn on a picture; boxes in pixels of the frame."""
    wide, high = step.frame.size  # under the lock: nothing is decoded here
    return {"width": wide, "height": high, "faces": [_face(state) for state in step.tracks]}


def _face(state: TrackState) -> dict[str, Any]:
    said = state.prediction
    judged = {"label": said.label, "score": said.score, "certain": said.certain} if said else {"label": None}
    return {"track": state.track, "box": list(state.face.box), **judged}


def _line(event: Event) -> dict[str, Any]:
    return {"event": event.event, "track": event.track, "label": event.label, "certain": event.certain}


def _number(text: str) -> int:
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else 0


def policy(page: str) -> str:
    """The Content-Security-Policy of the page: its own script and style by their hashes, answers of this server, and nothing
    else (www.w3.org/TR/CSP3)."""

    def hashed(tag: str) -> str:
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)
        return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    own = f"script-src {hashed('script')}; style-src {hashed('style')}; connect-src 'self'; img-src data:"
    return f"{SECURITY['Content-Security-Policy']}; {own}"
