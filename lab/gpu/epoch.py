"""All faces of one epoch of one training, made at once: a GPU starts a few thousand small kernels here, and none while
the network learns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fer_edge.converters.student.augment import Strength, disturb, mirrored, mixup, view, warp
from fer_edge.converters.student.language import draw

from .course import VIEW_SEED, Course, Material, steps, view_strength
from .pack import STEP
from .spoil import Spoiling, fate

CHUNK = 4096
"""Faces that are spoilt at once: what blurs them takes 1.5 MB for each face that it blurs."""


@dataclass(frozen=True)
class Epoch:
    """S batches of B faces, n of them with votes: ``faces`` (S, B, 1, 48, 48) float16 in [0, 1], ``votes`` (S, n, K),
    ``taught`` (S, B, K), None without teachers, and ``text`` (S, K, 4, T), the sentences that each batch meets. On the
    device, mixed already."""

    faces: Tensor
    votes: Tensor
    taught: Tensor | None
    text: Tensor

    def tensors(self) -> list[Tensor]:
        """Those that there are, always in the same order."""
        return [t for t in (self.faces, self.votes, self.text, self.taught) if t is not None]


def make_epoch(course: Course, material: Material, number: int, taught: Tensor | None = None) -> Epoch:
    """Epoch ``number``, drawn from (seed, number) alone. With ``taught`` (views, N, K), what is seen is one of the views
    that teachers were asked about, further moved and spoilt. The last batches' worth of faces that fill no batch are left
    out; photos come in turn."""
    device, with_votes = material.device, course.batch - course.photos
    generator = torch.Generator().manual_seed(course.seed * 100_003 + number)
    rows = rows_of(course, material, generator)
    faces = _faces(course, material, number, 0 if taught is None else len(taught), rows, generator)
    there = rows.to(device)
    votes = material.votes[there[:, :with_votes]]
    said = None if taught is None else taught[number % len(taught)][there]
    text = torch.stack([draw(material.groups, 4, 0.02, generator) for _ in rows]).to(device)
    if course.mixup:
        faces, votes, said = _mixed(course, faces, votes, said, generator)
    return Epoch(faces, votes, said, text)


def rows_of(course: Course, material: Material, generator: torch.Generator) -> Tensor:
    """Rows (S, B) of the faces in every batch: first those with votes, shuffled, then photos."""
    count, with_votes = steps(course, material), course.batch - course.photos
    rows = torch.randperm(material.labelled, generator=generator)[: count * with_votes].view(count, with_votes)
    if course.photos:
        rest = torch.randperm(len(material.images) - material.labelled, generator=generator) + material.labelled
        rows = torch.cat([rows, rest[torch.arange(count * course.photos).view(count, -1) % len(rest)]], 1)
    return rows


def _faces(course: Course, material: Material, number: int, views: int, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Moved, spoilt and disturbed: (S, B, 1, 48, 48) float16."""
    device, total = material.device, len(material.images) if course.photos else material.labelled
    strength = Strength(erase=0.15).times(course.light)
    which = 1 + number % views if views else 1 + number
    maps = view(total, view_strength() if views else strength, VIEW_SEED if views else course.seed, which)
    maps = mirrored(maps, torch.rand(total, generator=generator) < 0.5)
    luck = fate(total, Spoiling(once=course.once, twice=course.twice), course.seed, number)
    maps = luck.moved(maps)
    dither = torch.Generator(device).manual_seed(course.seed * 1009 + number)
    parts = []
    for i, part in enumerate(torch.split(rows.flatten(), CHUNK)):
        faces = material.images[part.to(device)].float()
        faces += STEP * (torch.rand(faces.shape, generator=dither, device=device) - 0.5)  # levels were rounded to travel
        faces = warp(faces.clamp(0, 255) / 255, maps[part].to(device))
        parts.append(disturb(luck.of(part, i).spoilt(faces), strength, generator).half())
    return torch.cat(parts).view(*rows.shape, *parts[0].shape[1:])


def _mixed(
    course: Course, faces: Tensor, votes: Tensor, taught: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Faces with votes are mixed with each other, and photos with photos."""
    (count, batch), n = faces.shape[:2], votes.shape[1]
    partners, shares = [], []
    for _ in range(count):
        partner, share = mixup(n, course.mixup, generator)
        other, more = mixup(batch - n, course.mixup, generator)
        partners.append(torch.cat([partner, other + n]))
        shares.append(torch.cat([share, more]))
    partner, own = torch.stack(partners).to(faces.device), torch.stack(shares).to(faces.device)
    step = torch.arange(count, device=faces.device)[:, None]
    # Step by step, a few at once: all in float32 would take three times as much as the epoch.
    pairs = zip(*(torch.split(t, max(1, CHUNK // batch)) for t in (step, partner, own)), strict=True)
    mixed = []
    for i, p, s in pairs:
        share = s[..., None, None, None]
        mixed.append((share * faces[i[:, 0]] + (1 - share) * faces[i, p]).half())
    own = own[..., None]
    votes = own[:, :n] * votes + (1 - own[:, :n]) * votes[step, partner[:, :n]]
    if taught is not None:
        taught = own * taught + (1 - own) * taught[step, partner]
    return torch.cat(mixed), votes, taught
