"""How much memory this process and its GPU have used at most."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_metrics(device: torch.device) -> dict[str, float]:
    """What is logged of it."""
    gpu = {"train/device_memory_bytes": float(torch.cuda.max_memory_allocated(device))} if device.type == "cuda" else {}
    return {"train/host_memory_bytes": float(peak_memory_bytes()), **gpu}
