"""``fer-edge faces fetch``: the right file in the cache or one line, whatever the server does, and nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import fer_edge
from fer_edge.cli import main
from fer_edge.errors import UsageError
from fer_edge.live import weights as module
from fer_edge.live.weights import WEIGHTS, Weights, fetch, install, is_installed, place, read_installed

pytest.importorskip("platformdirs")

YUNET = WEIGHTS["yunet"]
CONTENT = bytes(range(256)) * 400
PLANTED = Weights("planted", "planted.onnx", "", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "MIT")
Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty: its folder is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server() -> Iterator[Callable[[Answer], str]]:
    """Starts a server on this machine that answers every request so; returns the address of a file."""
    running: list[ThreadingHTTPServer] = []
    over = threading.Event()

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.over = over
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        running[-1].daemon_threads = True
        running[-1].handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up: they are told to
        threading.Thread(target=running[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}/planted.onnx"

    yield start
    over.set()
    for one in running:
        one.shutdown()
        one.server_close()


def sends(content: bytes, promise: int | None = None, status: int = 200) -> Answer:
    """An answer of these bytes, which promises so many."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        if promise is not None:
            request.send_header("Content-Length", str(promise))
        request.end_headers()
        request.wfile.write(content)

    return answer


def leads_to(address: str) -> Answer:
    """An answer that sends on to another address."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", address)
        request.end_headers()

    return answer


def waits(request: BaseHTTPRequestHandler) -> None:
    """No answer before the test is over."""
    request.over.wait(60)  # type: ignore[attr-defined]


def drips(request: BaseHTTPRequestHandler) -> None:
    """A byte at a time, well within any timeout, without an end."""
    request.send_response(200)
    request.end_headers()
    while not request.over.wait(0.02):  # type: ignore[attr-defined]
        try:
            request.wfile.write(b"x")
        except OSError:
            return


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() or path.name.startswith("."))


def test_the_right_file_lands_in_the_cache(server: Callable[[Answer], str], cache: Path) -> None:
    shares: list[float] = []
    file = fetch(PLANTED, server(sends(CONTENT, len(CONTENT))), on_part=shares.append)
    assert file == cache / "fer-edge" / "detectors" / "planted.onnx" == place(PLANTED)
    assert file.read_bytes() == CONTENT
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert is_installed(PLANTED)
    assert read_installed(PLANTED) == (file, CONTENT)
    assert left_in(cache) == ["planted.onnx"]


def test_no_promised_length_and_a_redirection_on_this_machine_are_fine(server: Callable[[Answer], str]) -> None:
    there = server(sends(CONTENT))
    assert fetch(PLANTED, server(leads_to(there))).read_bytes() == CONTENT


WRONG: list[tuple[str, Answer, str]] = [
    ("another file", sends(CONTENT[::-1], len(CONTENT)), "SHA-256"),
    ("cut", sends(CONTENT[:5000], len(CONTENT)), "5,000 of 102,400"),
    ("shorter", sends(CONTENT[:-1], len(CONTENT) - 1), "102,399 of 102,400"),
    ("empty", sends(b"", 0), "0 of 102,400"),
    ("longer", sends(CONTENT + b"x", len(CONTENT) + 1), "more than the 102,400 bytes"),
    ("without an end", sends(CONTENT * 50), "more than the 102,400 bytes"),
    ("not there", sends(b"no", 2, 404), "404"),
    ("broken", sends(b"no", 2, 500), "500"),
    ("no HTTP", lambda request: request.wfile.write(b"SSH-2.0-x\r\n\r\n") and None, "breaks off"),
    ("closed at once", lambda request: None, "closed"),
    ("to another machine", leads_to("http://192.0.2.1/x"), "not https"),
    ("to a file", leads_to("file:///etc/hostname"), "not allowed"),
    ("silent", waits, "no answer for 0.3 s"),
    ("dripping", drips, "in 3 s"),
]


@pytest.mark.parametrize(("answer", "says"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_whatever_else_comes_is_one_line_and_leaves_nothing(
    answer: Answer, says: str, server: Callable[[Answer], str], cache: Path
) -> None:
    address = server(answer)
    with pytest.raises(UsageError) as caught:
        fetch(PLANTED, address, timeout=0.3)
    assert says in str(caught.value)
    assert address in str(caught.value)
    assert str(caught.value).endswith("fer-edge faces fetch --from FILE")
    assert "\n" not in str(caught.value)
    assert left_in(cache) == []


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:{closed}/x", "refused"),
        ("http://192.0.2.1/x", "https://"),
        ("http://localhost.example.org/x", "https://"),
        ("ftp://127.0.0.1/x", "https://"),
        ("file:///etc/hostname", "https://"),
        ("http://[::1/x", "IPv6"),
        ("https://no-such-host.invalid/x", ""),
        ("planted.onnx", "https://"),
    ],
)
def test_an_address_that_leads_nowhere(address: str, says: str, cache: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port meanwhile
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UsageError, match=r"--from FILE$") as caught:
            fetch(PLANTED, address.format(closed=taken.getsockname()[1]), timeout=5)
    assert says in str(caught.value)
    assert left_in(cache) == []


def test_a_failed_download_leaves_what_was_there(server: Callable[[Answer], str]) -> None:
    good = fetch(PLANTED, server(sends(CONTENT)))
    with pytest.raises(UsageError):
        fetch(PLANTED, server(sends(CONTENT[::-1])))
    assert good.read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_said_before_a_socket_is_opened(
    server: Callable[[Answer], str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    address = server(asked.append)
    cache.write_text("a file where a folder should be")
    with pytest.raises(UsageError, match="cannot be written"):
        fetch(PLANTED, address)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no")  # where not even root may make a folder
    with pytest.raises(UsageError, match="cannot be written"):
        fetch(PLANTED, address)
    assert asked == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root becomes a user whom nobody knows")
def test_a_user_without_a_home_has_no_cache() -> None:
    """As a service may be: in a process of its own, which becomes somebody whom the box does not know."""
    code = f"""
import os
from fer_edge.errors import UsageError
from fer_edge.live.weights import Weights, place
weights = {PLANTED!r}
place(weights)  # everything is loaded while Python may still be read
for variable in ("HOME", "XDG_CACHE_HOME"):
    os.environ.pop(variable, None)
os.setuid(54321)
try:
    place(weights)
except UsageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "no home" in done.stdout, done.stderr


def test_a_cache_that_is_no_absolute_path_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As older platformdirs answer for such a user."""
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: Path("~/.cache/fer-edge"))
    with pytest.raises(UsageError, match="no home"):
        place(PLANTED)


def test_a_file_is_installed_only_if_it_is_the_published_one(tmp_path: Path, cache: Path) -> None:
    mine = tmp_path / "mine.onnx"
    for content in (b"", CONTENT[:-1], CONTENT + b"x", CONTENT[::-1]):
        mine.write_bytes(content)
        with pytest.raises(UsageError, match=r"mine\.onnx is not planted\.onnx"):
            install(PLANTED, mine)
    for path in (tmp_path / "no.onnx", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            install(PLANTED, path)
    assert left_in(cache) == []
    mine.write_bytes(CONTENT)
    link = tmp_path / "link.onnx"
    link.symlink_to(mine)
    assert install(PLANTED, link).read_bytes() == CONTENT
    assert not place(PLANTED).is_symlink()


def test_an_altered_file_of_the_cache_is_not_used(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(CONTENT)
    install(PLANTED, tmp_path / "mine").write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(UsageError, match="SHA-256 is another one; run: fer-edge faces fetch"):
        read_installed(PLANTED)
    assert not is_installed(PLANTED)


KILLED = """
import sys
from fer_edge.live import weights
from fer_edge.live.weights import Weights, fetch
planted = Weights("planted", "planted.onnx", "", sys.argv[1], int(sys.argv[2]), "MIT")
if sys.argv[4] == "write":
    write = weights.write_bytes
    def stopping(target, content):  # between the partial file and its name
        import os, pathlib
        replace = os.replace
        os.replace = lambda a, b: (print("there", flush=True), sys.stdin.read())
        write(target, content)
    weights.write_bytes = stopping
fetch(planted, sys.argv[3], on_part=lambda done: print("there", flush=True))
"""


@pytest.mark.parametrize("moment", ["receive", "write"])
def test_killed_in_the_middle_nothing_is_half_written_and_the_next_run_is_whole(
    moment: str, server: Callable[[Answer], str], cache: Path
) -> None:
    def half(request: BaseHTTPRequestHandler) -> None:
        sends(CONTENT[:40_000], len(CONTENT))(request)
        waits(request)

    address = server(half if moment == "receive" else sends(CONTENT))
    command = [sys.executable, "-c", KILLED, PLANTED.sha256, str(PLANTED.size), address, moment]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not place(PLANTED).exists()
    with pytest.raises(UsageError, match="not installed"):
        read_installed(PLANTED)
    assert fetch(PLANTED, server(sends(CONTENT))).read_bytes() == CONTENT
    assert left_in(cache) == ["planted.onnx"], "what the killed one left is cleared away"


def test_two_at_once_both_end_well(server: Callable[[Answer], str], cache: Path) -> None:
    address = server(sends(CONTENT))
    threads = [threading.Thread(target=fetch, args=(PLANTED, address)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert place(PLANTED).read_bytes() == CONTENT
    assert left_in(cache) == ["planted.onnx"]


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["faces", "fetch", *map(str, arguments)])
    return stop.value.code, *capsys.readouterr()


def test_the_command(
    server: Callable[[Answer], str],
    yunet: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UsageError, match="fer-edge faces fetch"):
        fer_edge.FaceFinder()
    address = server(sends(yunet.read_bytes(), YUNET.size))
    code, out, err = run("--url", address, "--json", capsys=capsys)
    row = json.loads(out)
    assert (code, err) == (0, "")
    assert row["fetched"] is True
    assert (row["sha256"], row["bytes"], row["licence"]) == (YUNET.sha256, 232_589, "MIT")
    assert Path(row["file"]).read_bytes() == yunet.read_bytes()
    fer_edge.FaceFinder().close()
    monkeypatch.setattr(module, "fetch", None)  # the file is there: nobody is asked
    code, out, err = run(capsys=capsys)
    assert (code, out) == (0, "")
    assert "is there already" in err
    shutil.rmtree(cache)
    code, out, err = run("--from", yunet, capsys=capsys)
    assert (code, out) == (0, "")
    assert row["file"] in err
    code, out, err = run("--from", yunet, "--url", address, capsys=capsys)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    code, out, err = run("--from", tmp_path / "no", capsys=capsys)
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_the_table_says_which_file_from_where_and_with_which_hash(yunet: Path) -> None:
    for name, entry in WEIGHTS.items():
        assert entry.name == name
        assert entry.url.startswith("https://")
        assert entry.url.endswith(entry.file)
        assert entry.licence
    content = yunet.read_bytes()
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (YUNET.sha256, YUNET.size)
    assert replace(YUNET) == YUNET
