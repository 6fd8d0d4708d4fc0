"""SIGTERM and Ctrl-C: a flag, looked at where stopping is safe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
        for number in SIGNALS:
            signal.signal(number, self.handle)


@contextmanager
def stop_request(advice: str | None = None) -> Iterator[StopRequest]:
    """Signals become a request for as long as this lasts; the handlers before come back after it.

    With `advice` on how to go on, an `Interrupted` becomes one line on stderr and a SystemExit of its exit code.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    request = StopRequest()
    request.install()
    try:
        yield request
    except Interrupted as error:
        if advice is None:
            raise
        print(f"{error}; {advice}", file=sys.stderr)
        sys.exit(error.exit_code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
