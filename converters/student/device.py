"""Where a training runs, and in which arithmetic."""

from __future__ import annotations

import torch

from fer_edge.doctor import cpu


def training_device() -> str:
    """``cuda`` where torch sees a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def native_bf16(device: str) -> bool:
    """Whether ``device`` multiplies bf16 itself. Where it does not, torch imitates it, eleven times slower than float32 on
    AVX2 (docs/decisions.md). On ARM nobody has tried, so float32 it is."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return "AVX-512 BF16" in cpu()[1]
