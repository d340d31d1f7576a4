"""Faces spoilt as cameras and the world spoil them: turned, badly boxed, half hidden, too dark, blurred, small, noisy,
compressed.

Light goes through the ways in the order of :data:`WAYS`, which is that of a camera. Which faces are spoilt, how and how
much is drawn from (seed, number) alone, as a view is (see :mod:`.augment`); only the grain of the noise comes from the
generator of the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

WAYS = ("turn", "box", "hide", "light", "blur", "small", "noise", "jpeg")
"""In the order in which they happen. The first two move the face, the others change its pixels."""
DRAWS = 8
"""Random numbers per face and way."""
KERNEL = 13
"""Width of the blurring kernels."""

_JPEG = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantisation of the brightness at quality 50 (ITU-T T.81, table K.1)."""


@dataclass(frozen=True)
class Spoiling:
    """How often and how far. ``once`` and ``twice``: shares of the faces that suffer one and two ways; ``weights``: how
    often a way is chosen, against the others. ``turn`` in degrees; ``box`` as shift in fractions of the picture and as
    factor of its size; ``noise`` as standard deviation, of 255; ``blur`` as standard deviation, in pixels of a picture
    of 48; ``small`` in pixels; ``exposure`` as factor; ``quality`` as JPEG's."""

    once: float = 0.35
    twice: float = 0.25
    weights: Mapping[str, float] = field(default_factory=lambda: {"hide": 1.4, "blur": 1.2, "small": 1.2, "noise": 1.4})
    turn: float = 45.0
    box: tuple[float, float] = (0.1, 0.25)
    noise: tuple[float, float] = (3.0, 45.0)
    blur: tuple[float, float] = (0.5, 2.2)
    small: tuple[int, int] = (12, 32)
    exposure: tuple[float, float] = (0.1, 1.6)
    quality: tuple[int, int] = (10, 60)

    def limited(self, *ways: str) -> Spoiling:
        """The same, but every face suffers one of these ways."""
        weights = {way: float(way in ways) for way in WAYS}
        return Spoiling(**{**self.__dict__, "once": 1.0, "twice": 0.0, "weights": weights})


@dataclass(frozen=True)
class Fate:
    """What happens to each of N faces: ``chosen`` (N, ways) bool, ``draws`` (N, ways, DRAWS) in [0, 1); ``seed`` of the
    grain."""

    spoiling: Spoiling
    chosen: Tensor
    draws: Tensor
    seed: int

    def of(self, rows: Tensor, step: int = 0) -> Fate:
        """The fate of these faces, with grain of their own."""
        return Fate(self.spoiling, self.chosen[rows], self.draws[rows], self.seed + 1009 * step)

    def moved(self, maps: Tensor) -> Tensor:
        """Affine maps (N, 2, 3), followed by the turn and the slip of the box of those that have it."""
        out = maps.clone()
        for way, move in (("turn", _turn), ("box", _box)):
            rows = self._rows(way)
            if len(rows):
                step = move(self._drawn(way, rows), self.spoiling).to(maps)
                out[rows] = _after(out[rows], step)
        return out

    def spoilt(self, faces: Tensor) -> Tensor:
        """Faces (N, 1, S, S) in [0, 1], on whatever device, with what happens to their pixels; rounded to 8 bits where
        something does."""
        out, touched = faces.clone(), self.chosen[:, 2:].any(1)
        generator = torch.Generator(faces.device).manual_seed(self.seed)
        for way, change in _CHANGES.items():
            rows = self._rows(way)
            if len(rows):
                there, drawn = rows.to(faces.device), self._drawn(way, rows).to(faces.device)
                out[there] = change(out[there], drawn, self.spoiling, generator)
        rows = touched.nonzero()[:, 0].to(faces.device)
        out[rows] = (out[rows].clamp(0, 1) * 255).round() / 255
        return out

    def _rows(self, way: str) -> Tensor:
        return self.chosen[:, WAYS.index(way)].nonzero()[:, 0]

    def _drawn(self, way: str, rows: Tensor) -> Tensor:
        return self.draws[rows, WAYS.index(way)]


def fate(count: int, spoiling: Spoiling, seed: int, number: int) -> Fate:
    """What happens to ``count`` faces, by (seed, number) alone."""
    generator = torch.Generator().manual_seed(seed * 100_003 + number + 50_021)
    weights = torch.tensor([spoiling.weights.get(way, 1.0) for way in WAYS])
    picks = min(2, int((weights > 0).sum()))
    ways = torch.multinomial(weights.expand(count, -1), picks, generator=generator)
    chance = torch.rand(count, generator=generator)
    chosen = torch.zeros(count, len(WAYS), dtype=torch.bool)
    chosen.scatter_(1, ways[:, :1], (chance < spoiling.once + spoiling.twice)[:, None])
    if picks > 1:
        chosen.scatter_(1, ways[:, 1:], (chance < spoiling.twice)[:, None])
    draws = torch.rand(count, len(WAYS), DRAWS, generator=generator)
    return Fate(spoiling, chosen, draws, int(torch.randint(2**31, (1,), generator=generator)))


def _between(draw: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * draw


def _log_between(draw: Tensor, low: float, high: float) -> Tensor:
    return torch.exp(_between(draw, math.log(low), math.log(high)))


def _wide(numbers: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1)."""
    return numbers[:, None, None, None]


def _turn(draws: Tensor, spoiling: Spoiling) -> Tensor:
    angle = _between(draws[:, 0], -spoiling.turn, spoiling.turn).deg2rad()
    return torch.stack([angle.cos(), -angle.sin(), 0 * angle, angle.sin(), angle.cos(), 0 * angle], 1).view(-1, 2, 3)


def _box(draws: Tensor, spoiling: Spoiling) -> Tensor:
    shift, factor = spoiling.box
    wide, high = (_log_between(draws[:, i], 1 / (1 + factor), 1 + factor) for i in (0, 1))
    high = 0.7 * wide + 0.3 * high  # boxes are wrong in size rather than in shape
    x, y = (_between(draws[:, i], -2 * shift, 2 * shift) for i in (2, 3))
    return torch.stack([wide, 0 * x, x, 0 * x, high, y], 1).view(-1, 2, 3)


def _after(maps: Tensor, step: Tensor) -> Tensor:
    """The map that looks at maps (N, 2, 3)' picture through ``step`` (N, 2, 3)."""
    square = maps[:, :, :2]
    return torch.cat([square @ step[:, :, :2], square @ step[:, :, 2:] + maps[:, :, 2:]], 2)


def _axes(faces: Tensor) -> tuple[Tensor, Tensor]:
    """x (1, 1, 1, S) and y (1, 1, S, 1) of the pixels, from 0 to 1."""
    at = (torch.arange(faces.shape[-1], device=faces.device) + 0.5) / faces.shape[-1]
    return at[None, None, None, :], at[None, None, :, None]


def _hide(faces: Tensor, draws: Tensor, spoiling: Spoiling, generator: torch.Generator) -> Tensor:
    """A mask over the lower face, a hand, glasses, one side, or a patch; filled with one level, a texture, or another
    face."""
    x, y = _axes(faces)
    a, b, c, d, e = (_wide(draws[:, i]) for i in range(5))
    tilt, bend = 0.3 * (b - 0.5), 0.6 * c * (x - 0.5) ** 2
    mask = y > 0.5 + 0.3 * a + tilt * (x - 0.5) - bend
    angle = math.pi * c
    along = (x - a) * angle.cos() + (y - b) * angle.sin()
    across = (y - b) * angle.cos() - (x - a) * angle.sin()
    hand = (along / (0.2 + 0.25 * d)) ** 2 + (across / (0.12 + 0.13 * e)) ** 2 < 1
    glasses = ((y - 0.28 - 0.14 * a + 0.3 * (b - 0.5) * (x - 0.5)).abs() < 0.05 + 0.07 * c) & (
        (x - 0.5).abs() < 0.35 + 0.15 * d
    )
    side = torch.where(b < 0.5, x < 0.2 + 0.3 * a, x > 0.8 - 0.3 * a)
    patch = ((x - a).abs() < 0.08 + 0.14 * c) & ((y - b).abs() < 0.08 + 0.14 * d)
    kind, fill = draws[:, 5], draws[:, 6]
    where = mask
    for limit, other in ((0.4, hand), (0.6, glasses), (0.75, side), (0.85, patch)):
        where = torch.where(_wide(kind) < limit, where, other)
    level = _wide(draws[:, 7]).expand_as(faces)
    grain = torch.rand(faces.shape, generator=generator, device=faces.device)
    texture = 0.7 * level + 0.3 * F.avg_pool2d(grain, 5, 1, 2, count_include_pad=False)
    filled = torch.where(_wide(fill) < 0.5, level, torch.where(_wide(fill) < 0.75, texture, faces.roll(1, 0).flip(2)))
    return torch.where(where, filled, faces)


def _light(faces: Tensor, draws: Tensor, spoiling: Spoiling, generator: torch.Generator) -> Tensor:
    """Exposure, gamma, light from one side, haze."""
    x, y = _axes(faces)
    angle = 2 * math.pi * _wide(draws[:, 2])
    shade = 1 + _wide(draws[:, 3] ** 2) * 1.2 * ((x - 0.5) * angle.cos() + (y - 0.5) * angle.sin())
    gamma = _wide(_log_between(draws[:, 1], 0.45, 2.2))
    out = faces.clamp(1e-4, 1) ** gamma * shade * _wide(_log_between(draws[:, 0], *spoiling.exposure))
    haze = _wide(torch.where(draws[:, 4] < 0.3, 0.6 * draws[:, 5], torch.zeros_like(draws[:, 5])))
    return (out * (1 - haze) + haze * _wide(draws[:, 6])).clamp(0, 1)


def _blur(faces: Tensor, draws: Tensor, spoiling: Spoiling, generator: torch.Generator) -> Tensor:
    """Gaussian, out of focus (a disc), or moved (a line)."""
    n, _, size, _ = faces.shape
    at = torch.arange(KERNEL, device=faces.device, dtype=faces.dtype) - KERNEL // 2
    x, y = at[None, None, :], at[None, :, None]
    kind = draws[:, 0, None, None]
    sigma = (_log_between(draws[:, 1], *spoiling.blur) * size / 48)[:, None, None]
    radius = (x**2 + y**2).sqrt()
    gauss = torch.exp(-((radius / sigma) ** 2) / 2)
    disc = (2 * sigma * 0.9 + 0.5 - radius).clamp(0, 1)  # a disc of radius 2 s spreads as far as a Gaussian of deviation s
    angle = math.pi * draws[:, 2, None, None]
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    line = (1 - across.abs()).clamp(0, 1) * (2 * sigma + 1 - along.abs()).clamp(0, 1)
    kernel = torch.where(kind < 0.45, gauss, torch.where(kind < 0.75, disc, line))
    kernel = kernel / kernel.sum((1, 2), keepdim=True)
    edge = KERNEL // 2
    wide = F.pad(faces, (edge, edge, edge, edge), mode="replicate")
    # A product, and no convolution: cuDNN would look for the fastest way anew for every number of faces.
    around = wide.unfold(2, KERNEL, 1).unfold(3, KERNEL, 1).reshape(n, size * size, KERNEL * KERNEL)
    return (around @ kernel.reshape(n, KERNEL * KERNEL, 1)).reshape(n, 1, size, size)


@lru_cache(maxsize=64)
def _resizing(size: int, least: int, most: int, device: torch.device) -> Tensor:
    """Matrices (sizes, size, size) that make a row of ``size`` pixels smaller and large again, one per size."""
    rows = torch.eye(size)[None, None]
    matrices = []
    for small in range(least, most + 1):
        less = F.interpolate(rows, size=(small, size), mode="bilinear", antialias=True, align_corners=False)
        matrices.append(F.interpolate(less, size=(size, size), mode="bilinear", align_corners=False)[0, 0])
    return torch.stack(matrices).to(device)


def _small(faces: Tensor, draws: Tensor, spoiling: Spoiling, generator: torch.Generator) -> Tensor:
    """Seen from afar: fewer pixels, enlarged again. Sizes are drawn as logarithms."""
    least, most = spoiling.small
    size = faces.shape[-1]
    matrices = _resizing(size, least, most, faces.device)
    which = (_log_between(draws[:, 0], least, most + 1).long() - least).clamp(0, most - least)
    resize = matrices[which][:, None]
    return resize @ faces @ resize.mT


def _noise(faces: Tensor, draws: Tensor, spoiling: Spoiling, generator: torch.Generator) -> Tensor:
    """Read noise, and shot noise that grows with the root of the light; coarse for some, as in a face that was
    enlarged."""
    read = _wide(_log_between(draws[:, 0], *spoiling.noise)) / 255
    shot = _wide(draws[:, 1]) * 0.5 * read
    grain = torch.randn(faces.shape, generator=generator, device=faces.device)
    coarse = F.avg_pool2d(grain, 3, 1, 1, count_include_pad=False) * 3
    grain = torch.where(_wide(draws[:, 2]) < 0.25, coarse, grain)
    return (faces + (read**2 + shot**2 * faces.clamp(0, 1)).sqrt() * grain).clamp(0, 1)


def _jpeg(faces: Tensor, draws: Tensor, spoiling: Spoiling, generator: torch.Generator) -> Tensor:
    """JPEG's rounding of 8 x 8 cosines; the grid of blocks lies in the middle of a block for half of the faces."""
    quality = _between(draws[:, 0], *spoiling.quality).round()
    plain = jpeg(faces, quality)
    edge = F.pad(faces, (4, 4, 4, 4), mode="replicate")
    shifted = jpeg(edge, quality)[:, :, 4:-4, 4:-4]
    return torch.where(_wide(draws[:, 1]) < 0.5, plain, shifted)


def jpeg(faces: Tensor, quality: Tensor) -> Tensor:
    """Gray faces (N, 1, S, S) in [0, 1] after JPEG at ``quality`` (N,), as libjpeg scales its tables."""
    n, _, size, _ = faces.shape
    more = -size % 8
    whole = F.pad(faces, (0, more, 0, more), mode="replicate") if more else faces
    blocks = (size + more) // 8
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).floor()
    table = torch.tensor(_JPEG, device=faces.device, dtype=faces.dtype).view(8, 8)
    steps = ((table * scale[:, None, None] + 50) / 100).floor().clamp(1, 255)[:, None, None]
    cosines = _cosines(faces.device)
    # Rounded first: a camera's picture is 8 bits before it is compressed.
    levels = (whole * 255).round() - 128
    parts = levels.view(n, blocks, 8, blocks, 8).transpose(2, 3)
    coded = ((cosines @ parts @ cosines.T) / steps).round() * steps
    parts = cosines.T @ coded @ cosines
    out = parts.transpose(2, 3).reshape(n, 1, size + more, size + more)[:, :, :size, :size]
    return ((out + 128).round().clamp(0, 255)) / 255


@lru_cache(maxsize=8)
def _cosines(device: torch.device) -> Tensor:
    """The orthonormal cosine transform of 8 numbers."""
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)[None]
    rows = torch.cos(math.pi * (2 * n + 1) * k / 16) * math.sqrt(2 / 8)
    rows[0] /= math.sqrt(2)
    return rows.to(device)


_CHANGES: Mapping[str, Callable[[Tensor, Tensor, Spoiling, torch.Generator], Tensor]] = {
    "hide": _hide,
    "light": _light,
    "blur": _blur,
    "small": _small,
    "noise": _noise,
    "jpeg": _jpeg,
}
