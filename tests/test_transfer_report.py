"""The trial of a cache: on a planted one whose answer is known, and the whole way on real faces and small random models."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import recall_score

import fer_edge
from fer_edge.accuracy import confusion_matrix, intervals, paired_difference, recall_by_label, uar, war
from fer_edge.cli import main
from fer_edge.converters.graph import class_constants
from fer_edge.converters.sources import open_encoder
from fer_edge.converters.transfer import trial
from fer_edge.converters.transfer.cache import CachePlan, Row, Side
from fer_edge.converters.transfer.feature_pairs import FeaturePairs
from fer_edge.converters.transfer.features import Faces
from fer_edge.converters.transfer.fit import FitRecipe, fit
from fer_edge.converters.transfer.trial import Accuracy, TransferTrial, TrialRequest, run_trial
from fer_edge.converters.transfer.trial_page import report, verdict
from fer_edge.labelled import LabelledFaces
from fer_edge.labels import LABEL_SETS, built_in_prompts
from lab.planted import Plan, planted, shuffled
from lab.random_blip2 import blip2 as blip2_command
from lab.random_clip import clip as clip_command
from lab.random_clip import write_clip

DIM = 64


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial") / "clip"
    write_clip(folder, dim=DIM, width=24, layers=1, heads=2, patch=8, image=32)
    return folder


def planted_pairs(clip: Path, mixed: bool = False) -> FeaturePairs:
    """A cache as that CLIP would have made it, with planted features."""
    data = planted(Plan(faces=2400, test=10, image_dim=DIM, llm_dim=80, expression_dim=6, identity_dim=40))
    data = shuffled(data) if mixed else data
    source = open_encoder(str(clip)).source
    side = Side(source.source, source.sha256, DIM, {"pixels": "plain"})
    rows = tuple(Row(str(i), f"{i:064d}") for i in range(len(data.image)))
    plan = CachePlan(tuple(r.path for r in rows), side, Side("llm", "0" * 64, 80, {}), 512, False, 100.0)
    return FeaturePairs(plan, rows, (), (), data.image, data.llm)


@pytest.fixture(scope="module")
def found(clip: Path) -> TransferTrial:
    return run_trial(planted_pairs(clip), TrialRequest(str(clip)), FitRecipe(method="ridge", batch=128))


def test_the_verdict_tells_knowledge_from_none(clip: Path, found: TransferTrial) -> None:
    none = run_trial(planted_pairs(clip, mixed=True), TrialRequest(str(clip)), FitRecipe(method="ridge", batch=128))
    assert found.retrieval > 5 / 240 > none.retrieval
    assert any("has learned something" in line for line in verdict(found))
    assert any("hardly more than chance" in line for line in verdict(none))


def test_the_learning_curve_rises(found: TransferTrial) -> None:
    assert [p.faces for p in found.curve] == [270, 540, 1080, 2160]
    assert found.curve[-1].retrieval > found.curve[0].retrieval
    assert found.held_out == 240


@pytest.mark.parametrize("count", [640, 1000, 2400])
def test_every_point_of_the_curve_takes_as_many_steps(count: int, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is about faces: an epoch drops its last incomplete batch, which counts most where there are few."""
    steps = []

    def counted(image: Any, llm: Any, recipe: FitRecipe, rows: Any) -> Any:
        steps.append(recipe.epochs * (len(rows) // recipe.batch))
        return fit(image, llm, replace(recipe, method="ridge"), rows=rows)

    monkeypatch.setattr(trial, "fit", counted)
    whole = planted_pairs(clip)
    few = replace(whole, rows=whole.rows[:count], image=whole.image[:count], llm=whole.llm[:count])
    run_trial(few, TrialRequest(str(clip)), FitRecipe(batch=256, epochs=8))
    assert max(steps) <= 1.15 * min(steps), steps


def test_no_advice_without_grounds(found: TransferTrial) -> None:
    """Neither where nothing was learned, nor from points that lie too near."""
    first, *_, last = found.curve
    assert "in as many steps" in " ".join(verdict(found))
    near = replace(found, curve=(replace(first, faces=last.faces - 10), last))
    assert "cannot be said from" in " ".join(verdict(near))
    assert "while nothing is learned" in " ".join(verdict(replace(found, retrieval=1 / found.among)))


def test_flips_and_balance_against_an_independent_count(clip: Path, found: TransferTrial) -> None:
    """Plain CLIP by the formula in float64."""
    pairs, names = planted_pairs(clip), LABEL_SETS["rafdb7"]
    encoder = open_encoder(str(clip))
    assert encoder.text
    prompts = list(built_in_prompts(names, "P3").values())
    constants = class_constants(prompts, encoder.text().encode, np.eye(DIM)).astype(np.float64)
    e = pairs.image.double().numpy()
    plain = (e / np.linalg.norm(e, axis=1, keepdims=True) @ constants.T).argmax(1)
    assert found.labels == names
    for k, name in enumerate(names):
        assert found.balance_before[name] == pytest.approx((plain == k).mean(), abs=2e-3)
    assert sum(found.balance_after.values()) == pytest.approx(1.0)
    assert sum(n for _, _, n in found.flows) == round(found.flips * found.faces)
    lost = {name: sum(n for a, _, n in found.flows if a == name) for name in names}
    won = {name: sum(n for _, b, n in found.flows if b == name) for name in names}
    for name in names:
        after = found.balance_before[name] * found.faces - lost[name] + won[name]
        assert found.balance_after[name] * found.faces == pytest.approx(after, abs=0.5)


def test_nearest_and_farthest_are_in_order(found: TransferTrial) -> None:
    for ends in found.ends.values():
        near, far = ([cosine for _, cosine in some] for some in (ends.nearest, ends.farthest))
        assert near == sorted(near, reverse=True)
        assert far == sorted(far)
        assert near[-1] >= far[-1]
        assert len({path for path, _ in ends.nearest}) == 6


def labelled(count: int, seed: int = 5) -> LabelledFaces:
    random = np.random.default_rng(seed)
    images = list(random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
    return LabelledFaces(images, [("happy", "sadness", "boredom")[i % 3] for i in range(count)])


def test_accuracy_before_and_after(clip: Path) -> None:
    """Labels by synonyms, strangers skipped and named, plain CLIP's figures as scikit-learn counts them."""
    faces = labelled(30)
    got = run_trial(planted_pairs(clip), TrialRequest(str(clip), labelled=faces), FitRecipe(method="ridge", batch=128))
    assert got.labelled == 20
    assert got.skipped == {"boredom": 10}
    assert got.before
    assert got.after
    names = got.labels
    from fer_edge.converters.reference import open_reference, reference_features

    plain = open_reference(str(clip))
    assert any(plain.spec.mean), "as convert makes a bundle of it: with CLIP's own mean and std, whatever the cache has"
    logits = plain.sets[0].logits(reference_features(plain, np.stack(faces.images)))
    kept = [i for i in range(30) if i % 3 != 2]
    truth = [names.index(("happiness", "sadness")[i % 3]) for i in kept]
    predicted = logits.argmax(1)[kept]
    assert got.before.war == pytest.approx((predicted == truth).mean())
    assert got.before.uar == pytest.approx(recall_score(truth, predicted, labels=sorted(set(truth)), average="macro"))
    low, high = got.before.uar_interval
    assert low <= got.before.uar <= high
    assert all(p.uar is not None for p in got.curve)
    assert got.gain
    assert got.gain.uar == pytest.approx(got.after.uar - got.before.uar)
    assert got.gain.war == pytest.approx(got.after.war - got.before.war)
    low, high = got.gain.uar_interval
    assert low <= got.gain.uar <= high
    assert any("UAR goes from" in line for line in verdict(got))


@pytest.mark.parametrize(("before", "after", "called"), [(0.5, 0.75, True), (0.75, 0.5, True), (0.6, 0.6, False)])
def test_a_gain_is_called_where_there_is_one(before: float, after: float, called: bool, found: TransferTrial) -> None:
    """Of two classifiers over the same 200 faces: better, worse, and equally good on other faces."""
    rng = np.random.default_rng(7)
    truth = np.arange(200) % 7
    answers = [np.where(rng.permutation(200) < share * 200, truth, (truth + 1) % 7) for share in (before, after)]
    figures = []
    for predicted in answers:
        table = confusion_matrix(truth, predicted, 7)
        spans = intervals(table, found.labels)
        figures.append(Accuracy(war(table), spans.war, uar(table), spans.uar, recall_by_label(table, found.labels)))
    gain = paired_difference(truth, *answers)
    lines = verdict(replace(found, labelled=200, before=figures[0], after=figures[1], gain=gain))
    (line,) = (text for text in lines if "UAR goes from" in text)
    assert line.startswith(f"On 200 labelled faces UAR goes from {figures[0].uar:.1%} to {figures[1].uar:.1%} (by ")
    assert line.endswith(": within what so few faces can tell.") != called
    low, high = gain.uar_interval
    assert f"(by {100 * low:+.1f} to {100 * high:+.1f} points, 98% interval over the same faces)" in line
    assert (low > 0, high < 0) == (called and after > before, called and after < before)


def test_what_no_verdict_can_be_given_on(clip: Path, tmp_path: Path) -> None:
    pairs = planted_pairs(clip)
    with pytest.raises(fer_edge.UsageError, match="too few"):
        run_trial(
            replace(pairs, rows=pairs.rows[:50], image=pairs.image[:50], llm=pairs.llm[:50]),
            TrialRequest(str(clip)),
            FitRecipe(),
        )
    write_clip(tmp_path / "other", dim=DIM, width=24, layers=1, heads=2, patch=8, image=32, seed=9)
    with pytest.raises(fer_edge.ConversionError, match="not the CLIP of this cache"):
        run_trial(pairs, TrialRequest(str(tmp_path / "other")), FitRecipe(batch=128))
    strange = LabelledFaces([np.zeros((8, 8, 3), np.uint8)], ["boredom"])
    with pytest.raises(fer_edge.LabelError, match="none of the classes"):
        run_trial(pairs, TrialRequest(str(clip), labelled=strange), FitRecipe(batch=128))


def test_the_page_is_whole_and_fetches_nothing(found: TransferTrial, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (found.faces, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "faces.npz", images=images)
    known = {str(i): hashlib.sha256(pixels.tobytes()).hexdigest() for i, pixels in enumerate(images)}
    page = report(found, Faces(tmp_path / "faces.npz"), known)
    assert page.count("data:image/jpeg") == 7 * 2 * 6
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for line in verdict(found):
        assert line.split(";")[0] in page
    json.loads(json.dumps(found.as_json(), allow_nan=False))
    other = report(found, Faces(tmp_path / "faces.npz"), dict.fromkeys(known, "0" * 64))
    assert "data:image/jpeg" not in other, "other faces under the same names are never shown"
    assert other.count(": another picture by now") == 7 * 2 * 6
    np.savez(tmp_path / "few.npz", images=images[:3])
    assert ": cannot be read" in report(found, Faces(tmp_path / "few.npz"), known)


def test_the_documented_way_on_real_faces(
    root: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very lines of docs/transfer.md, from random models to the report. Mechanics only."""
    for folder in ("happiness", "neutral", "surprise"):
        (tmp_path / "faces" / folder).mkdir(parents=True)
        for path in sorted((data / "lfw_expressions" / folder).iterdir())[:24]:
            Image.open(path).save(tmp_path / "faces" / folder / path.name)
    page = (root / "docs" / "transfer.md").read_text()
    lines = page.partition("## The mechanics")[2].partition("```console\n")[2].partition("```")[0].splitlines()
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {
        "lab.random_clip": clip_command,
        "lab.random_blip2": blip2_command,
    }
    said: dict[str, Any] = {}
    for line in lines:
        words = shlex.split(line)
        capfd.readouterr()
        if words[0] == "python":
            command, arguments = made[words[2]], words[3:]
        else:
            command, arguments = main, [*words[1:], "--json"]
        with pytest.raises(SystemExit) as end:
            command(arguments)
        out = capfd.readouterr()
        assert end.value.code in (0, None), f"{line}: {out.err}"
        if out.out:
            said[" ".join(words[1:3] if words[1] == "transfer" else words[1:2])] = json.loads(out.out)
    assert said["transfer features"]["faces"] == 72
    epochs = said["transfer fit"]["epochs"]
    assert [e["epoch"] for e in epochs] == [0, 1, 2, 3, 4, 5]
    assert epochs[0]["loss"] is None
    assert said["transfer fit"]["held_out_among"] == 14
    assert {row["status"] for row in said["verify"]["artefacts"]} == {"ok"}
    assert said["evaluate"]["n"] == 72
    assert said["transfer report"]["labelled"] == 72
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
