"""Was it faster? Two runs compared, two bundles or builds in turns: verdicts that must neither invent a difference nor
miss one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measuring import command, wrong_bundle

import fer_edge
from fer_edge.benchmarks import interleave as turning
from fer_edge.benchmarks import runs
from fer_edge.benchmarks.bench import Plan, only
from fer_edge.benchmarks.compare import compare, differences, lost, ratio_of_medians
from fer_edge.benchmarks.interleave import judge
from fer_edge.benchmarks.results import Configuration, Failure, Results, Row, latency
from fer_edge.benchmarks.worker import Served
from fer_edge.classifier import DEFAULT_BUNDLE


def slower(results: Results, factor: float, scenario: str = "single-stream") -> Results:
    """The same run with every sample of a scenario ``factor`` times as long."""
    rows = [
        replace(row, samples=tuple(tuple(v * factor for v in part) for part in row.samples))
        if row.scenario == scenario
        else row
        for row in results.rows
    ]
    return replace(results, rows=tuple(rows))


def steady(results: Results) -> Results:
    """The run as a quiet machine would have given it: the same noise around one median in every process."""
    noise = np.random.default_rng(0).lognormal(0, 0.03, (3, 400))
    rows = [
        replace(row, samples=tuple(map(tuple, row.latency_ms.p50 * noise)), reference_ms=(1.0,) * 3) for row in results.rows
    ]
    return replace(results, rows=tuple(rows))


def test_compare_tells_slower_from_noise(run: Results) -> None:
    a = steady(run)
    assert {c.verdict for c in compare(a, a)} == {"within noise"}
    found = compare(a, slower(a, 1.1))
    for c in found:
        assert c.verdict == ("slower" if c.scenario == "single-stream" else "within noise")
        if c.scenario == "single-stream":
            assert c.ratio == pytest.approx(1.1)
            assert c.interval[0] <= 1.1 <= c.interval[1]
            assert (c.answer(0.05), c.answer(0.15)) == ("regression", "no regression")
        assert c.noise < 0.05
    assert {c.verdict for c in compare(slower(a, 1.1), a) if c.scenario == "single-stream"} == {"faster"}


def test_a_machine_that_is_slow_for_seconds_is_no_slower_build(run: Results) -> None:
    """Two threads that shared a processor for most of a run: its median is slower by half, its best moments are not."""
    a = steady(run)

    def shared(part: tuple[float, ...], factor: float) -> tuple[float, ...]:
        return (*(v * factor for v in part[: len(part) * 3 // 4]), *part[len(part) * 3 // 4 :])

    def b(factor: float) -> Results:
        return replace(a, rows=tuple(replace(r, samples=tuple(shared(p, factor) for p in r.samples)) for r in a.rows))

    for c in (*compare(a, b(1.45)), *compare(b(1.45), a)):
        assert (c.verdict, abs(np.log(c.ratio)) > 0.3) == ("within noise", True)
        assert c.best_ratio == pytest.approx(1, abs=0.05)
        assert c.answer(0.2) == "inconclusive", "a median that is slower by half is no proof of the contrary either"
    worse = slower(b(1.45), 1.1)
    assert {c.verdict for c in compare(b(1.45), worse) if c.scenario == "single-stream"} == {"slower"}


def test_what_the_machine_itself_did_is_noise(run: Results) -> None:
    """A machine that was 10% slower in the second run, by its own reference, explains 10%."""
    a = steady(run)
    b = slower(a, 1.1)
    drifted = replace(b, rows=tuple(replace(row, reference_ms=(1.12,) * 3) for row in b.rows))
    assert {c.verdict for c in compare(a, drifted)} == {"within noise"}
    assert {c.verdict for c in compare(a, b, again=slower(a, 1.12)) if c.scenario == "single-stream"} == {"within noise"}


def test_handing_work_to_another_processor_counts_for_several_threads(run: Results) -> None:
    """It may take half as long again for minutes, while one processor alone is as fast as ever."""
    a = steady(run)

    def with_threads(results: Results, threads: int, hands: float) -> Results:
        rows = [
            replace(r, configuration=replace(r.configuration, threads=threads), handover_us=(hands,) * 3)
            for r in results.rows
        ]
        return replace(results, rows=tuple(rows))

    for threads, expected in ((2, {"within noise"}), (1, {"slower"})):
        pair = with_threads(a, threads, 27.0), with_threads(slower(a, 1.4), threads, 40.5)
        assert {c.verdict for c in compare(*pair) if c.scenario == "single-stream"} == expected
    unknown = with_threads(a, 2, 27.0), slower(with_threads(a, 2, 27.0), 1.4)
    assert {c.verdict for c in compare(*unknown) if c.scenario == "single-stream"} == {"slower"}


def test_the_bootstrap_interval_covers_the_ratio() -> None:
    """Of 100 pairs of runs whose processes differ by 3%, the 95% interval leaves out the true ratio in few."""
    generator = np.random.default_rng(1)
    missed = 0
    for k in range(100):
        a, b = ([tuple(f * generator.lognormal(0, 0.05, 100)) for f in generator.lognormal(0, 0.03, 6)] for _ in range(2))
        ratio, (low, high) = ratio_of_medians(a, b, seed=k)
        assert low <= ratio <= high
        missed += not low <= 1 <= high
    assert missed <= 15


def blocks(effect: float, generator: np.random.Generator, rounds: int = 6) -> Any:
    """Block medians as they come: processes 2% apart, a machine that drifts by 20%, 3% of noise in a block."""
    machine = generator.lognormal(0, 0.2, (rounds, 40, 1))
    process = generator.lognormal(0, 0.02, (rounds, 1, 3))
    return machine * process * generator.lognormal(0, 0.03, (rounds, 40, 3)) * np.array([1.0, 1.0, effect])


def test_in_turns_ten_percent_are_found_and_nothing_is_invented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turning, "DRAWS", 400)
    generator = np.random.default_rng(2)
    same = [judge(blocks(1.0, generator), {}, {}).verdict for _ in range(100)]
    more = [judge(blocks(1.1, generator), {}, {}).verdict for _ in range(100)]
    assert same.count("within noise") >= 95
    assert more.count("slower") >= 95
    found = judge(blocks(1.1, generator), {}, {})
    assert found.interval[0] <= found.ratio <= found.interval[1]
    assert found.b_ms / found.a_ms == pytest.approx(found.ratio, rel=0.1)


def test_compare_on_the_command_line(run: Results, tmp_path: Path) -> None:
    files = {}
    for name, results in (("a", steady(run)), ("b", slower(steady(run), 1.2))):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(results.as_json()))
    worse = command(files["a"], files["b"], what="compare")
    assert worse.exit_code == 1
    assert "Regression: 3 of 12 are slower" in worse.output
    assert command(files["a"], files["b"], "--tolerance", 0.3, what="compare").exit_code == 0
    better = command(files["b"], files["a"], "--json", what="compare")
    assert better.exit_code == 0
    found = json.loads(better.stdout)
    assert [c["verdict"] for c in found["comparisons"]].count("faster") == 3
    assert (found["answer"], found["regressions"], found["inconclusive"]) == ("no regression", 0, 0)


def test_noise_larger_than_the_tolerance_is_no_proof(run: Results, tmp_path: Path) -> None:
    """Exit status 3: neither a regression nor none. What is slower beyond the noise is a regression all the same, what is
    faster is none, and a tolerance above the noise settles it."""
    a = steady(run)
    noisy = [
        replace(row, samples=tuple(tuple(v * f for v in p) for f, p in zip((1.0, 1.07, 1.15), row.samples, strict=True)))
        if row.configuration.runtime == "litert" and row.scenario == "single-stream"
        else row
        for row in a.rows
    ]
    a = replace(a, rows=tuple(noisy))
    files = written(tmp_path, a=a, b=slower(a, 1.04), slow=slower(a, 1.4), fast=slower(a, 0.6))

    def compared(a: Path, b: Path, *options: object) -> tuple[int, str, list[str]]:
        result = command(a, b, "--json", *options, what="compare")
        found = json.loads(result.stdout)
        answers = [c["answer"] for c in found["comparisons"]]
        assert found["inconclusive"] == answers.count("inconclusive")
        assert found["regressions"] == answers.count("regression")
        for c in found["comparisons"]:
            if c["verdict"] == "within noise":
                assert (c["answer"] == "inconclusive") == (c["noise"] > found["tolerance"])
        return result.exit_code, found["answer"], answers

    first, b, slow, fast = files
    for other in (first, b):
        code, answer, answers = compared(first, other)
        assert (code, answer, answers.count("inconclusive")) == (3, "inconclusive", 1)
        assert compared(first, other, "--tolerance", 0.2)[:2] == (0, "no regression")
    code, answer, answers = compared(first, slow)
    assert (code, answer, answers.count("regression")) == (1, "regression", 3)
    assert compared(first, fast)[:2] == (0, "no regression")
    text = command(first, b, what="compare")
    assert text.exit_code == 3
    assert "Inconclusive: in 1 of 12 noise of up to 15" in text.output
    assert "No regression" not in text.output
    assert text.output.count("inconclusive") == 1
    (row,) = (line for line in text.output.splitlines() if line.endswith("inconclusive"))
    assert row.startswith("litert int8")
    said = " ".join(command("--help", what="compare").output.split())
    assert "3: inconclusive, because noise is larger than --tolerance" in said


def test_noise_that_only_an_interval_shows_is_noise_too(run: Results) -> None:
    """Processes alike, but few samples that scatter: the floor is low, and nobody knows the ratio."""
    scattered = np.random.default_rng(3).lognormal(0, 0.4, (3, 24))
    scattered /= np.median(scattered, axis=1, keepdims=True)
    rows = [replace(row, samples=tuple(map(tuple, scattered)), reference_ms=(1.0,) * 3) for row in run.rows]
    a = replace(run, rows=tuple(rows))
    for c in compare(a, a):
        assert (c.verdict, c.floor) == ("within noise", 0.02)
        assert (c.noise > 0.05, c.answer(0.05)) == (True, "inconclusive")


def test_the_medians_of_compare_are_named_apart_from_those_of_bench(run: Results, tmp_path: Path) -> None:
    """A process that was slow and so gave few samples counts as much as another in ``compare``, and less in ``bench``."""
    uneven = [
        replace(row, samples=((1.0,) * 50, (1.1,) * 40, (9.0,) * 5), latency_ms=latency([1.0] * 50 + [1.1] * 40 + [9.0] * 5))
        for row in run.rows
    ]
    file = written(tmp_path, a=replace(run, rows=tuple(uneven)))[0]
    found = json.loads(command(file, file, "--json", what="compare").stdout)
    for c in found["comparisons"]:
        assert (c["a_ms"], c["b_ms"], c["a_p50_ms"], c["b_p50_ms"]) == (1.1, 1.1, 1.0, 1.0)
    text = command(file, file, what="compare").output
    assert "A process ms" in text
    assert "A ms" not in text
    assert "bench's p50 is that of all samples" in text


def test_a_build_that_fails_or_answers_wrongly_is_no_faster_one(run: Results, tmp_path: Path) -> None:
    a = steady(run)
    (broken,) = {row.configuration for row in a.rows if row.configuration.runtime == "litert"}
    kept = tuple(row for row in a.rows if row.configuration != broken)
    b = replace(a, rows=kept, failures=(Failure(broken, "the driver is gone"),))
    bad = replace(a.rows[0], parity={**a.rows[0].parity, "status": "miss", "problem": "centred cosine 0.1"})
    files = {}
    for name, results in (("a", a), ("b", b), ("c", replace(a, rows=(bad, *a.rows[1:])))):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(results.as_json()))
    gone = command(files["a"], files["b"], what="compare")
    assert gone.exit_code == 1
    assert "Lost in B: litert int8, 1 thread: the driver is gone" in gone.output
    wrong = command(files["a"], files["c"], "--json", what="compare")
    assert wrong.exit_code == 1
    assert "centred cosine 0.1" in json.loads(wrong.stdout)["wrong"][0]
    assert command(files["b"], files["a"], what="compare").exit_code == 0, "what A lacked is no loss"


def test_what_b_did_not_measure_is_lost_unless_on_purpose(run: Results, tmp_path: Path) -> None:
    """An engine that is no longer installed is no failure of B's run, and yet a loss."""
    a = steady(run)
    b = replace(a, rows=tuple(row for row in a.rows if row.configuration.runtime != "litert"))
    files = {}
    for name, results in (("a", a), ("b", b)):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(results.as_json()))
    gone = command(files["a"], files["b"], what="compare")
    assert gone.exit_code == 1
    assert "Lost in B: litert int8, 1 thread: not measured in B" in gone.output
    assert command(files["a"], files["b"], "--partial", what="compare").exit_code == 0
    assert command(files["b"], files["a"], what="compare").exit_code == 0


def test_of_a_ladder_what_failed_in_both_runs_is_no_loss(run: Results) -> None:
    """Another bundle's failure is not this one's."""
    a = steady(run)
    elsewhere = replace(a.rows[0].configuration, bundle="/elsewhere/second")
    ladder = replace(a, failures=(Failure(elsewhere, "no such operation"),))
    assert lost(ladder, ladder) == []
    copies = [replace(row, configuration=replace(row.configuration, bundle="/elsewhere/second")) for row in a.rows]
    whole = replace(a, rows=(*a.rows, *copies))
    (said,) = lost(whole, replace(whole, rows=tuple(_without(whole, elsewhere)), failures=ladder.failures))
    assert said.startswith("second, ")
    assert said.endswith("no such operation")


def _without(results: Results, configuration: Configuration) -> list[Row]:
    return [row for row in results.rows if row.configuration != configuration]


def test_one_noisy_engine_hides_nothing_of_another(run: Results) -> None:
    """Offline runs in one process: its noise is that of its configuration's other processes, not of another engine's."""
    a = steady(run)
    lonely = [row if row.scenario == "single-stream" else replace(row, samples=row.samples[:1]) for row in a.rows]
    noisy = [
        replace(row, samples=tuple(tuple(v * f for v in part) for f, part in zip((1.0, 1.2, 1.5), row.samples, strict=True)))
        if row.configuration.runtime == "onnxruntime" and row.scenario == "single-stream"
        else row
        for row in lonely
    ]
    a = replace(a, rows=tuple(noisy))
    found = {
        c.configuration["runtime"]: c.verdict for c in compare(a, slower(a, 1.35, "offline")) if c.scenario == "offline"
    }
    assert found == {"openvino": "slower", "litert": "slower", "onnxruntime": "within noise"}


def test_what_else_differs_is_said(run: Results) -> None:
    a = steady(run)
    assert differences(a, a) == ["server is not compared: its latencies are those at each run's own highest rate"]
    computed = [replace(row, execution_precision="f32") if row.configuration.runtime == "litert" else row for row in a.rows]
    other = {**a.environment, "cpu": "Cortex-A76", "engines": {**a.environment["engines"], "litert": "ai-edge-litert 9.9"}}
    asked = {**a.extras, "run": {**a.extras["run"], "seconds": 2.0}}
    b = replace(a, rows=tuple(computed), environment=other, extras=asked)
    notes = "\n".join(differences(a, b))
    assert f"processor: {a.environment['cpu']} in A, Cortex-A76 in B" in notes
    assert ", ai-edge-litert 9.9" in notes
    assert "litert int8, 1 thread computed in" in notes
    assert "length of the runs: seconds 0.05, mlperf False in A, seconds 2.0, mlperf False in B" in notes
    assert len(compare(a, b)) == len(compare(a, a)), "an engine's own words do not unpair a row"


def test_one_process_alone_proves_little(run: Results) -> None:
    """6% between two single processes is no difference while nobody knows how far processes lie apart; with three it is."""
    a = steady(run)
    lonely = replace(a, rows=tuple(replace(row, samples=row.samples[:1]) for row in a.rows))
    assert {c.verdict for c in compare(lonely, slower(lonely, 1.06))} == {"within noise"}
    assert "slower" in {c.verdict for c in compare(a, slower(a, 1.06))}
    mixed = replace(a, rows=tuple(r if r.scenario == "single-stream" else replace(r, samples=r.samples[:1]) for r in a.rows))
    found = compare(mixed, slower(mixed, 1.06, "offline"))
    assert "slower" in {c.verdict for c in found if c.scenario == "offline"}, "single-stream's processes tell the noise"


def test_a_cameras_load_and_a_servers_rate_are_not_mixed_up(run: Results) -> None:
    a = steady(run)
    other = [replace(r, details={**r.details, "faces": 4}) if r.scenario == "camera" else r for r in a.rows]
    scenarios = {c.scenario for c in compare(a, replace(a, rows=tuple(other)))}
    assert scenarios == {"single-stream", "offline", "multi-stream"}


def test_of_several_bundles_each_is_compared(run: Results) -> None:
    a = steady(run)
    copies = [replace(row, configuration=replace(row.configuration, bundle="/elsewhere/second")) for row in a.rows]
    two = replace(a, rows=(*a.rows, *copies))
    assert len(compare(two, two)) == 2 * len(compare(a, a))
    moved = replace(a, rows=tuple(copies))
    assert len(compare(a, moved)) == len(compare(a, a)), "one bundle in each run: they are what is compared"
    assert lost(a, moved) == []


def test_two_runs_without_a_common_row(run: Results) -> None:
    ours = replace(run, rows=tuple(row for row in run.rows if row.configuration.runtime == "litert"))
    theirs = replace(run, rows=tuple(row for row in run.rows if row.configuration.runtime == "openvino"))
    with pytest.raises(fer_edge.UsageError, match="in common"):
        compare(ours, theirs)


def test_interleave_runs_two_bundles_and_two_builds(bundle: Path, tmp_path: Path) -> None:
    for other in (bundle, sys.executable):
        quick = ("--runtime", "litert", "--seconds", 0.05, "--rounds", 1, "--json", "--interleave", other)
        result = command(*quick)
        assert result.exit_code == 0, result.output
        (found,) = json.loads(result.stdout)["interleaved"]
        assert found["name"].startswith("litert int8")
        assert len(found["rounds"]) == len(found["noise"]) == 2
        assert 0.3 < found["ratio"] < 3
        assert found["b"]["fer_edge"] == fer_edge.__version__
        assert found["a"]["answers"] == found["b"]["answers"] == "ok"
    (tmp_path / "x").write_text("")
    refused = command("--interleave", tmp_path / "x")
    assert isinstance(refused.exception, fer_edge.UsageError)


@pytest.mark.parametrize("error", [fer_edge.EngineError("out of memory"), KeyboardInterrupt()])
def test_in_turns_a_late_failure_loses_nothing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second configuration fails, or somebody ends the run there: the first one's verdict stays."""
    done: list[Configuration] = []

    def turns(a: Configuration, b: Configuration, **options: Any) -> Any:
        done.append(a)
        if len(done) == 2:
            raise error
        return judge(
            blocks(1.0, np.random.default_rng(0)), {"engine": "x", "fer_edge": "0"}, {"engine": "x", "fer_edge": "0"}
        )

    monkeypatch.setattr(runs, "interleave", turns)
    result = command("--runtime", "litert", "--runtime", "openvino", "--threads", 1, "--interleave", DEFAULT_BUNDLE)
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "within noise" in result.output
    assert isinstance(error, KeyboardInterrupt) or "failed: out of memory" in result.output


def test_a_fast_wrong_answer_is_found_in_turns_too(bundle: Path) -> None:
    quick = ("--runtime", "litert", "--seconds", 0.05, "--rounds", 1)
    result = command(*quick, "--interleave", wrong_bundle(bundle))
    assert result.exit_code == 1
    assert "B GIVES WRONG ANSWERS: centred cosine" in result.output


def test_the_other_build_is_not_the_folder_one_stands_in(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A python without fer-edge, asked for in a checkout, has none; it does not take the checkout's."""
    import venv

    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", str(root))
    (wanted,) = only(Plan((DEFAULT_BUNDLE,), runtimes=("litert",)))
    with pytest.raises(fer_edge.EngineError, match="No module named"):
        Served(wanted, str(tmp_path / "bare" / "bin" / "python"))


def written(folder: Path, **runs: Results) -> list[Path]:
    """The runs as ``bench -o`` writes them."""
    files = [folder / f"{name}.json" for name in runs]
    for file, found in zip(files, runs.values(), strict=True):
        file.write_text(json.dumps(found.as_json()))
    return files


def test_a_build_that_fails_everywhere_is_the_worst_regression(run: Results, tmp_path: Path) -> None:
    """And no wrong use of the command, on purpose partial or not."""
    everything = tuple(Failure(c, "illegal instruction") for c in dict.fromkeys(row.configuration for row in run.rows))
    files = written(tmp_path, a=run, b=replace(run, rows=(), failures=everything))
    for options in ((), ("--partial",)):
        found = command(*files, *options, what="compare")
        assert found.exit_code == 1, found.output
        assert "Lost in B: litert int8, 1 thread: illegal instruction" in found.output


def test_a_scenario_that_b_lacks_is_lost(run: Results, tmp_path: Path) -> None:
    run = steady(run)
    files = written(tmp_path, a=run, b=replace(run, rows=tuple(row for row in run.rows if row.scenario != "camera")))
    found = command(*files, what="compare")
    assert found.exit_code == 1
    assert "Lost in B: litert int8, 1 thread, camera of 200 frames a second and 1 faces: not measured in B" in found.output
    assert command(*files, "--partial", what="compare").exit_code == 0
    assert lost(run, replace(run, rows=tuple(row for row in run.rows if row.scenario != "server"))) == []


def test_answers_that_nobody_checked_are_no_good_ones(run: Results, tmp_path: Path) -> None:
    """As of a run that was ended before its last process."""
    blind = replace(run, rows=tuple(replace(row, parity={}) for row in run.rows), extras={**run.extras, "interrupted": True})
    found = command(*written(tmp_path, a=run, b=blind), what="compare")
    assert found.exit_code == 1
    assert "litert int8, 1 thread: its answers were not checked" in found.output
    assert "B was interrupted" in found.output


@pytest.mark.parametrize("tolerance", ["nan", "inf", "-0.1"])
def test_a_tolerance_that_is_no_number_switches_nothing_off(tolerance: str, run: Results, tmp_path: Path) -> None:
    files = written(tmp_path, a=run, b=run)
    assert command(*files, "--tolerance", tolerance, what="compare").exit_code == 2


def test_in_turns_an_interruption_keeps_whole_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended in the third round of one configuration, the usual case: a verdict on two."""
    litert = Configuration(str(DEFAULT_BUNDLE), "litert", "int8", None, 1)
    began: list[str] = []

    class Ended(Served):
        def __init__(self, configuration: Configuration) -> None:
            began.append(configuration.name)
            if len(began) == 8:
                raise KeyboardInterrupt
            super().__init__(configuration)

    monkeypatch.setattr(turning, "Served", Ended)
    found = turning.interleave(litert, litert, rounds=6, turns=10)
    assert (len(found.rounds), found.interrupted) == (2, True)
    began[:] = ["x"] * 7
    with pytest.raises(KeyboardInterrupt):
        turning.interleave(litert, litert, rounds=6, turns=10)


def test_nobody_is_always_started_first_or_last() -> None:
    """That alone makes a per cent; six rounds are balanced, and any two of them between A and B."""
    assert sorted(turning.ORDERS) == sorted(permutations(range(3)))
    for first, second in zip(turning.ORDERS[::2], turning.ORDERS[1::2], strict=True):
        assert first == second[::-1]


def test_one_round_alone_proves_little() -> None:
    """Its two equal runs of A may lie close together by chance."""
    generator = np.random.default_rng(1)
    found = judge(blocks(1.05, generator, rounds=1), {}, {})
    assert (found.verdict, found.floor >= 0.1) == ("within noise", True)
