"""``watch``: from frames to events, in Python and on the command line, and how it ends."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from watching import Kept, Pixels, Planted, Reel, always, face, kinds

import fer_edge
from fer_edge import Classifier, FaceFinder, UsageError
from fer_edge.benchmarks import camera
from fer_edge.cli import cli
from fer_edge.live.events import Event, Summary
from fer_edge.live.pipeline import LONGEST
from lab.camera_figures import repeated, watched


@pytest.fixture(scope="module")
def clf() -> Iterator[Classifier]:
    with fer_edge.load(threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def picture() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["watch", *map(str, arguments)])


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_events_are_those_of_a_plain_loop(clf: Classifier, yunet: Path, videos: Path) -> None:
    """Find, crop, classify and average, frame by frame, with nothing of ours but the classifier: one face, so no tracker."""
    import av
    import cv2

    features, times = [], []
    net = cv2.FaceDetectorYN.create(str(yunet), "", (320, 240), score_threshold=0.6)
    with av.open(str(videos / "again.mkv")) as container:
        for frame in container.decode(video=0):
            pixels = frame.to_ndarray(format="rgb24")
            small = cv2.cvtColor(cv2.resize(pixels, (320, 240), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
            _, faces = net.detect(small)
            x, y, w, h = (max(faces, key=lambda row: row[14])[:4] * 2).tolist()
            side = round(max(w, h))
            left, top = round(x + w / 2 - side / 2), round(y + h / 2 - side / 2)
            features.append(clf.features([pixels[top : top + side, left : left + side]])[0])
            times.append(frame.time)
    times = [time - times[0] for time in times]
    kept = Kept()
    with FaceFinder(yunet, longest=LONGEST) as finder:
        events = list(fer_edge.watch(str(videos / "again.mkv"), clf, finder, window=0.5, outputs=[kept]))
    main = max(
        {event.track for event in events if isinstance(event, Event)},
        key=lambda t: sum(state.track == t for step in kept.steps for state in step.tracks),
    )
    start = next(step.frame.time for step in kept.steps if step.tracks)
    checked = 0
    for step in kept.steps:
        for state in step.tracks:
            if state.track == main and state.prediction is not None:
                now = step.frame.time
                window = [f for f, t in zip(features, times, strict=True) if max(start, now - 0.5) <= t <= now]
                expected = clf.predict_features(np.mean(window, 0, keepdims=True))[0]
                assert list(state.prediction.scores.values()) == pytest.approx(list(expected.scores.values()), abs=0.02)
                checked += 1
    assert checked >= 70


def test_limits(clf: Classifier, picture: Pixels) -> None:
    reel = Reel([picture] * 50)
    events = fer_edge.watch(reel, clf, Planted({}), frames=7)
    summary = next(events)
    assert isinstance(summary, Summary)
    assert (summary.frames, reel.closed) == (7, 1), "closed before the last words, which somebody may take long to read"
    *_, summary = fer_edge.watch(Reel([picture] * 50), clf, Planted({}), seconds=1.0)
    assert summary.frames == 11, "0.0 to 1.0 s at 10 frames a second"


class Silent:
    """A live source that never delivers."""

    name, live, seconds, dropped = "silent", True, None, 0

    def __init__(self) -> None:
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        self._closed.wait()
        return iter(())

    def close(self) -> None:
        self._closed.set()


def test_a_source_that_never_delivers_ends_by_the_clock(clf: Classifier) -> None:
    (summary,) = fer_edge.watch(Silent(), clf, Planted({}), seconds=0.2)
    assert isinstance(summary, Summary)
    assert (summary.frames, summary.tracks, summary.latency_ms) == (0, 0, {})
    assert 0.1 <= summary.seconds < 5


@pytest.mark.parametrize("way", ["close", "break", "error"])
def test_what_is_closed_early_leaves_nothing(way: str, clf: Classifier, picture: Pixels) -> None:
    """Outputs get the ends and the summary; source and outputs are closed."""
    kept, reel = Kept(), Reel([picture] * 50)

    def look() -> None:
        events = fer_edge.watch(reel, clf, Planted(always(50, face(10, 10, 40))), outputs=[kept])
        for _ in events:
            if way == "close":
                events.close()
            elif way == "error":
                raise RuntimeError
            else:
                break

    if way == "error":
        with pytest.raises(RuntimeError):
            look()
    else:
        look()
    gc.collect()
    assert kinds(kept.events) == [("appear", 1), ("end", 1)]
    assert isinstance(kept.events[-1], Summary)
    assert (reel.closed > 0, kept.closed) == (True, 1)


def test_a_classifier_closed_in_the_middle_says_so(picture: Pixels) -> None:
    """After the last events."""
    planted = Planted(always(9, face(10, 10, 40)))
    told: list[Event | Summary] = []
    with fer_edge.load(threads=1) as own:
        events = fer_edge.watch(Reel([picture] * 9), own, planted)
        told.append(next(events))
        own.close()
        with pytest.raises(UsageError, match="classifier is closed"):
            told.extend(events)
    assert kinds(told) == [("appear", 1), ("end", 1)]
    assert isinstance(told[-1], Summary)


def test_an_output_that_fails_is_left_out(clf: Classifier, picture: Pixels, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and the others go on."""

    class Broken(Kept):
        name = "broken"

        def event(self, event: Event | Summary) -> None:
            raise OSError("the wire\nis cut")

    broken, kept = Broken(), Kept()
    planted = Planted(always(9, face(10, 10, 40)))
    events = list(fer_edge.watch(Reel([picture] * 9), clf, planted, outputs=[broken, kept]))
    assert kept.events == events
    assert ([event.event for step in broken.steps for event in step.events], broken.closed) == (["appear"], 1)
    assert capsys.readouterr().err == "broken has failed and is left out: the wire is cut\n"


def test_three_hundred_faces(clf: Classifier, picture: Pixels) -> None:
    many = [face(i % 20 * 50, i // 20 * 50, 40) for i in range(300)]
    large = np.zeros((750, 1000, 3), np.uint8)
    events = list(fer_edge.watch(Reel([large] * 5), clf, Planted(always(5, *many))))
    assert [sum(kind == wanted for kind, _ in kinds(events)) for wanted in ("appear", "end")] == [300, 300]
    summary = events[-1]
    assert isinstance(summary, Summary)
    assert (summary.tracks, summary.faces, summary.classified) == (300, 900, 900)


def test_boxes_that_make_no_sense_end_nothing(clf: Classifier, picture: Pixels) -> None:
    """A detector may see a face outside the picture, or of no size: it is followed, and not judged."""
    odd = [face(-500, 10, 40), face(10, 10, 0.01, eyes=20.0), face(50, 50, 40)]
    events = list(fer_edge.watch(Reel([picture] * 5), clf, Planted(always(5, *odd))))
    judged = {event.track for event in events if isinstance(event, Event) and event.label}
    summary = events[-1]
    assert isinstance(summary, Summary)
    assert (len(judged), summary.tracks, summary.classified) == (1, 3, 3)


def test_a_picture_of_one_pixel(clf: Classifier, yunet: Path) -> None:
    with FaceFinder(yunet) as finder:
        (summary,) = fer_edge.watch(Reel([np.zeros((1, 1, 3), np.uint8)] * 3), clf, finder)
    assert (summary.frames, summary.tracks) == (3, 0)


@pytest.mark.parametrize("kind", ["photo", "folder"])
def test_a_photo_is_for_predict(kind: str, portrait: Path, yunet: Path, tmp_path: Path) -> None:
    """Nobody can be followed in it, and a watch without a word would look like a photo without a face."""
    source = portrait if kind == "photo" else tmp_path
    (tmp_path / "a.png").write_bytes(portrait.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "fer_edge", "watch", str(source), "--detector", str(yunet), "--json"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert re.search(r"is one picture, .* predict --faces", line)


def test_an_engine_that_answers_with_nan(picture: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    with fer_edge.load(threads=1) as own:
        run = own._session.run  # type: ignore[union-attr]
        count = 0

        def sick(crop: Pixels) -> Any:
            nonlocal count
            count += 1
            feature, logits = run(crop)
            return feature * np.float32("nan" if count > 5 else 1), logits

        monkeypatch.setattr(own._session, "run", sick)
        told: list[Event | Summary] = []
        with pytest.raises(fer_edge.EngineError, match="NaN"):
            told.extend(fer_edge.watch(Reel([picture] * 9), own, Planted(always(9, face(10, 10, 40)))))
    assert kinds(told) == [("appear", 1), ("end", 1)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"window": -1.0}, "window must be"),
        ({"seconds": float("nan")}, "seconds must be"),
        ({"frames": 0}, "frames must be"),
        ({"source": 1.5}, "source must be"),
        ({"clf": "student48"}, "clf must be"),
    ],
)
def test_arguments_without_sense(arguments: dict[str, Any], says: str, clf: Classifier) -> None:
    with pytest.raises(UsageError, match=says):
        fer_edge.watch(**{"source": "clip.mp4", "clf": clf, "finder": Planted({}), **arguments})


# The command.


def test_json_is_one_event_a_line(videos: Path, yunet: Path) -> None:
    done = command(videos / "again.mkv", "--detector", yunet, "--json", "--threads", 1)
    assert done.exit_code == 0, done.output
    events = rows(done.stdout)
    names = ["event", "time", "frame", "track", "box", "label", "scores", "certain", "since"]
    assert all(list(row) == names for row in events[:-1])
    assert {row["event"] for row in events[:-1]} <= {"appear", "change", "end"}
    summary = events[-1]
    assert list(summary)[:5] == ["event", "frames", "dropped", "tracks", "seconds"]
    assert (summary["event"], summary["frames"], summary["dropped"]) == ("summary", 77, 0)
    assert summary["tracks"] == len({row["track"] for row in events[:-1]})
    assert list(summary["stages_ms"]) == ["decode", "find", "track", "crop", "engine", "judge", "event"]
    assert set(summary["latency_ms"]) == {"p50", "p99"}


def test_text_is_for_people(videos: Path, yunet: Path) -> None:
    done = command(videos / "again.mkv", "--detector", yunet, "--threads", 1)
    assert done.exit_code == 0, done.output
    first, *_, last = done.stdout.splitlines()
    assert "face 1" in first
    assert "appears, " in first
    assert last.startswith("(student48, openvino int8 on CPU, labels ferplus8")
    assert "77 frames in" in done.stdout


def test_no_event_without_a_face(videos: Path, yunet: Path) -> None:
    done = command(videos / "no_face.mp4", "--detector", yunet, "--json")
    (summary,) = rows(done.stdout)
    assert (summary["frames"], summary["faces"]) == (95, 0)


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("nothing.mp4", (), "nothing.mp4"),
        ("{videos}/again.mkv", ("--detector", "nothing.onnx"), "nothing.onnx"),
        ("{videos}/again.mkv", ("--detector", "{videos}/again.mkv"), "again.mkv"),
        ("{videos}/again.mkv", ("--detector", "{detector}", "--labels", "moods"), "moods"),
        ("{detector}", ("--detector", "{detector}"), "yunet"),
        ("{videos}/again.mkv", ("--detector", "{detector}", "--window", "nan"), "--window"),
    ],
)
def test_bad_input_is_one_line(source: str, options: tuple[str, ...], says: str, videos: Path, yunet: Path) -> None:
    arguments = [text.format(videos=videos, detector=yunet) for text in (source, "--detector", str(yunet), *options)]
    if "--detector" in options:
        del arguments[1:3]
    done = subprocess.run(
        [sys.executable, "-m", "fer_edge", "watch", *arguments], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, ""), done
    (line,) = [text for text in done.stderr.splitlines() if not text.startswith("[")]  # OpenCV's own words
    assert says in line
    assert line.startswith("Error: ")


@contextmanager
def started(videos: Path, yunet: Path, **how: Any) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "fer_edge", "watch", str(videos / "WolfgangLanger_Pexels.mp4")]
    options = ["--detector", str(yunet), "--json", "--threads", "1"]
    with subprocess.Popen([*command, *options], text=True, stderr=subprocess.PIPE, **how) as child:
        try:
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, "Terminated.")]
)
def test_a_signal_lets_the_last_words_out(number: int, status: int, word: str, videos: Path, yunet: Path) -> None:
    """Events are there at once, so that the first line says when to send it; an echo of the signal changes nothing."""
    with started(videos, yunet, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        first = json.loads(child.stdout.readline())
        child.send_signal(number)
        child.send_signal(number)
        began = time.monotonic()
        rest = rows(child.stdout.read())
        errors = child.stderr.read()
        assert child.wait(timeout=20) == status
    assert time.monotonic() - began < 4, "before the patience of the orderly end is over"
    assert first["event"] == "appear"
    assert (rest[-2]["event"], rest[-1]["event"]) == ("end", "summary")
    assert rest[-1]["frames"] < 472
    assert errors.splitlines()[-1] == word


def test_a_reader_that_goes_ends_it(videos: Path, yunet: Path) -> None:
    with started(videos, yunet, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.wait(timeout=30) == 141


def worked(pid: int) -> float:
    """Seconds of processor time of a process (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_reader_that_hangs_holds_no_signal(videos: Path, yunet: Path) -> None:
    """The pipe is full, nobody reads it: SIGTERM ends it all the same."""
    import fcntl

    into, out = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(out, False)
    full = 0
    while True:
        try:
            full += os.write(out, b"x" * 512)
        except BlockingIOError:
            break
    os.set_blocking(out, True)
    with started(videos, yunet, stdout=out) as child:
        os.close(out)
        times = [-1.0, worked(child.pid)]
        while times[-1] < 0.3 or times[-1] > times[-2]:
            time.sleep(0.3)
            times.append(worked(child.pid))
        assert child.poll() is None, "it waits for its reader"
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=20) == 143
    os.close(into)


ORDERLY = """
import os, signal, sys, threading, time
from fer_edge.process import orderly, stoppable
asked = threading.Event()
def send(*after):
    for seconds in after:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)
with stoppable(), orderly(asked.set, patience=%s):
    threading.Thread(target=send, args=%s, daemon=True).start()
    asked.wait()
    %s
    print("the last words")
"""


@pytest.mark.parametrize(
    ("patience", "signals", "block", "words"),
    [
        (20, (0.0,), "time.sleep(0.3)", "the last words\n"),
        (20, (0.0, 0.2), "time.sleep(0.6)", "the last words\n"),  # an echo
        (20, (0.0, 1.2), "time.sleep(20)", ""),
        (0.3, (0.0,), "os.read(os.pipe()[0], 1)", ""),
        (20, (0.0,), "raise ValueError", ""),
    ],
)
def test_an_orderly_end(patience: float, signals: tuple[float, ...], block: str, words: str) -> None:
    """The first signal lets the block go on to its end; a second one a second later, or the end of patience, does not."""
    code = ORDERLY % (patience, signals, block)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=15)
    assert (done.stdout, done.returncode) == (words, 1 if "raise" in block else 143), done.stderr


def test_three_thousand_frames_leave_nothing_behind(yunet: Path, tmp_path: Path) -> None:
    """As ``python -m lab.figures endurance`` looks at 100,000: memory, threads, descriptors, and the end by SIGTERM."""
    small = camera.write_clip(tmp_path / "small.mp4", 1, (160, 120), tile=110)
    found = watched(repeated(small, tmp_path / "long.mkv", 20_000), 3000, yunet, every=500, warm=1000)
    assert 3000 <= found["frames"] < 20_000
    assert (found["exit_status"], found["last"]) == (143, ["end", "summary"])
    assert found["every_track_ended"]
    assert found["growth"] < 0.02, found["resident_mb"]
    assert (len(found["threads"]), len(found["descriptors"])) == (1, 1), found


def test_what_the_page_shows_can_be_done(root: Path, videos: Path, yunet: Path, tmp_path: Path) -> None:
    """The Python of docs/watch.md, with a detector in the user's cache; and the example of a loop around OpenCV."""
    (tmp_path / "fer-edge" / "detectors").mkdir(parents=True)
    (tmp_path / "fer-edge" / "detectors" / yunet.name).symlink_to(yunet)
    (tmp_path / "clip.mp4").symlink_to(videos / "again.mkv")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(root)}
    (code,) = re.findall(r"```python\n(.*?)```", (root / "docs" / "watch.md").read_text(), re.DOTALL)
    loop = [str(root / "examples" / "opencv_loop.py"), "clip.mp4"]
    for command in (["-c", code], loop, [*loop, str(yunet), "out.mp4"]):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("appear") == done.stdout.count("end") >= 1
    assert (tmp_path / "out.mp4").stat().st_size > 10_000
