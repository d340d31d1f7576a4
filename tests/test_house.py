"""The house: who may import whom, how light the import is, what is public, and that nothing calls out."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fer_edge

ROOMS = ("converters", "runtimes", "benchmarks")
HEAVY = (
    "torch",
    "transformers",
    "openvino",
    "onnxruntime",
    "ai_edge_litert",
    "tflite_runtime",
    "cv2",
    "sklearn",
    "rich",
    "onnx",
    "nncf",
    "av",
    "paho",
)


def modules(root: Path) -> list[Path]:
    return [p for room in ("fer_edge", *ROOMS) for p in sorted((root / room).rglob("*.py"))]


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """(level, module) of every import; ``from . import x`` gives (1, x)."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, node.module)] if node.module else [(node.level, alias.name) for alias in node.names]
    return found


def star_violations(path: Path, source: str, root: Path) -> list[str]:
    """Imports of a room's file that the star forbids."""
    room, *inside = path.relative_to(root).parts
    wrong = []
    for level, module in imports(ast.parse(source)):
        parts = module.split(".")
        bare = level == 0 and parts[0] in ROOMS
        into_room = level == 0 and parts[0] == "fer_edge" and len(parts) > 1 and parts[1] in ROOMS
        if bare or into_room or level > len(inside):
            wrong.append(f"{room}/{'/'.join(inside)} imports {'.' * level}{module}")
    return wrong


def test_every_room_stands_on_the_ground_and_knows_no_other(root: Path) -> None:
    assert [v for p in modules(root) for v in star_violations(p, p.read_text(), root)] == []


@pytest.mark.parametrize(
    "line", ["import converters.text", "from fer_edge.runtimes import run_null", "from ...benchmarks import x"]
)
def test_the_star_rule_can_fail(root: Path, line: str) -> None:
    assert star_violations(root / "converters" / "student" / "x.py", line, root)


def test_ground_reaches_rooms_only_by_name(root: Path) -> None:
    """The name tables of the ground point at files that exist."""
    from fer_edge.cli import LABEL_COMMANDS, ROOM_COMMANDS
    from fer_edge.engines import ENGINES

    targets = [
        *(engine.adapter for engine in ENGINES.values()),
        *(where.partition(":")[0] for where, _ in [*ROOM_COMMANDS.values(), *LABEL_COMMANDS.values()]),
    ]
    for target in targets:
        file = Path(target.removeprefix("fer_edge.").replace(".", "/")).with_suffix(".py")
        assert (root / file).is_file() or (root / "fer_edge" / file).is_file(), target  # a room's, or the ground's own
    assert {f"run_{name}.py" for name in ENGINES} == {p.name for p in (root / "runtimes").glob("run_*.py")}


def test_import_is_light() -> None:
    code = f"import sys, fer_edge, fer_edge.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"


def test_public_names() -> None:
    assert sorted(fer_edge.__all__) == [
        "BundleError",
        "Classifier",
        "ConversionError",
        "EngineError",
        "Face",
        "FaceFinder",
        "FacePrediction",
        "FerEdgeError",
        "ImageError",
        "IntegrityError",
        "LabelError",
        "MissingExtraError",
        "Prediction",
        "SourceError",
        "UsageError",
        "__version__",
        "load",
        "sample_frames",
        "watch",
    ]
    assert all(hasattr(fer_edge, name) for name in fer_edge.__all__)
    assert all(
        issubclass(e, fer_edge.FerEdgeError)
        for n in fer_edge.__all__
        if isinstance(e := getattr(fer_edge, n), type) and n.endswith("Error")
    )


NO_SOCKETS = """
import socket, sys
def refuse(*a, **k):
    raise AssertionError("a socket was opened: %r" % (a,))
class Refused(socket.socket):
    connect = connect_ex = sendto = refuse
socket.socket = Refused
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = refuse
from fer_edge.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    sys.exit(end.code)
"""


NO_CONNECT = """
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int connect(int fd, const struct sockaddr *address, socklen_t length) {
    static const char text[] = "a socket was opened from native code\\n";
    (void)fd; (void)length;
    if (address->sa_family == AF_INET || address->sa_family == AF_INET6) {
        if (write(2, text, strlen(text)) < 0) abort();
        _exit(99);
    }
    return -1;
}
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which connect() ends the process, from C++ too; without a C compiler only Python is watched."""
    # nncf is silent under pytest, and onnxruntime where CI is set.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST") and k != "CI"}
    environment["HOME"] = str(tmp_path_factory.mktemp("home"))
    compiler = shutil.which("cc")
    if compiler is None:
        return environment
    folder = tmp_path_factory.mktemp("watch")
    (folder / "watch.c").write_text(NO_CONNECT)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "watch.so", folder / "watch.c"], check=True)
    return {**environment, "LD_PRELOAD": str(folder / "watch.so")}


@pytest.mark.parametrize(
    "command",
    [
        "predict openvino",
        "predict litert",
        "predict onnxruntime",
        "verify",
        "doctor",
        "convert openvino",
        "convert litert",
        "convert onnxruntime",
    ],
)
def test_nothing_calls_out(command: str, root: Path, portrait: Path, tmp_path: Path, watched: dict[str, str]) -> None:
    """No socket connects, in our code or in that of the engines and converters, in Python or in C++."""
    kind, _, runtime = command.partition(" ")
    arguments = {
        "predict": ["predict", str(portrait), "--runtime", runtime],
        "verify": ["verify"],
        "doctor": ["doctor"],
        "convert": [
            "convert",
            str(root / "converters/student/student48.safetensors"),
            "-o",
            str(tmp_path / "b"),
            "--runtime",
            runtime,
        ],
    }[kind]
    done = subprocess.run([sys.executable, "-c", NO_SOCKETS, *arguments], capture_output=True, text=True, env=watched)
    assert done.returncode == 0, done.stderr
    assert "a socket was opened" not in done.stdout + done.stderr
    assert list(Path(watched["HOME"]).iterdir()) == [], "nothing is left in HOME"


def test_the_native_socket_test_can_fail(watched: dict[str, str]) -> None:
    if "LD_PRELOAD" not in watched:
        pytest.skip("no C compiler to watch native code with")
    code = "import socket; socket.socket().connect(('127.0.0.1', 9))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, env=watched).returncode == 99


def test_the_socket_test_can_fail() -> None:
    code = NO_SOCKETS.replace("from fer_edge.cli import main", "socket.create_connection(('127.0.0.1', 9))")
    assert "a socket was opened" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
