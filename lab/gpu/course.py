"""One training: what learns, from what, how, and within how many seconds."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from fer_edge.converters.student.augment import Strength, disturb, mirrored, mixup, view, warp
from fer_edge.converters.student.language import constants, default_constants, draw, sentence_groups
from fer_edge.converters.student.network import InTraining, StudentConfig
from fer_edge.converters.student.sentences import descriptions, stored_sentences

from .identity import IdentityBody, load_identity
from .pack import LABELS, STEP, Packed, read_identity
from .spoil import Spoiling, fate

VIEW_SEED = 77
TEACHER_PRIOR = 0.25
CHECKPOINT_S = 110.0
CALIBRATION = 512


@dataclass(frozen=True)
class Course:
    """Hyper-parameters. ``body``: the face-recognition network at ``size`` pixels, or a stack of convolutions of this
    shape. ``warmup`` is a share of the whole; ``by_depth`` is how much slower each stage learns than the one after it;
    ``drop`` the chance that a block is left out (identity); ``light`` the strength of views and light, as a factor;
    ``once`` and ``twice`` the shares of spoilt faces; ``share`` the weight of the teachers' scores; ``photos`` how many
    of a batch are faces without votes; ``most`` the largest number of epochs."""

    name: str
    body: Literal["identity", "stack"] = "stack"
    seed: int = 1
    size: int = 48
    widths: tuple[int, ...] = (16, 32, 96, 192)
    depths: tuple[int, ...] = (1, 2, 3, 3)
    stem_stride: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    batch: int = 256
    lr: float = 0.15
    weight_decay: float = 5e-4
    by_depth: float = 1.0
    warmup: float = 0.05
    dropout: float = 0.2
    drop: float = 0.0
    mixup: float = 0.2
    average: float = 0.998
    prior: float = 0.25
    light: float = 0.7
    once: float = 0.35
    twice: float = 0.25
    share: float = 0.0
    photos: int = 0
    most: int = 80

    def config(self) -> StudentConfig:
        """The shape, as a student checkpoint has it."""
        return StudentConfig(self.size, tuple(self.widths), tuple(self.depths), stem_stride=self.stem_stride)

    def network(self) -> InTraining:
        """Without any training."""
        if self.body == "stack":
            return self.config().network(self.dropout)
        return InTraining(IdentityBody(self.size, self.drop), IdentityBody.width, 256, 384, self.dropout)


_KNOWN = Course(
    "", "identity", optimizer="adamw", weight_decay=0.05, dropout=0.3, drop=0.1, average=0.999, once=0.3, twice=0.15
)
TEACHERS = (
    replace(_KNOWN, name="id131", seed=11, size=131, lr=1e-3, by_depth=0.7, most=60),
    replace(
        _KNOWN, name="id112", seed=12, size=112, lr=7e-4, by_depth=0.75, drop=0.15, mixup=0.3, light=1.0, twice=0.25, most=70
    ),
    replace(_KNOWN, name="id150", seed=13, size=150, lr=5e-4, by_depth=0.85, most=50),
    Course(
        "stack",
        seed=14,
        widths=(40, 64, 160, 320),
        depths=(1, 2, 5, 4),
        dropout=0.3,
        mixup=0.3,
        average=0.999,
        once=0.3,
        twice=0.15,
        most=90,
    ),
)
_STUDENT = Course("", share=0.7, photos=64, dropout=0.1, mixup=0.1, most=200)
STUDENTS = (
    replace(_STUDENT, name="s66", seed=21),
    replace(_STUDENT, name="s96", seed=22, widths=(16, 40, 112, 240)),
    replace(_STUDENT, name="s96t", seed=23, widths=(16, 40, 112, 240), prior=0.5),
    replace(_STUDENT, name="s64", seed=24, size=64, stem_stride=2, widths=(32, 64, 144, 232), depths=(2, 2, 3, 3)),
)
COURSES = {course.name: course for course in (*TEACHERS, *STUDENTS)}


@dataclass(frozen=True)
class Clock:
    """``deadline`` in seconds of time.time(); ``epochs``, when given, decides instead of the clock."""

    deadline: float
    epochs: int | None
    probe_s: float

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.time()


Say = Callable[..., None]


class Material:
    """What a training sees, on its device. Rows below ``labelled`` have votes, the others are photos without."""

    def __init__(self, packed: Packed, device: str, photos: bool) -> None:
        rows = packed.learnable()
        images = [packed.images[rows], *([packed.photos] if photos else [])]
        self.device, self.labelled = device, len(rows)
        self.images = torch.from_numpy(np.concatenate(images))[:, None].to(device)
        self.votes = torch.from_numpy(packed.targets[rows])
        prior = self.votes.mean(0).clamp(min=1e-6)
        self.log_prior = prior.log().to(device)
        self.votes = self.votes.to(device)
        table = descriptions()
        self.groups = sentence_groups(stored_sentences(), table, LABELS)

    def faces(self, rows: Tensor, maps: Tensor) -> Tensor:
        """Views (n, 1, 48, 48) in [0, 1] of faces, by their rows; both on the device."""
        return warp(self.images[rows].float() / 255, maps)


class Learner:
    """A network, the average of its weights, and its optimizer."""

    def __init__(self, course: Course, material: Material, identity: Path) -> None:
        self.course, self.material, device = course, material, material.device
        torch.manual_seed(course.seed)
        self.bf16 = device == "cuda"
        layout = torch.channels_last if self.bf16 else torch.contiguous_format
        net = course.network().to(device, memory_format=layout)  # type: ignore[call-overload]
        if isinstance(net.body, IdentityBody):
            some = material.images[: material.labelled][:: max(1, material.labelled // CALIBRATION)]
            load_identity(net.body, read_identity(identity), some.float() / 255)
        self.net = net
        self.mean = course.network().to(device, memory_format=layout)  # type: ignore[call-overload]
        self.mean.load_state_dict(self.net.state_dict())
        self.mean.eval()
        groups = self._groups()
        fused = device == "cuda"
        if course.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=course.lr, fused=fused)
        else:
            self.optimizer = torch.optim.SGD(groups, lr=course.lr, momentum=0.9, nesterov=True, fused=fused)
        self.updates = 0
        self._pairs = self._averaged()

    def _groups(self) -> list[dict[str, Any]]:
        """Parameters by pace and weight decay; the logit scale, one number that sees every face, goes slower."""
        net, by_depth = self.net, self.course.by_depth
        stages: list[list[torch.nn.Parameter]] = [list(net.body.parameters())]
        if isinstance(net.body, IdentityBody):
            stages = net.body.depths()
        stages.append([*net.head.parameters(), net.text_projection])
        groups: list[dict[str, Any]] = [{"params": [net.log_scale], "weight_decay": 0.0, "pace": 0.1}]
        for i, parameters in enumerate(stages):
            pace = by_depth ** (len(stages) - 1 - i)
            groups.append(
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.course.weight_decay, "pace": pace}
            )
            groups.append({"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "pace": pace})
        return [group for group in groups if group["params"]]

    def _averaged(self) -> tuple[list[Tensor], list[Tensor]]:
        """Numbers of the mean network and of the one that learns, buffers too."""
        ours, theirs = self.mean.state_dict(keep_vars=True), self.net.state_dict(keep_vars=True)
        names = [name for name, tensor in theirs.items() if tensor.is_floating_point()]
        return [ours[name].detach() for name in names], [theirs[name].detach() for name in names]

    def step(self, faces: Tensor, votes: Tensor, taught: Tensor | None, rate: float, generator: torch.Generator) -> Tensor:
        """Learn from faces (N, 1, 48, 48), votes (n, K) of the first n, and teachers' scores (N, K) of all; the loss,
        on the device."""
        course, material = self.course, self.material
        for group in self.optimizer.param_groups:
            group["lr"] = course.lr * rate * group["pace"]
        n = len(votes)
        if course.mixup:
            (partner, share), (other, more) = (
                mixup(n, course.mixup, generator),
                mixup(len(faces) - n, course.mixup, generator),
            )
            partner = torch.cat([partner, other + n]).to(faces.device)
            own = torch.cat([share, more]).to(faces.device)
            faces = own[:, None, None, None] * faces + (1 - own[:, None, None, None]) * faces[partner]
            votes = own[:n, None] * votes + (1 - own[:n, None]) * votes[partner[:n]]
            taught = None if taught is None else own[:, None] * taught + (1 - own[:, None]) * taught[partner]
        with torch.autocast(material.device, torch.bfloat16, enabled=self.bf16):
            feature = self.net(self._sized(faces))
        text = draw(material.groups, 4, 0.02, generator).to(faces.device)
        logits = self.net.logits(feature.float(), constants(text, self.net.text_projection))
        loss = F.cross_entropy(logits[:n] + course.prior * material.log_prior, votes)
        if taught is not None:
            loss = (1 - course.share) * loss + course.share * F.cross_entropy(logits, taught)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimizer.step()
        self.updates += 1
        decay = min(course.average, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._pairs[0], self._pairs[1], 1 - decay)
        return loss.detach()

    def _sized(self, faces: Tensor) -> Tensor:
        return sized(faces, self.course, self.bf16)


def sized(faces: Tensor, course: Course, channels_last: bool) -> Tensor:
    """Faces in the size that a stack takes; the face-recognition network enlarges them itself."""
    if course.body == "stack" and faces.shape[-1] != course.size:
        faces = F.interpolate(faces, size=(course.size, course.size), mode="bilinear", align_corners=False)
    return faces.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def batches(course: Course, material: Material, epoch: int, views: int) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
    """(rows, faces, generator) of one epoch; all draws by (seed, epoch) alone. With ``views``, what is
    seen is one of so many views that teachers were asked about, further moved and spoilt."""
    device, total = material.device, len(material.images)
    strength = Strength(erase=0.15).times(course.light)
    number = 1 + epoch % views if views else 1 + epoch
    maps = view(total, view_strength() if views else strength, VIEW_SEED if views else course.seed, number)
    generator = torch.Generator().manual_seed(course.seed * 100_003 + epoch)
    maps = mirrored(maps, torch.rand(total, generator=generator) < 0.5)
    spoiling = Spoiling(once=course.once, twice=course.twice)
    luck = fate(total, spoiling, course.seed, epoch)
    maps = luck.moved(maps).to(device)
    with_votes = course.batch - course.photos
    order = torch.randperm(material.labelled, generator=generator)
    rest = torch.randperm(total - material.labelled, generator=generator) + material.labelled
    dither = torch.Generator(device).manual_seed(course.seed * 1009 + epoch)
    for step in range(steps(course, material)):
        rows = order[step * with_votes : (step + 1) * with_votes]
        if course.photos:
            at = (torch.arange(course.photos) + step * course.photos) % len(rest)
            rows = torch.cat([rows, rest[at]])
        there = rows.to(device)
        faces = material.images[there].float()
        faces += STEP * (torch.rand(faces.shape, generator=dither, device=device) - 0.5)  # levels were rounded to travel
        faces = warp(faces.clamp(0, 255) / 255, maps[there])
        faces = disturb(luck.of(rows, step).spoilt(faces), strength, generator)
        yield there, faces, generator


def view_strength() -> Strength:
    """The views that teachers are asked about."""
    return Strength().times(0.7)


def steps(course: Course, material: Material) -> int:
    """Batches of an epoch."""
    return material.labelled // (course.batch - course.photos)


def retilted(scores: Tensor, log_prior: Tensor, prior: float) -> Tensor:
    """Scores of teachers that learned with TEACHER_PRIOR, as if they had with ``prior``: what is rare counts for more."""
    return F.softmax(scores.clamp(min=1e-5).log() - (prior - TEACHER_PRIOR) * log_prior, dim=-1)


def learn(
    course: Course,
    packed: Packed,
    identity: Path,
    clock: Clock,
    say: Say,
    output: Path,
    answers: NDArray[np.float16] | None = None,
    barrier: Callable[[], None] = lambda: None,
    sets: Callable[[], Mapping[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]] = dict,
) -> Learner:
    """Train within the clock, and write the averaged network to ``output`` from time to time. ``answers`` (views, N,
    K): what teachers say of the views of all faces and photos, in the order of Material."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    material = Material(packed, device, photos=answers is not None)
    views = 0 if answers is None else len(answers)
    taught = None if answers is None else torch.from_numpy(answers.astype(np.float32)).to(device)
    if taught is not None:
        taught = retilted(taught, material.log_prior, course.prior)

    def run(learner: Learner, epoch: int, rate: Callable[[int], float]) -> Iterator[Tensor]:
        learner.net.train()
        for step, (there, faces, generator) in enumerate(batches(course, material, epoch, views)):
            votes = material.votes[there[: course.batch - course.photos]]
            said = None if taught is None else taught[epoch % views][there]
            yield learner.step(faces, votes, said, rate(step), generator)

    per_epoch = steps(course, material)
    if per_epoch == 0:
        raise SystemExit(f"{material.labelled} faces are fewer than one batch of {course.batch}")
    seconds = probe(course, material, identity, run, barrier, clock, say)
    reserve = 8.0  # to measure, and to write
    affordable = int(0.94 * (clock.left() - reserve) / (seconds * per_epoch))
    epochs = clock.epochs or max(1, min(course.most, affordable))
    timing = {"steps": per_epoch, "step_ms": 1000 * seconds, "epoch_s": seconds * per_epoch, "affordable": affordable}
    say("plan", course=asdict(course), faces=material.labelled, **timing, epochs=epochs, views=views, device=device)
    learner = Learner(course, material, identity)
    done, left, epoch, saved = 0.0, epochs * per_epoch, 0, time.time()
    began = time.time()

    def rate(step: int) -> float:
        """Warm-up, then a cosine, over ``done``; which moves by a fair share of what is left."""
        nonlocal done, left
        now = done
        done += (1 - done) / max(1, left)
        left -= 1
        return min(1.0, (now + 1e-4) / course.warmup) * 0.5 * (1 + math.cos(math.pi * now))

    while left > 0:
        losses, since, stopped = [], time.time(), False
        for loss in run(learner, epoch, rate):
            losses.append(loss)
            if len(losses) % 8 == 0 and clock.left() < reserve / 2:
                stopped = True
                break
        epoch += 1
        mean_loss = float(torch.stack(losses).mean())  # waits for the device, so the time is true
        took = time.time() - since
        report: dict[str, Any] = {"epoch": epoch, "of": epochs, "loss": mean_loss, "seconds": took, "done": done}
        if not math.isfinite(mean_loss):
            say("diverged", **report)
            raise SystemExit(f"{course.name} diverged in epoch {epoch}")
        if epoch % max(1, epochs // 10) == 0 or left <= 0:
            report |= {
                name: war_uar(scores(learner.mean, course, images, device), labels)
                for name, (images, labels) in sets().items()
            }
        say("epoch", **report)
        if stopped:
            say("stopped", reason="the clock", epoch=epoch)
            break
        if time.time() - saved > CHECKPOINT_S:
            save(learner, output, {"epoch": epoch, "epochs": epochs})
            saved = time.time()
        per = (time.time() - began) / epoch
        fits = int((clock.left() - reserve) / per) if clock.epochs is None else left // per_epoch
        if 0 <= fits < left // per_epoch:
            left = max(fits, 1 if clock.left() > reserve + per else 0) * per_epoch
            epochs = epoch + left // per_epoch
            say("shortened", epochs=epochs)
    save(learner, output, {"epoch": epoch, "epochs": epochs, "seconds": time.time() - began})
    return learner


def probe(
    course: Course,
    material: Material,
    identity: Path,
    run: Callable[[Learner, int, Callable[[int], float]], Iterator[Tensor]],
    barrier: Callable[[], None],
    clock: Clock,
    say: Say,
) -> float:
    """Seconds of a step, while the trainings beside this one run too; on a network that is thrown away."""
    learner = Learner(course, material, identity)
    stream = run(learner, 0, lambda step: 0.01)
    loss = next(stream)
    say("first", loss=float(loss))
    if material.device == "cuda":
        for _ in range(10):
            loss = next(stream, loss)
        float(loss)
    barrier()
    began, count = time.time(), 0
    while count < 2 or time.time() - began < clock.probe_s:
        step = next(stream, None)
        if step is None:
            stream = run(learner, 0, lambda step: 0.01)
            continue
        loss, count = step, count + 1
        if count % 5 == 0:
            float(loss)
    float(loss)
    return (time.time() - began) / count


@torch.inference_mode()
def scores(net: InTraining, course: Course, images: NDArray[np.uint8], device: str, batch: int = 512) -> NDArray[np.float32]:
    """Scores (N, K) of gray faces (N, 48, 48) over the labels."""
    groups = sentence_groups(stored_sentences(), descriptions(), LABELS)
    net.eval()
    text = default_constants([group.to(device) for group in groups], net.text_projection)
    rows = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(images[start : start + batch])[:, None].to(device).float() / 255
        rows.append(views_scores(net, course, x, text))
    return torch.cat(rows).cpu().numpy()


def views_scores(net: InTraining, course: Course, faces: Tensor, text: Tensor) -> Tensor:
    """Scores (n, K) of faces (n, 1, 48, 48) in [0, 1], all on the device, in float32."""
    gpu = faces.is_cuda
    with torch.autocast(faces.device.type, torch.bfloat16, enabled=gpu):
        feature = net(sized(faces, course, gpu))
    return F.softmax(net.logits(feature.float(), text), dim=-1)


def war_uar(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Accuracy and mean recall; labels of -1 are left out."""
    kept = labels >= 0
    hit = scores.argmax(1)[kept] == labels[kept]
    truth = labels[kept]
    return round(float(hit.mean()), 4), round(float(np.mean([hit[truth == k].mean() for k in np.unique(truth)])), 4)


def save(learner: Learner, output: Path, meta: dict[str, Any]) -> None:
    """The averaged network, its kernels in fp16, as a student's checkpoint has them."""
    tensors = learner.mean.state_dict()
    state = {name: (tensor.half() if tensor.ndim > 1 else tensor).contiguous().cpu() for name, tensor in tensors.items()}
    header = {"course": json.dumps(asdict(learner.course)), "meta": json.dumps(meta)}
    part = output.with_name(output.name + ".part")
    save_file(state, part, metadata=header)
    part.replace(output)


def restore(path: Path, course: Course, device: str, prefix: str = "") -> InTraining:
    """What :func:`save` wrote, in eval mode; of a file that holds several networks, the one whose tensors begin with
    ``prefix``."""
    net = course.network()
    state = {name.removeprefix(prefix): t for name, t in load_file(path).items() if name.startswith(prefix)}
    net.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format
    return net.to(device, memory_format=layout).eval()  # type: ignore[no-any-return,call-overload]
