"""SIGTERM, Ctrl-C and SLURM's warning (SIGUSR1): a flag, looked at where stopping is safe."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vlmft.config.processes import SLURM_JOB, follows, queue_again

SIGNALS = (signal.SIGTERM, signal.SIGINT)


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

    def install(self) -> None:
        """Takes the signals over; again after Lightning, which takes them for itself when fitting starts."""
        self.installed = True
        for number in signals():
            signal.signal(number, self.handle)


def signals() -> tuple[signal.Signals, ...]:
    """Those that stop a run here."""
    return (*SIGNALS, signal.SIGUSR1) if SLURM_JOB in os.environ else SIGNALS


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
