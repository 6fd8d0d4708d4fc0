"""Out of memory: told apart from other errors, and survived."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

CPU_WORDS = "DefaultCPUAllocator: can't allocate memory"
"""On a CPU torch raises a plain RuntimeError."""


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or CPU_WORDS in str(error)


def or_none(work: Callable[[], T]) -> T | None:
    """What `work` returns, or None where memory ran out; then all that it held is free again."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()  # not inside the block above, where the error's traceback still holds the tensors of the attempt
    torch.cuda.empty_cache()
    return None
