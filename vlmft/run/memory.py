"""Memory of the process: how glibc gives pages back, and how much was used at most."""

from __future__ import annotations

import ctypes
import sys

from vlmft.training.memory import peak_memory_bytes

__all__ = ["keep_freed_pages", "peak_memory_bytes"]

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEPT_BYTES = 1 << 30
PAD_BYTES = 64 << 20


def keep_freed_pages() -> None:
    """Lets freed tensors' memory be used again instead of returned to the kernel and faulted in anew at each step.

    Training on a CPU allocates and frees the same large tensors for ever; with glibc's defaults a third to a half of
    the time goes into page faults. Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_TOP_PAD, PAD_BYTES)
