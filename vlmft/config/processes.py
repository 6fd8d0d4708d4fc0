"""Which of a run's processes this one is, as Lightning's launcher, torchrun or srun has set it; and SLURM's queue."""

from __future__ import annotations

import os
import subprocess

LOCAL_RANK_NAMES = ("LOCAL_RANK", "SLURM_LOCALID")
RANK_NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
"""Environment variables of Lightning's own launcher, of torchrun, and of srun."""
SLURM_JOB = "SLURM_JOB_ID"
"""Environment variable of a job of SLURM. There, `#SBATCH --signal=USR1@90` warns a run 90 seconds before its time is
up, as in Lightning: it stops, and the job is queued again."""


def local_rank() -> int:
    """Which device of this machine this process computes on: as set by the launcher, else 0."""
    return next((int(os.environ[name]) for name in LOCAL_RANK_NAMES if name in os.environ), 0)


def follows() -> bool:
    """Whether this process only computes: another one, rank 0, prints and writes. Known before they are connected."""
    return any(int(os.environ.get(name, "0")) > 0 for name in RANK_NAMES)


def is_queued_again() -> bool:
    """Whether this is a job that SLURM has started before: then a run goes on without resume=true."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def queue_again() -> str:
    """Puts this job of SLURM into the queue again; returns a sentence about it."""
    array = [os.environ[name] for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if name in os.environ]
    job = "_".join(array) if len(array) == 2 else os.environ[SLURM_JOB]
    try:
        subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=True)
    except subprocess.CalledProcessError as error:
        return f"job {job} could not be queued again ({error.stderr.strip()})"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"job {job} could not be queued again ({error})"
    return f"job {job} is queued again"
