"""SIGTERM, Ctrl-C and SLURM's warning (SIGUSR1): a flag, looked at where stopping is safe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vlmft.models.ranks import follows, gathered

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SLURM_JOB = "SLURM_JOB_ID"
"""Environment variable of a job of SLURM. There, `#SBATCH --signal=USR1@90` warns a run 90 seconds before its time is
up, as in Lightning: it stops, and the job is queued again."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was asked to stop and has stopped at a safe place. `exit_code` is 128 + signal: 143 or 130."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class StopRequest:
    """Remembers the first signal; a second one of Ctrl-C stops at once, as people expect."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.installed = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def check(self) -> None:
        """
        Raises:
            Interrupted: a signal has come.
        """
        if self.number is not None:
            raise Interrupted(self.number)

    def asked(self) -> bool:
        """Whether any rank was: the same on all of them. Every rank has to call it."""
        numbers = [number for number in gathered(self.number) if number is not None]
        if numbers:  # else left alone: a signal may have come while this rank waited for the others
            self.number = max(numbers)
        return bool(numbers)

    def check_together(self) -> None:
        """`check` on all ranks at once: one that stopped alone would leave the others waiting."""
        if self.asked():
            self.check()

    def install(self) -> None:
        """Takes the signals over; again after Lightning, which takes them for itself when fitting starts."""
        self.installed = True
        for number in signals():
            signal.signal(number, self.handle)


def signals() -> tuple[signal.Signals, ...]:
    """Those that stop a run here."""
    return (*SIGNALS, signal.SIGUSR1) if SLURM_JOB in os.environ else SIGNALS


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


@contextmanager
def stop_request(advice: str | None = None) -> Iterator[StopRequest]:
    """Signals become a request for as long as this lasts; the handlers before come back after it.

    With `advice` on how to go on, an `Interrupted` becomes one line on stderr and a SystemExit of its exit code; on a
    rank other than 0 one of 0, because Lightning kills rank 0 where another one failed.
    """
    before = {number: signal.getsignal(number) for number in signals()}
    request = StopRequest()
    request.install()
    try:
        yield request
    except Interrupted as error:
        if advice is None:
            raise
        if follows():
            sys.exit(0)
        is_warning = SLURM_JOB in os.environ and error.exit_code == 128 + signal.SIGUSR1
        print(f"{error}; {queue_again() if is_warning else advice}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
