"""What the benchmarks beside other programs share: FLOPs, a clock, and a process of its own for each measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Job = TypeVar("Job")
Found = TypeVar("Found")


def flop_counter() -> FlopCounterMode:
    """torch's, that counts sdpa on a CPU, too: by itself it counts that on GPUs alone."""

    def sdpa(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(gradient, query, key, value)

    operators = torch.ops.aten
    own: dict[Any, Any] = {
        operators._scaled_dot_product_flash_attention_for_cpu: sdpa,
        operators._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=own)


def clock(device: str) -> float:
    """Seconds: of this process's work on a CPU, by the wall clock once a GPU is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_fresh_process(function: Callable[[Job], Found], job: Job, preload: Sequence[str]) -> Found:
    """What the function finds in a child of a process that has imported the `preload` modules and loaded no model, so
    that nothing is left from a measurement before, and its peak of memory is its own."""
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, job).result()
