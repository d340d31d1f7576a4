"""A small HTTP server for what a watch tells of itself: on loopback unless another address is named, and bounded in every
way (connections, bytes of a request, seconds of one), because what it serves stands beside a camera for months."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException, LineTooLong
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import IO, Any
from urllib.parse import parse_qsl

from fer_edge.errors import UsageError

CONNECTIONS = 32
"""At one time; a further one takes the place of the one that has been idle longest."""
REQUEST_BYTES = 16 << 10
"""Of a request's line and headers together; browsers send 1 to 2 KiB."""
READ_SECONDS, WRITE_SECONDS = 10.0, 20.0
"""A connection that has not sent its whole request, or taken its whole answer, by then is cut."""
TICK = 0.25
"""Seconds between two looks at what is overdue, and the most that closing waits."""
CUT = float("-inf")
"""When a connection is due that was cut, and that its thread has not closed yet."""


@dataclass(frozen=True)
class Address:
    """Where to listen. ``host``: as it was named; ``option``: of the command line, for messages; ``loopback``: nobody else
    on the network can connect."""

    option: str
    host: str
    port: int
    family: socket.AddressFamily
    sockaddr: tuple[Any, ...]

    @property
    def loopback(self) -> bool:
        return ipaddress.ip_address(self.sockaddr[0].partition("%")[0]).is_loopback


def address_of(text: str, option: str) -> Address:
    """PORT (then on 127.0.0.1), HOST:PORT or [IPV6]:PORT; port 0 is any free one. Raises UsageError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]:|([^:/\[\]\s@]+):)?([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise UsageError(f"{option} {text}: give a port (8000), or an address and a port (0.0.0.0:8000, [::1]:8000)")
    host, port = match[1] or match[2] or "127.0.0.1", int(match[3])
    try:
        family, *_, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError):
        raise UsageError(f"{option} {text}: {host} is no address of this box") from None
    return Address(option, host, port, family, sockaddr)


@dataclass(frozen=True)
class Request:
    """A request that was let in: GET or HEAD. ``path`` as it was sent, ``query`` the last value of each name."""

    path: str
    query: Mapping[str, str]
    headers: Message


@dataclass(frozen=True)
class Answer:
    """``body``: bytes, or a text that is sent as plain text; ``headers`` beside the usual ones."""

    body: bytes | str = b""
    kind: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


class Server:
    """Listens from the beginning on; answers in threads of its own until ``close``. ``answer`` is called by several at once.

    ``any_name``: whether a Host header may hold any name. Else it holds a number or a name of this box: a page from
    elsewhere cannot have its own name point here and read with its visitor's browser (DNS rebinding); where only loopback is
    listened to, the number too is of loopback. Raises UsageError where the address cannot be had."""

    def __init__(self, address: Address, answer: Callable[[Request], Answer], *, any_name: bool = False) -> None:
        self._server = _listener(address, answer, any_name)
        self.port: int = self._server.server_address[1]
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.url = f"http://{host}:{self.port}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(TICK,), name=f"server {address.option}", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Cut all connections and stop listening; nothing of it is left afterwards."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.cut_all()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _listener(address: Address, answer: Callable[[Request], Answer], any_name: bool) -> _Listener:
    try:
        return _Listener(address, answer, any_name)
    except OSError as error:
        where = f"{address.option} {address.host}:{address.port}"
        reason = {
            errno.EADDRINUSE: f"port {address.port} is in use there; name another one",
            errno.EACCES: f"port {address.port} is for root alone; take one from 1024 on",
            errno.EADDRNOTAVAIL: "this box has no such address",
        }.get(error.errno or 0, error.strerror or str(error))
        raise UsageError(f"{where}: {reason}") from None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: Address, answer: Callable[[Request], Answer], any_name: bool) -> None:
        self.address_family = address.family
        self.respond = answer
        self._loopback, self._any_name = address.loopback, any_name
        self._names = {"localhost"} if address.loopback else {"localhost", address.host.lower(), *_own_names()}
        self._lock = threading.Lock()
        self._place = threading.Condition(self._lock)
        """A connection was closed."""
        self._due: dict[socket.socket, float] = {}
        """Connection that is not closed -> when it is cut; infinity while its answer is made."""
        self._workers: set[threading.Thread] = set()
        super().__init__(address.sockaddr, _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's asks the network for this box's name
        self.server_name, self.server_port = "", self.server_address[1]

    def is_ours(self, host: str) -> bool:
        """Whether a Host header names this box."""
        match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::[0-9]{1,5})?", host)
        if match is None:
            return False
        name = (match[1] or match[2]).lower()
        try:
            number = ipaddress.ip_address(name)
        except ValueError:
            return self._any_name or name.rstrip(".") in self._names
        return number.is_loopback or not self._loopback

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            # On a busy box threads are slow to close what was cut; it counts until they have.
            while not (taken := len(self._due) < CONNECTIONS) and min(self._due.values()) < float("inf"):
                if idle := self._idle():
                    self._end(min(idle, key=self._due.__getitem__))
                if not self._place.wait_for(lambda: len(self._due) < CONNECTIONS, TICK) and not idle:
                    break
            if taken:
                self._due[request] = time.monotonic() + READ_SECONDS
        if taken:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def _idle(self) -> list[socket.socket]:
        """The connections that wait for their client. Under the lock, as _end."""
        return [connection for connection, due in self._due.items() if CUT < due < float("inf")]

    def _end(self, connection: socket.socket) -> None:
        self._due[connection] = CUT
        _cut(connection)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._workers.add(threading.current_thread())
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._workers.discard(threading.current_thread())

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._lock:
            self._due.pop(request, None)
            self._place.notify()

    def allow(self, connection: socket.socket, seconds: float) -> None:
        """Cut the connection in so many seconds, unless it is allowed anew or cut already."""
        with self._lock:
            if self._due[connection] != CUT:
                self._due[connection] = time.monotonic() + seconds

    def service_actions(self) -> None:
        now = time.monotonic()
        with self._lock:
            for connection in [connection for connection in self._idle() if self._due[connection] <= now]:
                self._end(connection)

    def cut_all(self) -> None:
        """Cut every connection and wait for its thread."""
        with self._lock:
            for connection in self._due:
                self._end(connection)
            workers = list(self._workers)
        for worker in workers:
            worker.join(READ_SECONDS)


def _own_names() -> set[str]:
    name = socket.gethostname().lower()
    return {name, f"{name}.local", name.partition(".")[0]}


def _cut(connection: socket.socket) -> None:
    """Whoever reads from or writes to it sees its end; its thread closes it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # its client was faster
        return


class _Limited:
    """What a request is read from: raises LineTooLong beyond ``left`` bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.left = stream, REQUEST_BYTES

    def readline(self, size: int = -1) -> bytes:
        line = self._stream.readline(self.left + 1)
        self.left -= len(line)
        if self.left < 0:
            raise LineTooLong("request")
        return line

    def close(self) -> None:
        self._stream.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version, default_request_version = "HTTP/1.1", "HTTP/1.0"
    server_version, sys_version = "fer-edge", ""
    server: _Listener

    def setup(self) -> None:
        super().setup()
        self.rfile: Any = _Limited(self.rfile)

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, HTTPException):  # it went away, or was cut
            self.close_connection = True

    def handle_one_request(self) -> None:
        self.command = self.requestline = self.request_version = ""
        self.rfile.left = REQUEST_BYTES
        self.server.allow(self.connection, READ_SECONDS)
        try:
            self.raw_requestline = self.rfile.readline()
        except LineTooLong:
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
            return
        if not self.raw_requestline.endswith(b"\n"):
            self.close_connection = True
        elif self.parse_request():
            refusal = self._refusal()
            self.server.allow(self.connection, float("inf"))
            self._send(refusal or self.server.respond(self._request()))

    def _refusal(self) -> Answer | None:
        hosts = self.headers.get_all("Host", [])
        if self.command not in ("GET", "HEAD"):
            allow = {"Allow": "GET, HEAD", "Connection": "close"}
            return Answer("Only GET and HEAD are answered here.\n", status=HTTPStatus.METHOD_NOT_ALLOWED, headers=allow)
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers or len(hosts) != 1:
            close = {"Connection": "close"}
            return Answer("This is no request for a page.\n", status=HTTPStatus.BAD_REQUEST, headers=close)
        if not self.server.is_ours(hosts[0]):
            return Answer("Not a name of this box; use its number.\n", status=HTTPStatus.MISDIRECTED_REQUEST)
        return None

    def _request(self) -> Request:
        path, _, query = self.path.partition("?")
        return Request(path, dict(parse_qsl(query, max_num_fields=None)), self.headers)

    def _send(self, answer: Answer) -> None:
        body = answer.body.encode() if isinstance(answer.body, str) else answer.body
        self.server.allow(self.connection, WRITE_SECONDS)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in {**SECURITY, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library refuses, as our own answers look: nothing of the request is repeated."""
        status = HTTPStatus(code)
        self.close_connection = True
        self._send(Answer(f"{status.phrase}.\n", status=status, headers={"Connection": "close"}))

    def log_message(self, format: str, *args: Any) -> None:
        """Standard error belongs to the watch."""


SECURITY = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every answer: kept nowhere, shown in no other page, read by no other page."""
