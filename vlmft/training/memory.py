"""Memory of the process: how much it and its GPU have used at most, and how glibc gives pages back."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Mapping

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
KEPT_BYTES = 1 << 30
PAD_BYTES = 64 << 20
MAPPED_FROM_BYTES = 128 << 10


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_metrics(device: torch.device) -> dict[str, float]:
    """What is logged of it."""
    gpu = {"train/device_memory_bytes": float(torch.cuda.max_memory_allocated(device))} if device.type == "cuda" else {}
    return {"train/host_memory_bytes": float(peak_memory_bytes()), **gpu}


def keep_freed_pages() -> None:
    """Lets freed tensors' memory be used again instead of returned to the kernel and faulted in anew at each step.

    Training on a CPU allocates and frees the same large tensors for ever; with glibc's defaults a third to a half of
    the time goes into page faults. Does nothing where there is no glibc.
    """
    _mallopt({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: KEPT_BYTES, M_TOP_PAD: PAD_BYTES})


def give_back_freed_pages() -> None:
    """Returns each freed tensor's memory to the kernel at once: slower, and no more is taken than what is alive.

    Gradient checkpointing is worth nothing on a CPU without it: what it frees would stay with the heap, in pieces
    between what it keeps (measured: 1.1 GiB instead of 0.45).
    """
    _mallopt({M_MMAP_THRESHOLD: MAPPED_FROM_BYTES})


def _mallopt(settings: Mapping[int, int]) -> None:
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, value in settings.items():
            mallopt(name, value)
