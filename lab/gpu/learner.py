"""A network that learns: one step of it, as a CUDA graph where there is a GPU, on a stream of its own."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fer_edge.converters.student.language import constants

from .course import Course, Material, restore, sized
from .epoch import Epoch
from .identity import IdentityBody, load_identity
from .pack import read_identity

CALIBRATION = 512
TRIAL_RATE = 0.01
Say = Callable[..., None]


class Learner:
    """A network, the average of its weights, its optimizer, and the epoch that it is in. Everything that a step reads
    lies where it lay when the graph was captured: batches are found by ``_at``, the learning rate by ``_rate``."""

    def __init__(self, course: Course, material: Material, identity: Path, start: tuple[Path, str] | None = None) -> None:
        """``start``: a file, and the beginning of the names of this network's tensors in it; without one, it starts anew,
        or from the face-recognition network in ``identity``."""
        self.course, self.material, device = course, material, material.device
        torch.manual_seed(course.seed)
        self.bf16 = device == "cuda"
        layout = torch.channels_last if self.bf16 else torch.contiguous_format
        self.net = course.network().to(device, memory_format=layout)  # type: ignore[call-overload]
        if start is not None:
            self.net.load_state_dict(restore(start[0], course, device, start[1]).state_dict())
        elif isinstance(self.net.body, IdentityBody):
            some = material.images[: material.labelled][:: max(1, material.labelled // CALIBRATION)]
            load_identity(self.net.body, read_identity(identity), some.float() / 255)
        self.net.train()
        self.mean = course.network().to(device, memory_format=layout)  # type: ignore[call-overload]
        self.mean.load_state_dict(self.net.state_dict())
        self.mean.eval()
        groups = self._groups()
        self._paces = torch.tensor([course.lr * group.pop("pace") for group in groups], device=device)
        self._lrs = torch.zeros_like(self._paces)
        for i, group in enumerate(groups):
            group["lr"] = self._lrs[i]
        self.optimizer = torch.optim.AdamW(groups, lr=self._lrs[0], fused=True, capturable=device == "cuda")
        self._pairs = self._averaged()
        self._rate = torch.zeros((), device=device)
        self._at = torch.zeros(1, dtype=torch.long, device=device)
        self._total = torch.zeros((), device=device)
        self._given: Epoch | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.updates, self.steps, self.counted = 0, 0, 0
        self.stream = torch.cuda.Stream() if device == "cuda" else None  # type: ignore[no-untyped-call]
        if device == "cuda":
            torch.cuda.synchronize()

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

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Where its work is queued."""
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def take(self, epoch: Epoch) -> None:
        """Begin this epoch: the same shapes as the first."""
        with self.on_stream():
            if self._given is None:
                self._given = epoch
                self.steps = len(epoch.faces)
            else:
                for ours, theirs in zip(self._given.tensors(), epoch.tensors(), strict=True):
                    ours.copy_(theirs)
                    if self.stream is not None:
                        theirs.record_stream(self.stream)  # it belongs to the stream that made it
            self._at.zero_()

    def step(self, rate: float) -> None:
        """Learn from the next batch; ``rate`` is a factor of the course's learning rate. Waits for nothing."""
        with self.on_stream():
            self._rate.fill_(rate)
            if self.graph is None:
                self._work()
            else:
                self.graph.replay()
            self.updates += 1
            self.counted += 1
            decay = min(self.course.average, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(self._pairs[0], self._pairs[1], 1 - decay)

    def loss(self) -> float:
        """The mean since it was last asked for. Waits for the device."""
        with self.on_stream():
            value = float(self._total) / max(1, self.counted)
            self._total.zero_()
        self.counted = 0
        return value

    def _work(self) -> None:
        """What the graph holds: nothing here may ask the device for a number."""
        course, given = self.course, self._given
        assert given is not None
        torch.mul(self._paces, self._rate, out=self._lrs)
        faces, votes, text = (t.index_select(0, self._at)[0] for t in (given.faces, given.votes, given.text))
        self.optimizer.zero_grad(set_to_none=True)
        # The cache of narrowed weights would keep tensors of the graph; every weight is used once anyway.
        with torch.autocast(self.material.device, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            feature = self.net(sized(faces.float(), course, self.bf16))
        logits = self.net.logits(feature.float(), constants(text, self.net.text_projection))
        loss = F.cross_entropy(logits[: len(votes)] + course.prior * self.material.log_prior, votes)
        if given.taught is not None:
            said = given.taught.index_select(0, self._at)[0]
            loss = (1 - course.share) * loss + course.share * F.cross_entropy(logits, said)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimizer.step()
        self._total.add_(loss.detach())
        self._at.add_(1).remainder_(self.steps)

    def capture(self, say: Say) -> bool:
        """Make one step a CUDA graph, after a few common ones; whether that worked. Says why when it did not: steps are
        then taken one kernel after the other, as on a CPU. Nothing else may use the device meanwhile."""
        if self.stream is None:
            say("no graph", name=self.course.name, reason="no GPU")
            return False
        began = time.time()
        try:
            self._warm_up(say)
            self.optimizer.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                self._work()
            before = self.net.text_projection.detach().clone()
            torch.cuda.synchronize()
            self.graph = graph
            self.loss()
            self.step(TRIAL_RATE)
            loss = self.loss()
            torch.cuda.synchronize()
            if not math.isfinite(loss):
                raise RuntimeError(f"a replay gave a loss of {loss}")
            if torch.equal(before, self.net.text_projection.detach()):
                raise RuntimeError("a replay changed no weight")
        except Exception as error:  # a step without a graph is slow, but it is a step
            self.graph = None
            say("no graph", name=self.course.name, reason=f"{type(error).__name__}: {error}"[:600])
            self._recover(say)
            return False
        with self.on_stream():
            self._at.zero_()
        say("graph", name=self.course.name, seconds=round(time.time() - began, 2), loss=round(loss, 4))
        return True

    def _warm_up(self, say: Say) -> None:
        """Common steps at a small rate: cuDNN looks for its ways, the optimizer makes its state. The last is taken with
        PyTorch on the watch for waits, which no graph may have."""
        for _ in range(3):
            self.step(TRIAL_RATE)
        torch.cuda.synchronize()
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self.step(TRIAL_RATE)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.synchronize()
        told = sorted({str(w.message)[:200] for w in caught if "called a synchroniz" in str(w.message)})
        if told:
            say("waits", name=self.course.name, warnings=told)

    def _recover(self, say: Say) -> None:
        """After a capture that broke off: gradients lie in the graph's memory, and the random generator may still be
        capturing."""
        try:
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            torch.cuda.manual_seed(self.course.seed)
            with self.on_stream():
                self._at.zero_()
                self._total.zero_()
            self.counted = 0
            torch.cuda.synchronize()
        except Exception as error:
            say("not recovered", name=self.course.name, reason=f"{type(error).__name__}: {error}"[:600])
