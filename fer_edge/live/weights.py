"""Weights of detectors that are not ours to ship: which, from where, with which hash, and their way into the user's cache.

:func:`fetch` is the only thing here that opens a socket, and only ``fer-edge faces fetch`` calls it."""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fer_edge.console import need_extra, shortened
from fer_edge.errors import UsageError
from fer_edge.files import check_target, clear_partials, disk_errors, locked, user_cache, write_bytes

if TYPE_CHECKING:
    from urllib.request import OpenerDirector


@dataclass(frozen=True)
class Weights:
    """A file, as its makers published it. ``file``: its name in the cache; ``size`` in bytes."""

    name: str
    file: str
    url: str
    sha256: str
    size: int
    licence: str


WEIGHTS = {
    weights.name: weights
    for weights in (
        # OpenCV's model zoo, https://github.com/opencv/opencv_zoo, models/face_detection_yunet.
        Weights(
            name="yunet",
            file="face_detection_yunet_2023mar.onnx",
            url="https://media.githubusercontent.com/media/opencv/opencv_zoo/82b38c8f98e7b52aa171400f3e4c722352d0669f"
            "/models/face_detection_yunet/face_detection_yunet_2023mar.onnx",
            sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
            size=232_589,
            licence="MIT",
        ),
    )
}
"""By the name of the detector."""

TIMEOUT = 30.0
WHOLE = 10
"""Of the timeout, for the whole file: a server that sends a byte now and then must not hold a user for ever."""
_PART = 1 << 14


def place(weights: Weights) -> Path:
    """Where they lie in the user's cache, whether they are there or not. Raises UsageError where a user has none."""
    need_extra("platformdirs", extra="live")
    folder = user_cache()
    if folder is None:
        raise UsageError("this user has no home, so there is no cache; name the detector's file: --detector FILE")
    return folder / "detectors" / weights.file


def is_right(content: bytes, weights: Weights) -> bool:
    """Whether these are the published bytes."""
    return hashlib.sha256(content).hexdigest() == weights.sha256


def read_installed(weights: Weights) -> tuple[Path, bytes]:
    """The file in the cache, checked. Raises UsageError when it is not there, or another one."""
    file = place(weights)
    try:
        content = _read(file, weights.size + 1)
    except FileNotFoundError as error:
        raise UsageError(
            f"the face detector {weights.name} is not installed; run once: fer-edge faces fetch (without a network: "
            "fer-edge faces fetch --from FILE)"
        ) from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}; run: fer-edge faces fetch") from error
    if not is_right(content, weights):
        raise UsageError(f"{file} is not the published file: its SHA-256 is another one; run: fer-edge faces fetch")
    return file, content


def is_installed(weights: Weights) -> bool:
    """Whether the right file is in the cache."""
    with suppress(UsageError):
        read_installed(weights)
        return True
    return False


def install(weights: Weights, file: Path) -> Path:
    """Put a copy of a file into the cache; returns its place. Raises UsageError unless it is the published one."""
    target = _prepared(place(weights))
    try:
        content = _read(file, weights.size + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    if not is_right(content, weights):
        raise UsageError(
            f"{file} is not {weights.file}, of {weights.size:,} bytes and SHA-256 {weights.sha256[:12]}...; "
            "another detector is named where it is used: --detector FILE"
        )
    return _write(target, content)


def fetch(
    weights: Weights,
    url: str | None = None,
    timeout: float = TIMEOUT,
    on_part: Callable[[float], None] = lambda done: None,
) -> Path:
    """Download the published file into the cache; returns its place. ``url``: another address of the same bytes, https or
    of this machine; ``timeout``: seconds without an answer, WHOLE times that for all of it; ``on_part`` gets the fraction
    done. Nothing is written before all of it has come and its SHA-256 is right. Raises UsageError."""
    address = url or weights.url
    target = _prepared(place(weights))
    problem = ""
    try:
        content = _download(weights, address, timeout, on_part)
    except HTTPException as error:
        problem = f"the answer breaks off ({_words(error)})"
    except TimeoutError:
        problem = f"no answer for {timeout:g} s"
    except OSError as error:  # no network, no such host, refused, cut, an HTTP status, a certificate
        inner = getattr(error, "reason", None)
        problem = f"no answer for {timeout:g} s" if isinstance(inner, TimeoutError) else _words(inner or error)
        if code := getattr(error, "code", None):
            problem = f"the server says {code} {problem}"
    except ValueError as error:
        problem = _words(error)
    if problem:
        raise UsageError(
            f"{address}: {problem}; try again, or bring the file from elsewhere: fer-edge faces fetch --from FILE"
        )
    return _write(target, content)


def _download(weights: Weights, address: str, timeout: float, on_part: Callable[[float], None]) -> bytes:
    """The right bytes. Raises OSError, HTTPException, or ValueError with what is wrong."""
    from urllib.request import Request

    local = _is_local(address)
    if not (local or urlsplit(address).scheme == "https"):
        raise ValueError("the address must begin with https:// (http:// is for this machine alone)")
    end = time.monotonic() + WHOLE * timeout
    content = bytearray()
    request = Request(address, headers={"User-Agent": "fer-edge"})
    with _opener(local).open(request, timeout=timeout) as response:
        while part := response.read1(_PART):
            content += part
            if len(content) > weights.size:
                raise ValueError(f"more than the {weights.size:,} bytes that the file has were sent")
            if time.monotonic() > end:
                raise ValueError(f"only {len(content):,} of {weights.size:,} bytes came in {WHOLE * timeout:g} s")
            on_part(len(content) / weights.size)
    if len(content) < weights.size:
        raise ValueError(f"the connection ended after {len(content):,} of {weights.size:,} bytes")
    if not is_right(bytes(content), weights):
        raise ValueError(f"what was sent is not {weights.file}: its SHA-256 is another one")
    return bytes(content)


def _opener(local: bool) -> OpenerDirector:
    """HTTP and HTTPS alone, of which no redirection leads away; a proxy as the system names one, but not to this machine."""
    from urllib import request as http

    class Redirects(http.HTTPRedirectHandler):
        def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
            if urlsplit(newurl).scheme != "https" and not (local and _is_local(newurl)):
                raise ValueError(f"the server sends us on to {newurl}, which is not https")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    opener = http.OpenerDirector()
    for handler in (
        http.ProxyHandler({} if local else None),
        http.HTTPHandler(),
        http.HTTPSHandler(),
        http.HTTPDefaultErrorHandler(),
        http.HTTPErrorProcessor(),
        Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _is_local(address: str) -> bool:
    parts = urlsplit(address)  # raises ValueError for brackets that do not close
    if parts.scheme != "http":
        return False
    try:
        return parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _words(error: object) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shortened(str(text), 300)


def _read(file: Path, most: int) -> bytes:
    with file.open("rb") as stream:
        return stream.read(most)


def _prepared(target: Path) -> Path:
    """The same, if it can be written, in a folder without what killed writers left. Raises UsageError."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent):
        clear_partials(target.parent)
        check_target(target)
    return target


def _write(target: Path, content: bytes) -> Path:
    with locked(target.parent):
        write_bytes(target, content)
    return target
