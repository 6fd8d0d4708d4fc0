"""How many threads PyTorch computes with on the CPU: as many as there are cores for this process to have.

With more threads than free cores each operation waits for the thread that got none. The number changes the order in
which sums are rounded, so it is stored with a run. How threads wait for each other is set before torch is imported, in
vlmft/config/entry.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

LOOK_SECONDS = 0.25
CGROUPS = Path("/sys/fs/cgroup")
TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def choose_threads(n_processes: int = 1, stored: int | None = None, of_model: int | None = None) -> tuple[int, str]:
    """A number of threads and the reason for it.

    Args:
        n_processes: how many that compute on this machine belong to this run; several get equal shares of the cores,
            whatever else is running, so that all choose the same.
        stored: what the run that goes on has computed with so far.
        of_model: with how many the model computes fastest.
    """
    if stored is not None:
        return stored, "what this run began with, so that its results stay the same"
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        return max(1, int(asked)), "OMP_NUM_THREADS"
    if of_model is not None:
        return of_model, "model.default_threads: more would only wait for each other"
    there = cores()
    if n_processes > 1:
        return max(1, there // n_processes), f"{there} cores for {n_processes} processes"
    busy = busy_cores()
    free = max(1, min(there, there_in_all() - round(busy)))
    return free, f"{there} cores, {f'{there - free} of them busy' if free < there else 'all of them free'}"


def use_threads(number: int | None) -> None:
    """Makes PyTorch compute with so many; None: with those that `choose_threads` names."""
    torch.set_num_threads(number if number is not None else choose_threads()[0])


def there_in_all() -> int:
    """Physical cores that this process may be scheduled on; two hardware threads of one core count once."""
    cpus = allowed_cpus()
    siblings = {_read(Path(TOPOLOGY.format(cpu))) or str(cpu) for cpu in cpus}
    return len(siblings) if cpus else os.cpu_count() or 1


def allowed_cpus() -> set[int]:
    """As its affinity says, such as under taskset or a cluster's scheduler; empty where the system knows none."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def cores() -> int:
    """Physical cores that this process can use at once, by its affinity and the limit of its control group."""
    quota = cgroup_cores()
    return max(1, min(there_in_all(), int(quota) if quota is not None else 1 << 30))


def cgroup_cores(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """The least limit (cpu.max) of the control groups that this process is in, in cores; None where there is none."""
    limits = []
    group = root / _read(own).rpartition("::")[2].strip("/")
    for folder in (group, *group.parents):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit():  # else "max"
            limits.append(int(quota) / int(period))
        if folder == root:
            break
    return min(limits, default=None)


def busy_cores() -> float:
    """How many of the CPUs that this process may use others keep busy, looked at for a quarter of a second."""
    shares = psutil.cpu_percent(interval=LOOK_SECONDS, percpu=True)
    mine = allowed_cpus() or set(range(len(shares)))
    return float(sum(share for cpu, share in enumerate(shares) if cpu in mine) / 100)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
