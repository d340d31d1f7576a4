"""What happens to faces while a student learns: views (affine changes), mirrored or not, disturbed light, erased patches,
mixup.

A *view* is drawn from (seed, number) alone: the same numbers give the same views, so that a teacher's features of a
view can be computed once and kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Strength:
    """How far views and light go. ``rotation`` in degrees, ``scale`` and ``aspect`` as factors (0.2: from 1 / 1.2 to
    1.2), ``shift`` and ``shear`` in fractions of the picture, ``light`` as brightness and contrast (0.3: from 0.7 to
    1.3), ``erase`` the share of faces that lose patches."""

    rotation: float = 18.0
    scale: float = 0.2
    aspect: float = 0.08
    shift: float = 0.08
    shear: float = 0.08
    light: float = 0.35
    erase: float = 0.5

    def times(self, factor: float) -> Strength:
        """All of it, stronger or weaker."""
        return Strength(**{name: factor * value for name, value in asdict(self).items()})


def view(count: int, strength: Strength, seed: int, number: int) -> Tensor:
    """Affine maps (count, 2, 3) of one view of every face, for ``affine_grid``; number 0 leaves the faces as they are. No
    view is mirrored: :func:`mirrored` does that."""
    if number == 0:
        return torch.eye(2, 3).repeat(count, 1, 1)
    generator = torch.Generator().manual_seed(seed * 100_003 + number)

    def uniform(limit: float) -> Tensor:
        return torch.empty(count).uniform_(-limit, limit, generator=generator)

    angle = uniform(strength.rotation).deg2rad()
    scale, aspect = ((uniform(1.0) * torch.tensor(1.0 + limit).log()).exp() for limit in (strength.scale, strength.aspect))
    shear, x, y = uniform(strength.shear), uniform(2 * strength.shift), uniform(2 * strength.shift)
    wide, high = scale * aspect, scale / aspect
    across = torch.stack([wide * angle.cos(), high * (shear - angle.sin()), x], 1)
    down = torch.stack([wide * angle.sin(), high * angle.cos(), y], 1)
    return torch.stack([across, down], 1)


def mirrored(maps: Tensor, which: Tensor | None = None) -> Tensor:
    """The same views (N, 2, 3), left and right exchanged; only those of ``which`` (N,) bool when given."""
    turned = maps * torch.tensor([-1.0, 1.0, 1.0])
    return turned if which is None else torch.where(which[:, None, None], turned, maps)


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Faces (N, 1, S, S) float seen through affine maps (N, 2, 3)."""
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def disturb(images: Tensor, strength: Strength, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, gamma and up to two erased patches of faces (N, 1, S, S) in [0, 1], on whatever device;
    ``generator`` is the CPU's, so that the draws do not depend on it."""
    n, _, _, size = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n, 1, 1, 1).uniform_(low, high, generator=generator).to(images.device)

    light = strength.light
    mean = images.mean((1, 2, 3), keepdim=True)
    out = (images - mean) * uniform(1 - light, 1 + light) + mean + uniform(-light, light) / 2
    out = out.clamp(0, 1) ** uniform(-light, light).exp()
    at = torch.arange(size, device=images.device)
    for share in (strength.erase, strength.erase / 2):
        width, height = (uniform(0.12, 0.4) * size).long(), (uniform(0.12, 0.4) * size).long()
        left, top = (uniform(0, 1) * (size - width)).long(), (uniform(0, 1) * (size - height)).long()
        columns = (at >= left) & (at < left + width)
        rows = ((at >= top) & (at < top + height)).transpose(2, 3)
        hole = columns & rows & (uniform(0, 1) < share)
        out = torch.where(hole, uniform(0, 1) * 0.5 + mean * 0.5, out)
    return out.clamp(0, 1)


def mixup(count: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Partners (count,) and own shares (count,) in [0.5, 1]: face i becomes share_i * face_i + (1 - share_i) *
    face_partner_i, and so do its targets (Zhang et al., "mixup", ICLR 2018). Shares follow Beta(alpha, alpha)."""
    partner = torch.randperm(count, generator=generator)
    if alpha == 0:
        return partner, torch.ones(count)
    random = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    share = torch.from_numpy(random.beta(alpha, alpha, count).astype(np.float32))
    return partner, torch.maximum(share, 1 - share)
