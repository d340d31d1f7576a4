"""The command line as its users meet it: texts, JSON, exit statuses, and one line for every error."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from absence import without

import fer_edge
from fer_edge import console
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.cli import cli, main
from fer_edge.console import Command, fraction, printable
from fer_edge.engines import RUNTIMES, installed

SCRIPT = Path(sys.executable).with_name("fer-edge")
BOX = "168,56,112,112"
ENGINES = tuple(filter(installed, RUNTIMES))
FILES = tuple(sorted(p.relative_to(DEFAULT_BUNDLE).as_posix() for p in DEFAULT_BUNDLE.rglob("*") if p.is_file()))
PREDICTION_KEYS = ["image", "label", "scores", "runtime", "device", "precision"]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> list[dict]:  # type: ignore[type-arg]
        """Every line of stdout as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


def here(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run a command in this process: fast, and everything that Python prints is seen."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return Outcome(stop.value.code, captured.out, captured.err)


def shell(*arguments: object, env: dict[str, str] | None = None) -> Outcome:
    """Run the installed command: what engines print from C++ is seen too."""
    command = [str(SCRIPT), *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    done = subprocess.run(command, capture_output=True, timeout=120, env={**os.environ, **(env or {})})
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace"))


def assert_one_line(outcome: Outcome, *words: str) -> None:
    """Exit 2, nothing on stdout, one line on stderr that holds ``words`` and no traceback."""
    assert outcome.code == 2
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert outcome.err.startswith("Error: ")
    assert "Traceback" not in outcome.err
    assert "Error: unexpected" not in outcome.err, outcome.err
    for word in words:
        assert word in outcome.err


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command of the tree, the lazy ones too."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, (*path, name))


COMMANDS = tuple(commands(cli))
LEAVES = tuple(c for c in COMMANDS if not isinstance(c[1], click.Group))
IDS = [" ".join(path) or "fer-edge" for path, _ in COMMANDS]


def squeezed(text: str) -> str:
    """Without white space and line breaks, which click puts where the terminal ends."""
    return re.sub(r"\s+", "", text)


# Version and help


def test_version() -> None:
    done = shell("--version")
    assert (done.code, done.out, done.err) == (0, f"fer-edge {fer_edge.__version__}\n", "")


def test_the_promised_commands_are_there() -> None:
    promised = {"doctor", "info", "predict", "verify", "convert", "labels list", "labels add", "labels remove", "evaluate"}
    assert promised <= set(IDS)


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=IDS)
def test_help_tells_every_option(path: tuple[str, ...], command: click.Command, capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, *path, "--help")
    assert (done.code, done.err) == (0, "")
    assert here(capsys, *path, "-h") == done
    text = squeezed(done.out)
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert all(name in text for name in option.opts)
            assert squeezed(option.help or "") in text
            assert option.help or path[:1] == ("student",), f"{option.opts} of {path} has no help"


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_every_command_has_json_and_debug(path: tuple[str, ...], command: click.Command) -> None:
    options = {name for option in command.params for name in option.opts}
    assert {"--json", "--debug"} <= options, path


def test_groups_list_their_commands_with_a_whole_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for path, command in COMMANDS:
        if isinstance(command, click.Group):
            text = here(capsys, *path, "--help").out
            for name in command.list_commands(click.Context(command)):
                assert re.search(rf"^  {name} +\S", text, re.MULTILINE), (path, name)
    assert "..." not in here(capsys, "--help").out.partition("Commands:")[2]


@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "--help"], ["convert", "--help"], ["labels", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom fer_edge.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'openvino', 'nncf', 'ai_edge_litert', 'tflite_runtime', 'litert_torch',"
        " 'onnxruntime', 'onnx', 'sklearn', 'scipy', 'pandas', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# Every command alike


def arguments_of(line: str) -> list[str]:
    """An example's words after the program's name."""
    program, *words = shlex.split(line)
    assert program == "fer-edge"
    return words


def examples(command: click.Command) -> list[str]:
    """Whole lines; one that goes on in the next ends with a backslash."""
    assert isinstance(command, Command)
    return "\n".join(command.examples).replace("\\\n", " ").splitlines()


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=IDS)
def test_help_is_readable_in_eighty_columns_and_ends_with_an_example(
    path: tuple[str, ...], command: click.Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = here(capsys, *path, "--help").out
    assert max(map(len, text.splitlines())) <= 80
    head, _, end = text.partition("\nExample")
    assert head
    shown = [line.strip() for line in end.partition("\n")[2].splitlines()]
    assert isinstance(command, Command)
    assert shown == [line.strip() for line in command.examples] != []


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=IDS)
def test_an_example_is_a_command_that_can_be_given(
    path: tuple[str, ...], command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options and arguments are taken, where the files that it names are there."""
    monkeypatch.chdir(tmp_path)
    for line in examples(command):
        words = arguments_of(line)
        assert words[: len(path)] == list(path), line
        context = click.Context(cli, info_name="fer-edge")
        leaf: click.Command = cli
        while isinstance(leaf, click.Group):
            found = leaf.get_command(context, words.pop(0))
            assert found is not None, line
            leaf = found
        opts, rest, _ = leaf.make_parser(click.Context(leaf)).parse_args(list(words))
        assert rest == [], line
        for parameter in leaf.params:
            values = opts.get(parameter.name)
            for value in values if isinstance(values, (list, tuple)) else [values]:
                if isinstance(parameter.type, click.Path) and parameter.type.exists and isinstance(value, str):
                    (Path(value) if value.endswith("/") else Path(value).parent).mkdir(parents=True, exist_ok=True)
                    Path(value).touch()
        leaf.make_context(leaf.name, words, parent=context)


VALUED = [
    (path, option)
    for path, command in COMMANDS
    for option in command.params
    if isinstance(option, click.Option) and not option.multiple and not (option.is_flag and not option.secondary_opts)
]


@pytest.mark.parametrize(("path", "option"), VALUED, ids=[" ".join([*path, option.opts[0]]) for path, option in VALUED])
def test_an_option_given_twice_is_refused(
    path: tuple[str, ...], option: click.Option, capsys: pytest.CaptureFixture[str]
) -> None:
    """click takes the last one, and drops the others without a word."""
    for name in option.opts:
        twice = [name, option.secondary_opts[0]] if option.is_flag else [name, "1", f"{option.opts[-1]}=2"]
        assert_one_line(here(capsys, *path, *twice), name, "given twice", f"fer-edge {' '.join(path)} --help")


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", ""],
        ["predict", "x.png", ""],
        ["predict", "x.png", "-b", ""],
        ["verify", "--runtime="],
        ["bench", "-o", ""],
        ["bench", "--runtime", "litert", "--runtime", ""],
        ["convert", "x", "-o", ""],
        ["labels", "add", "b", "", "--text-encoder", "x"],
    ],
)
def test_an_empty_text_is_no_value(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """``-b "$BUNDLE"`` in a script where it is not set: it would mean the folder that one stands in."""
    command = " ".join(word for word in arguments[:2] if word in ("labels", "add") or word == arguments[0])
    assert_one_line(here(capsys, *arguments), "is empty", f"fer-edge {command} --help")


@pytest.mark.parametrize(
    ("path", "option", "needed"),
    [(path, option, needed) for path, command in LEAVES for option, needed in getattr(command, "needs", {}).items()],
)
def test_an_option_that_would_say_nothing_is_refused(
    path: tuple[str, ...], option: str, needed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = dict(LEAVES)[path]
    by_name = {param.name: param for param in command.params}
    assert isinstance(by_name[needed], click.Option)
    assert isinstance(by_name[option], click.Option)
    value = [] if by_name[option].is_flag else ["1"]
    typed = by_name[option].opts[0]
    assert_one_line(here(capsys, *path, typed, *value), f"{typed} goes with --{needed.replace('_', '-')}")


def test_members_of_an_npz_say_nothing_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_line(here(capsys, "evaluate", tmp_path, "--truth", "x"), "--truth", "npz")


@pytest.mark.parametrize(("option", "scenario"), [("--fps", "camera"), ("--faces", "camera"), ("--latency-bound", "server")])
def test_an_option_of_a_scenario_is_refused_without_it(
    option: str, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_line(here(capsys, "bench", option, "2"), option, f"--scenario {scenario}")


def test_a_line_that_ends_too_early_names_the_commands_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_line(here(capsys, "info", "-b"), "requires an argument", "fer-edge info --help")
    assert_one_line(here(capsys, "labels", "list", "--nope"), "--nope", "fer-edge labels list --help")


def test_flags_and_repeatable_options_may_come_twice(portrait: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here(capsys, "info", "--json", "--json").code == 0
    done = here(capsys, "predict", portrait, portrait, "--runtime", "null")
    assert (done.code, len(done.out.splitlines())) == (0, 2)


def test_the_short_and_the_other_ways_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert here(capsys, "-V") == here(capsys, "--version")
    command = [sys.executable, "-m", "fer_edge", "predict", "--nope"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert_one_line(Outcome(done.returncode, done.stdout, done.stderr), "--nope", "fer-edge predict --help")


PLACED = [
    path for path, command in LEAVES if any(p.name == "bundle" and isinstance(p, click.Argument) for p in command.params)
]


def test_a_bundle_may_be_named_by_b_everywhere() -> None:
    assert {("info",), ("verify",), ("bench",), ("labels", "list"), ("labels", "add")} <= set(PLACED)
    for path, command in LEAVES:
        if any(p.name == "bundle" for p in command.params):
            assert {"-b", "--bundle"} <= {name for option in command.params for name in option.opts}, path


@pytest.mark.parametrize("path", PLACED, ids=" ".join)
def test_two_different_bundles_are_refused(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"labels add": ["x.toml", "--text-encoder", "x"], "labels remove": ["moods"], "calibrate": ["faces/"]}
    last = arguments.get(" ".join(path), [])
    done = here(capsys, *path, "one", *last, "-b", "other")
    assert_one_line(done, "two bundles", "one", "other")


def test_b_is_the_positional_bundle(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    placed = here(capsys, "info", bundle, "--json")
    assert placed.json[0]["bundle"] == str(bundle)
    assert here(capsys, "info", "-b", bundle, "--json") == placed
    assert here(capsys, "info", bundle, "--bundle", f"{bundle}/", "--json") == placed
    words = tmp_path / "nowhere.toml"
    for forms in ([bundle, words], [words, "-b", bundle], [bundle, words, "-b", bundle]):
        done = here(capsys, "labels", "add", *forms, "--text-encoder", tmp_path)
        assert done.code == 2
        assert str(words) in done.err
    missing = here(capsys, "labels", "add", words, "--text-encoder", tmp_path)
    assert_one_line(missing, "Missing argument 'BUNDLE'", "fer-edge labels add --help")


# Texts that others wrote

SICK = "\x1b[31mred\x07\u202egnp.exe\u200b\x9b1m\r"


def test_printable_leaves_what_can_be_read_and_escapes_the_rest() -> None:
    for fine in ("", "plain", "Gesicht ü 脸 🙂", "a\\b"):
        assert printable(fine) == fine
    assert printable(SICK) == r"\x1b[31mred\x07\u202egnp.exe\u200b\x9b1m\r"
    assert printable("two\nlines\tand \udcff") == r"two\nlines\tand \udcff"
    assert printable("\U000e0041") == r"\U000e0041"


def test_nothing_that_others_wrote_reaches_the_terminal_raw(
    portrait: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, folder = tmp_path / f"{SICK}\nforged.png: anger 99.9%", tmp_path / f"b{SICK}"
    picture.write_bytes(portrait.read_bytes())
    bundle.rename(folder)
    (tmp_path / f"broken{SICK}.png").write_text("no picture")
    runs = [
        here(capsys, "predict", picture, tmp_path / f"broken{SICK}.png", "--runtime", "null"),
        here(capsys, "info", folder),
        here(capsys, "labels", "list", folder, "--labels" + SICK),
        here(capsys, "verify", tmp_path / f"none{SICK}"),
        here(capsys, "--debug", "verify", tmp_path / f"none{SICK}"),
        here(capsys, "predict", portrait, "--runtime", SICK),
    ]
    for done in runs:
        text = done.out + done.err
        assert r"\x1b[31mred\x07" in text or r"red\x07" in text, text
        assert all(line.isprintable() for line in text.split("\n")), text
    assert len(runs[0].out.splitlines()) == 1, "a picture is one line, whatever it is called"
    (row,) = here(capsys, "predict", picture, "--runtime", "null", "--json").json
    assert row["image"] == str(picture)


def test_only_the_console_writes_to_a_terminal(root: Path) -> None:
    """Everything else goes through its functions, which escape."""
    writers = re.compile(r"click\.s?echo|(?<![.\w])print\(|sys\.std(out|err)\.write|\.print_exc\(")
    rooms = ("fer_edge", "benchmarks", "converters", "runtimes")
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in (p for room in rooms for p in (root / room).rglob("*.py"))
        for line in path.read_text().splitlines()
        if writers.search(line) and not line.startswith("print(clf")  # the package's own example
    ]
    # The console itself, and children whose output is their parent's to read, some of them in another interpreter.
    allowed = (
        *("fer_edge/console.py", "fer_edge/process.py", "benchmarks/environment.py"),
        *("converters/targets/rknn_worker.py", "converters/targets/ethos_u.py: _VERSION"),
    )
    assert [line for line in found if not line.startswith(allowed)] == []


# Streams, signals, progress


def redirected(command: str, **environment: str) -> Outcome:
    """A command line of bash, where FER stands for the program."""
    program = f"{shlex.quote(sys.executable)} -m fer_edge"
    line = ["bash", "-o", "pipefail", "-c", command.replace("FER", program)]
    done = subprocess.run(line, capture_output=True, timeout=120, env={**os.environ, **environment})
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("buffering", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("command", ["--version", "info -h", "info", "info --json"])
def test_an_output_that_takes_nothing_is_one_line(command: str, buffering: str) -> None:
    full = redirected(f"FER {command} >/dev/full", PYTHONUNBUFFERED=buffering)
    assert_one_line(full, "standard output cannot be written: No space left on device")
    assert_one_line(redirected(f"FER {command} >&-", PYTHONUNBUFFERED=buffering), "standard output is closed")


def test_a_reader_that_has_gone_ends_a_command_quietly() -> None:
    """As Unix does: 128 + SIGPIPE, and not a word."""
    assert redirected("FER info --json | sleep 0") == Outcome(141, "", "")
    assert redirected("(sleep 1; FER info) | true") == Outcome(141, "", "")


def test_messages_that_nobody_can_read_cost_nothing() -> None:
    for where in ("2>&-", "2>/dev/full", "<&- 2>&-"):
        assert redirected(f"FER predict nowhere.png {where}").code == 2
        done = redirected(f"FER predict examples/astronaut.png --runtime null {where}")
        assert (done.code, len(done.out.splitlines())) == (0, 1), done.err


def test_without_a_folder_for_temporary_files(tmp_path: Path) -> None:
    code = (
        "import sys, tempfile, fer_edge.cli\n"
        "tempfile._candidate_tempdir_list = lambda: ['/nowhere']\n"  # / and the working folder are tried too
        "fer_edge.cli.main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, "convert", "clip", "-o", str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert_one_line(Outcome(done.returncode, done.stdout, done.stderr), "No usable temporary directory", "/nowhere")


def test_a_disk_that_is_full_in_the_middle_of_a_conversion(root: Path, tmp_path: Path) -> None:
    """Here by a limit of a file's size, which writers meet alike; LiteRT's own ended the process without a word."""
    source = shlex.quote(str(root / "converters" / "student" / "student48.safetensors"))
    command = f"ulimit -f 200; FER convert {source} -o {shlex.quote(str(tmp_path))}/b --runtime litert --precision fp32"
    done = redirected(command)
    assert done.code == 2, done.err
    assert done.err.splitlines()[-1] == f"Error: {tmp_path}/b cannot be written: File too large"
    assert not list(tmp_path.iterdir())


def test_too_little_memory_is_no_bug(
    portrait: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def choose(*_: object) -> object:
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr("fer_edge.classifier.choose_artefact", choose)
    assert_one_line(here(capsys, "predict", portrait), "not enough memory", "9 GiB")


def signalled(code: str, *signals: int, ignored: str = "", **environment: str) -> Outcome:
    """What a Python program leaves that gets these signals, each when it says that it is ready. ``ignored``: one that it
    is started without ears for, by coreutils' env: no function of ours runs in a fork of this process."""
    command = [*(["env", f"--ignore-signal={ignored}"] if ignored else []), sys.executable, "-c", code]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert child.stdout is not None
    for number in signals:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
    out, err = child.communicate(timeout=60)
    return Outcome(child.returncode, out, err)


SLOW_IMPORT = """
import time
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    {answer}
"""


@pytest.mark.parametrize("package", ["click", "numpy"])
@pytest.mark.parametrize("answer", ["raise", "raise ImportError('initialization failed')"])
def test_ctrl_c_while_something_is_imported(package: str, answer: str, tmp_path: Path) -> None:
    """Some packages turn it into a failed import."""
    (tmp_path / f"{package}.py").write_text(SLOW_IMPORT.format(answer=answer))
    code = "import sys; sys.argv[1:] = ['predict', 'x.png']; from fer_edge.__main__ import main; main()"
    done = signalled(code, signal.SIGINT, PYTHONPATH=str(tmp_path))
    assert done == Outcome(130, "", "Interrupted.\n")


STAGING = """
import time
from pathlib import Path
from fer_edge.bundle import staged
from fer_edge.process import stoppable
with stoppable(), staged(Path({target!r})) as folder:
    (folder / "model.bin").write_bytes(b"x" * 1000)
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("ready", flush=True)
        time.sleep(0.3)
        print("cleared away")
"""


@pytest.mark.parametrize(
    ("signals", "code", "words"),
    [
        ([signal.SIGINT], 130, "Interrupted.\n"),
        ([signal.SIGTERM], 143, "Terminated.\n"),
        ([signal.SIGTERM, signal.SIGTERM], 143, "Terminated.\n"),  # as ``timeout`` sends it: to the child and its group
        ([signal.SIGHUP], 129, "Terminated.\n"),
    ],
    ids=["Ctrl-C", "SIGTERM", "timeout", "hang-up"],
)
def test_a_signal_leaves_no_litter(signals: list[int], code: int, words: str, tmp_path: Path) -> None:
    done = signalled(STAGING.format(target=str(tmp_path / "bundle")), *signals)
    assert (done.code, done.err) == (code, words)
    assert done.out.endswith("cleared away\n")
    assert list(tmp_path.iterdir()) == []


def test_nohup_is_kept(tmp_path: Path) -> None:
    code = STAGING.format(target=str(tmp_path / "bundle")).replace("time.sleep(60)", "time.sleep(1)")
    done = signalled(code, signal.SIGHUP, ignored="HUP")
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "bundle").is_dir()


def test_ctrl_c_is_never_a_failed_check() -> None:
    """Whoever swallowed it: the command's own exit status says nothing then."""
    code = """
import os, signal, sys
from fer_edge.process import stoppable
with stoppable():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        while True: pass
    except KeyboardInterrupt:
        pass
    sys.exit(1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


def test_progress_off_a_terminal_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a thread: a step of ten minutes says nothing itself. Without rich, which a device has not."""
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(console, "PERIOD", 0.01)
    screen = io.StringIO()
    with fraction(screen, "measuring") as progress:
        progress(0.25, f"{SICK} litert")
        while len(screen.getvalue().splitlines()) < 3:
            time.sleep(0.01)
        progress(0.75)
        while "measuring: 75%" not in screen.getvalue():
            time.sleep(0.01)
    lines = screen.getvalue().splitlines()
    assert re.fullmatch(r".* litert: 25% \.\.\. 0:00:\d\d", lines[-2 if "25%" in lines[-2] else 2])
    assert all(line.isprintable() for line in lines)
    time.sleep(0.05)
    assert screen.getvalue().splitlines() == lines, "nothing after the end"


def test_what_is_quick_says_nothing_of_its_progress() -> None:
    assert console.PERIOD == 20.0
    screen = io.StringIO()
    with fraction(screen, "measuring") as progress:
        progress(1.0)
    assert screen.getvalue() == ""


# predict


def test_predict_text(portrait: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "predict", portrait, "--box", BOX)
    assert done.code == 0
    lines = done.out.splitlines()
    assert len(lines) == 1
    assert re.fullmatch(rf"{re.escape(str(portrait))}: happiness \d+\.\d%, \w+ \d+\.\d%, \w+ \d+\.\d%", lines[0])
    assert "ferplus8" in done.err, "what ran is told on stderr"


def test_predict_json_has_the_contracts_keys_and_the_classifiers_numbers(
    portrait: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = here(capsys, "predict", portrait, "--box", BOX, "--json")
    assert (done.code, done.err) == (0, "")
    (found,) = done.json
    assert list(found) == PREDICTION_KEYS
    assert sum(found["scores"].values()) == pytest.approx(1.0, abs=1e-5)
    assert found["label"] == max(found["scores"], key=found["scores"].get)
    with fer_edge.load() as clf:
        expected = clf.predict(portrait, box=(168, 56, 112, 112))
        assert list(found["scores"]) == list(clf.labels)
        assert found["scores"] == expected.scores
        assert (found["runtime"], found["device"], found["precision"]) == (clf.runtime, clf.device, clf.precision)
        assert found["image"] == str(portrait)


def test_margin_widens_the_box(portrait: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (plain,) = here(capsys, "predict", portrait, "--box", BOX, "--json").json
    (wide,) = here(capsys, "predict", portrait, "--box", BOX, "--margin", "0.25", "--json").json
    (same,) = here(capsys, "predict", portrait, "--box", "140,28,168,168", "--json").json
    assert wide["scores"] == same["scores"] != plain["scores"]


def test_several_boxes_give_several_answers(portrait: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each, with its box; never the last one alone."""
    boxes = ["400,300,150,90", BOX, "0,0,512,512"]
    options = [part for box in boxes for part in ("--box", box)]
    done = here(capsys, "predict", portrait, portrait, *options, "--json")
    assert done.code == 0
    assert [row["box"] for row in done.json] == 2 * [[float(v) for v in box.split(",")] for box in boxes]
    for row, box in zip(done.json, 2 * boxes, strict=True):
        (alone,) = here(capsys, "predict", portrait, "--box", box, "--json").json
        assert {name: value for name, value in row.items() if name != "box"} == alone
    told = here(capsys, "predict", portrait, *options).out.splitlines()
    assert [line.startswith(f"{portrait} [{box}]: ") for line, box in zip(told, boxes, strict=True)] == [True] * 3
    wrong = here(capsys, "predict", portrait, *options, "--box", "600,1,9,9", "--json")
    assert wrong.code == 2
    assert [("boxes[3]" in row["error"], row["image"]) for row in wrong.json] == [(True, str(portrait))]


def test_shape_box_is_the_stretch(portrait: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tall = ["predict", portrait, "--box", "160,40,128,150", "--json"]
    (square,), (stretched,) = here(capsys, *tall).json, here(capsys, *tall, "--shape", "box").json
    with fer_edge.load() as clf:
        assert square["scores"] == clf.predict(portrait, box=(149, 40, 150, 150)).scores
        assert stretched["scores"] == clf.predict(portrait, box=(160, 40, 128, 150), shape="box").scores


def test_an_image_from_standard_input(portrait: Path) -> None:
    command = [sys.executable, "-c", "from fer_edge.cli import main; main()", "predict"]
    for options in ([], ["--box", BOX]):
        done = subprocess.run([*command, "-", *options, "--json"], input=portrait.read_bytes(), capture_output=True)
        row = json.loads(done.stdout)
        assert (done.returncode, row.pop("image")) == (0, "-")
        expected = shell("predict", portrait, *options, "--json").json[0]
        assert row == {name: value for name, value in expected.items() if name != "image"}
    nothing = subprocess.run([*command, "-"], input=b"", capture_output=True, text=False)
    assert nothing.returncode == 2
    assert nothing.stderr.decode().splitlines() == ["Error: -: <stdin> has nothing to read"]


def test_a_larger_picture_needs_an_option(portrait: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "predict", portrait, "--max-pixels", "10000")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "raise max_pixels" in done.err
    assert here(capsys, "predict", portrait, "--max-pixels", "300000").code == 0


def test_labels_chooses_the_set(portrait: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = here(capsys, "predict", portrait, "--box", BOX, "--labels", "rafdb7", "--json").json
    assert list(found["scores"]) == ["happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"]
    assert sum(found["scores"].values()) == pytest.approx(1.0, abs=1e-5)
    assert found["label"] == "happiness"


@pytest.mark.parametrize("engine", [*ENGINES, "null"])
def test_each_runtime_by_name_with_clean_stdout(engine: str, portrait: Path) -> None:
    done = shell("predict", portrait, "--box", BOX, "--runtime", engine, "--threads", 1, "--json")
    assert done.code == 0
    (found,) = done.json
    assert found["runtime"] == engine
    assert list(found) == PREDICTION_KEYS
    if engine != "null":
        assert found["label"] == "happiness"
        assert found["precision"] == "int8"


def unreadable(folder: Path, portrait: Path) -> dict[str, str]:
    """Files that are no image -> a word of the error each one gives."""
    whole = portrait.read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    words = {"cut.png": "decoded", "text.jpg": "not an image", "empty.png": "empty", "folder.png": "is a folder"}
    return {**words, "missing.png": "does not exist"}


def test_one_unreadable_image_does_not_stop_the_others(
    tmp_path: Path, portrait: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = unreadable(tmp_path, portrait)
    images = [portrait, *(tmp_path / name for name in bad), portrait]
    done = here(capsys, "predict", *images, "--json")
    assert (done.code, done.err) == (2, "")
    assert [row["image"] for row in done.json] == list(map(str, images))
    for row, (name, word) in zip(done.json[1:-1], bad.items(), strict=True):
        assert list(row) == ["image", "error"]
        assert name in row["error"]
        assert word in row["error"]
        assert "\n" not in row["error"]
    assert list(done.json[0]) == list(done.json[-1]) == PREDICTION_KEYS

    told = here(capsys, "predict", *images)
    assert told.code == 2
    assert len(told.out.splitlines()) == 2
    errors = [line for line in told.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == len(bad)
    assert "Traceback" not in told.err


def test_a_box_outside_names_the_image_and_the_size(portrait: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--box", "512,500,100,100"], ["--box", "500,500,100,100", "--shape", "box"]):
        done = here(capsys, "predict", portrait, *options)
        assert done.code == 2
        assert str(portrait) in done.err
        assert "512 x 512" in done.err
    (row,) = here(capsys, "predict", portrait, "--box", "0,0,0,5", "--json").json
    assert "no area" in row["error"]


def test_json_survives_file_names_that_are_not_utf8(tmp_path: Path, portrait: Path) -> None:
    names = [b"\xff.png", "gesicht-ü-脸.png".encode()]
    try:
        for name in names:
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(portrait.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    paths = [os.fsencode(tmp_path) + b"/" + name for name in names]
    for environment in ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C"}):
        done = shell("predict", "--json", *paths, env=environment)
        assert done.code == 0, done.err
        assert [os.fsencode(row["image"]) for row in done.json] == paths
        text = shell("predict", *paths, env=environment)
        assert text.code == 0, text.err


BAD_PREDICTIONS = [
    (["--box", "1,2,3"], ["--box", "1,2,3", "x,y,width,height"]),
    (["--box", "a,b,c,d"], ["--box", "x,y,width,height"]),
    (["--margin", "-1"], ["--margin"]),
    (["--margin", "0.1"], ["--margin", "--box"]),
    (["--shape", "box"], ["--shape", "--box"]),
    (["--shape", "round", "--box", "1,2,3,4"], ["--shape", "square"]),
    (["--threads", "0"], ["--threads"]),
    (["--threads", "99999"], ["99999 threads", "1024"]),
    (["--labels", "nope"], ["'nope'", "ferplus8", "rafdb7"]),
    (["--runtime", "nope"], ["'nope'", *RUNTIMES]),
    (["--precision", "fp64"], ["--precision", "int8"]),
    (["--precision", "fp32"], ["no fp32 artefact", "int8"]),
    (["--execution-precision", "fp12"], ["fp12"]),
    (["--bundle", "/nowhere"], ["/nowhere", "not a bundle"]),
    (["--nope"], ["--nope", "fer-edge predict --help"]),
]


@pytest.mark.parametrize(("options", "words"), BAD_PREDICTIONS, ids=lambda value: " ".join(value))
def test_wrong_use_of_predict_is_one_line(
    options: list[str], words: list[str], portrait: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_line(here(capsys, "predict", portrait, *options), *words)
    assert_one_line(here(capsys, "predict", portrait, "--json", *options), *words)


@pytest.mark.parametrize("engine", [*ENGINES, "null"])
def test_an_unknown_device_is_one_line_that_names_the_engine(
    engine: str, portrait: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_line(here(capsys, "predict", portrait, "--runtime", engine, "--device", "TPU9"), engine, "TPU9")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope"], ["nope", "fer-edge --help"]),
        (["--nope"], ["--nope", "fer-edge --help"]),
        (["predict"], ["IMAGE", "fer-edge predict --help"]),
        (["evaluate"], ["DATA", "fer-edge evaluate --help"]),
        (["labels", "nope"], ["nope", "fer-edge labels --help"]),
        (["labels", "add"], ["fer-edge labels add --help"]),
        (["info", "a", "b"], ["b", "fer-edge info --help"]),
        (["doctor", "now"], ["now"]),
        (["info", "--runtime", "openvino"], ["--runtime"]),
        (["info", "/nowhere"], ["/nowhere", "does not exist"]),
        (["labels", "list", "/nowhere"], ["/nowhere", "does not exist"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_use_is_one_line(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_line(here(capsys, *arguments), *words)


def test_wrong_use_in_a_real_process() -> None:
    assert_one_line(shell("predict", "--nope", "x.png"), "--nope")
    assert_one_line(shell("info", "/nowhere"), "/nowhere")


def test_no_command_shows_the_help_and_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys)
    assert (done.code, done.out) == (2, "")
    assert "Commands:" in done.err


@pytest.mark.parametrize(
    "arguments",
    [["info", "/nowhere"], ["predict", "--nope"], ["predict", "/nowhere.png"], ["predict", "/nowhere.png", "--json"]],
    ids=" ".join,
)
@pytest.mark.parametrize("first", [True, False], ids=["debug first", "debug last"])
def test_debug_shows_the_traceback(arguments: list[str], first: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Traceback" not in here(capsys, *arguments).err
    done = here(capsys, *(["--debug", *arguments] if first else [*arguments, "--debug"]))
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err
    assert "Traceback" not in done.out


def test_a_bug_is_one_line_with_the_way_to_the_traceback(
    portrait: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def choose(*_: object) -> object:
        raise KeyError("one line\nsecond line")

    monkeypatch.setattr("fer_edge.classifier.choose_artefact", choose)
    done = here(capsys, "predict", portrait, "--runtime", "null")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert "KeyError" in done.err
    assert "--debug" in done.err
    assert "Traceback" in here(capsys, "predict", portrait, "--runtime", "null", "--debug").err


# info, labels, doctor


def test_info_text(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "info", bundle)
    assert (done.code, done.err) == (0, "")
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    size = f"{manifest['input']['color']} {manifest['input']['width']} x {manifest['input']['height']}"
    for word in (str(bundle), manifest["licence"], size, "ferplus8 (default)", *(f"{e} int8" for e in ENGINES)):
        assert word in done.out


def test_info_json(capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "info", "--json")
    assert (done.code, done.err) == (0, "")
    (found,) = done.json
    manifest = json.loads((DEFAULT_BUNDLE / "manifest.json").read_bytes())
    for key in ("name", "version", "licence", "digest", "encoder", "projection", "feature_dim", "default_labels", "card"):
        assert found[key] == manifest[key]
    assert found["bundle"] == str(DEFAULT_BUNDLE)
    assert found["label_sets"] == {s["name"]: s["labels"] for s in manifest["label_sets"]}
    assert found["text_encoder"] == manifest["text_encoder"]
    assert [(a["runtime"], a["precision"]) for a in found["artefacts"]] == [
        (a["runtime"], a["precision"]) for a in manifest["artefacts"]
    ]
    for told, stored in zip(found["artefacts"], manifest["artefacts"], strict=True):
        assert told["bytes"] == sum((DEFAULT_BUNDLE / f["path"]).stat().st_size for f in stored["files"])
        assert told["parity"] == stored["parity"]


def test_info_card(capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "info", "--card")
    card = json.loads((DEFAULT_BUNDLE / "manifest.json").read_bytes())["card"]
    assert (done.code, done.out, done.err) == (0, card + "\n", "")
    assert here(capsys, "info", "--card", "--json").json[0]["card"] == card


def test_labels_list(capsys: pytest.CaptureFixture[str]) -> None:
    text = here(capsys, "labels", "list")
    assert text.code == 0
    certain = r"certain from 0\.\d+ +happiness, sadness, .*"
    assert re.search(rf"^ferplus8 \(default\) +{certain}, contempt$", text.out, re.MULTILINE)
    assert re.search(rf"^rafdb7 +{certain}, fear$", text.out, re.MULTILINE)

    done = here(capsys, "labels", "list", "--json")
    assert (done.code, done.err) == (0, "")
    (sets,) = done.json
    assert [s["name"] for s in sets] == ["ferplus8", "rafdb7"]
    assert [s["default"] for s in sets] == [True, False]
    for one in sets:
        assert list(one["prompts"]) == one["labels"]
        assert all(prompts and all(map(str.strip, prompts)) for prompts in one["prompts"].values())


def test_doctor_json(capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "doctor", "--json")
    assert (done.code, done.err) == (0, "")
    (found,) = done.json
    assert set(found) == {
        "fer_edge", "python", "system", "cpu", "cores", "usable_cores", "features", "note", "engines", "missing_extras",
        "warnings",
    }  # fmt: skip
    assert found["fer_edge"] == fer_edge.__version__
    assert 1 <= found["usable_cores"] <= found["cores"]
    assert [e["runtime"] for e in found["engines"]] == list(RUNTIMES)
    for engine in found["engines"]:
        assert set(engine) == {"runtime", "ready", "engine", "devices", "cure", "failing"}
        if engine["runtime"] in ENGINES:
            assert engine["ready"]
            assert re.search(r"\d+\.\d+", engine["engine"])
            assert engine["devices"][0] == "CPU"
            assert engine["cure"] == ""


def test_doctor_text_tells_engines_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "doctor")
    assert done.code == 0
    for engine in ENGINES:
        assert re.search(rf"^{engine} +\S.* CPU", done.out, re.MULTILINE)


# verify


def test_verify_passes_the_embedded_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "verify")
    assert done.code == 0, done.out
    assert done.out.splitlines()[-1].startswith("Good: ")
    for engine in ENGINES:
        assert re.search(rf"^{engine} int8 +ok ", done.out, re.MULTILINE)


def test_verify_json() -> None:
    done = shell("verify", "--json")
    assert done.code == 0, done.out
    (found,) = done.json
    assert list(found) == ["bundle", "digest", "ok", "files", "artefacts", "bars"]
    assert found["bars"]["int8"] == {"centred_cosine": 0.95, "self_retrieval": 0.95, "top1_agreement": 0.9}
    assert (found["ok"], found["files"]) == (True, [])
    assert {row["runtime"] for row in found["artefacts"]} >= set(ENGINES)
    for row in found["artefacts"]:
        assert set(row) == {
            "runtime", "precision", "status", "problem", "engine", "device", "execution_precision", "parity",
        }  # fmt: skip
        if row["runtime"] in ENGINES:
            assert (row["status"], row["problem"]) == ("ok", "")
            assert set(row["parity"]) >= {"centred_cosine", "self_retrieval", "top1_agreement", "score_difference"}
            assert row["parity"]["finite"] is row["parity"]["repeatable"] is True


def test_labels_remove(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "labels", "remove", bundle, "ferplus8", "--json")
    assert (done.code, done.out) == (2, "")
    assert "'ferplus8' is the default label set" in done.err
    assert len(done.err.splitlines()) == 1
    done = here(capsys, "labels", "remove", bundle, "rafdb7", "--json")
    assert done.code == 0
    assert done.json == [{"bundle": str(bundle), "name": "rafdb7", "label_sets": ["ferplus8"]}]
    done = here(capsys, "labels", "remove", "-b", bundle, "rafdb7")
    assert done.code == 2
    assert "has no label set 'rafdb7'; it has ferplus8" in done.err
    assert here(capsys, "labels", "remove", "ferplus8").code == 2  # no bundle is changed that nobody named


@pytest.mark.parametrize("engine", ENGINES)
def test_verify_one_runtime(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "verify", "--runtime", engine, "--json")
    assert done.code == 0
    assert [row["runtime"] for row in done.json[0]["artefacts"]] == [engine]


@pytest.mark.parametrize("file", FILES)
def test_verify_sees_one_flipped_byte(file: str, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((bundle / file).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / file).write_bytes(content)

    done = here(capsys, "verify", bundle, "--runtime", ENGINES[0], "--json")
    assert done.code == 1
    (found,) = done.json
    assert found["ok"] is False
    assert len(found["files"]) == 1
    assert str(bundle / file) in found["files"][0]
    assert "altered" in found["files"][0]

    told = here(capsys, "verify", bundle, "--runtime", ENGINES[0])
    assert told.code == 1
    assert told.out.count(str(bundle / file)) == 1
    assert told.out.splitlines()[-1].startswith("Failed: ")
    assert "Traceback" not in told.err


@pytest.mark.parametrize("file", [f for f in FILES if f != "manifest.json"])
def test_verify_sees_a_missing_file(file: str, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / file).unlink()
    done = here(capsys, "verify", bundle, "--runtime", ENGINES[0], "--json")
    assert done.code == 1
    (problem,) = done.json[0]["files"]
    assert problem.startswith(f"{bundle / file} is missing from the bundle; expected ")


def test_verify_sees_several_altered_files_at_once(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in ("golden.npz", "labels/rafdb7.npz", "text_projection.npy"):
        with (bundle / file).open("ab") as stream:
            stream.write(b"\0")
    (found,) = here(capsys, "verify", bundle, "--json").json
    assert len(found["files"]) == 3


def test_verify_refuses_what_is_no_bundle(tmp_path: Path, portrait: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "nowhere", portrait):
        assert_one_line(here(capsys, "verify", path), str(path), "not a bundle")
        assert_one_line(here(capsys, "verify", path, "--json"), str(path), "not a bundle")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--runtime", "nope"], ["'nope'"]),
        (["--runtime", "null"], ["no artefact for null", "int8"]),
        (["--precision", "fp32"], ["no fp32 artefact", "int8"]),
        (["--runtime", ENGINES[0] if ENGINES else "openvino", "--precision", "fp16"], ["no fp16 artefact for"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_verify_of_artefacts_that_are_not_there_is_wrong_use(
    options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_line(here(capsys, "verify", *options), *words)


def test_verify_on_a_device_that_is_not_there_fails(capsys: pytest.CaptureFixture[str]) -> None:
    done = here(capsys, "verify", "--device", "TPU9", "--json")
    assert done.code == 1
    for row in done.json[0]["artefacts"]:
        if row["runtime"] in ENGINES:
            assert row["status"] == "refused"
            assert "TPU9" in row["problem"]


def test_verify_without_an_engine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = RUNTIMES
    without(monkeypatch, first)
    if set(others) & set(ENGINES):
        done = here(capsys, "verify", "--json")
        assert done.code == 0
        row = next(row for row in done.json[0]["artefacts"] if row["runtime"] == first)
        assert row["status"] == "no engine"
        assert f"pip install 'fer-edge[{first}]'" in row["problem"]
        assert "for want of an engine" in here(capsys, "verify").out
    for name in others:
        without(monkeypatch, name)
    done = here(capsys, "verify")
    assert done.code == 1
    assert "nothing could be checked" in done.out.splitlines()[-1]
    assert_one_line(here(capsys, "verify", "--runtime", first), f"pip install 'fer-edge[{first}]'")
    assert_one_line(here(capsys, "predict", "x.png"), "pip install 'fer-edge[")
