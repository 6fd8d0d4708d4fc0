"""Progress of a long pass over the data, on stderr: one line that changes on a terminal, lines in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType

QUIET_SECONDS, TERMINAL_SECONDS, LOG_SECONDS = 2.0, 0.2, 30.0


class Progress:
    """`with Progress("rows read", 1_000_000) as progress: progress.advance()`; short passes print nothing."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.started = time.monotonic()
        self.next, self.shown = self.started + QUIET_SECONDS, False
        self.terminal = sys.stderr.isatty()

    def advance(self, n: int = 1) -> None:
        self.done += n
        if time.monotonic() >= self.next:
            self._show("\r" if self.terminal else "\n")

    def _show(self, end: str) -> None:
        seconds = time.monotonic() - self.started
        self.next = time.monotonic() + (TERMINAL_SECONDS if self.terminal else LOG_SECONDS)
        rate = self.done / max(seconds, 1e-9)
        left = f", {(self.total - self.done) / rate:.0f} s left" if 0 < self.done < self.total else f", {seconds:.0f} s"
        bar = f"[{'#' * (20 * self.done // max(1, self.total)):20}] " if self.terminal else ""
        text = f"  {bar}{self.done:,} of {self.total:,} {self.what}, {rate:,.0f} per second{left}"
        print(text.ljust(79), end=end, file=sys.stderr, flush=True)
        self.shown = True

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.shown:
            self._show("\n")
