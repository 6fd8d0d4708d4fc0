"""Progress of long passes, on stderr: bars below what is printed on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

QUIET_SECONDS, TERMINAL_SECONDS, LOG_SECONDS = 2.0, 0.2, 30.0
BAR_CHARACTERS = 16

_bars: list[Progress] = []
"""Those on the terminal now, the outermost first."""
_live: Live | None = None


class Progress:
    """`with Progress("rows read", 1_000_000) as progress: progress.advance()`; short passes print nothing."""

    def __init__(
        self, what: str, total: int, quiet_seconds: float | None = None, log_seconds: float = LOG_SECONDS
    ) -> None:
        self.what, self.total, self.done = what, total, 0
        self.terminal = is_terminal()
        self.every_seconds = TERMINAL_SECONDS if self.terminal else log_seconds
        self.started = time.monotonic()
        quiet = QUIET_SECONDS if quiet_seconds is None else quiet_seconds
        self.next, self.shown, self.shown_at = self.started + quiet, False, -1

    def advance(self, n: int = 1) -> None:
        self.done += n
        if time.monotonic() >= self.next:
            self.show()

    def show(self) -> None:
        """Puts the bar on the terminal as it is now, or prints a line."""
        self.next = time.monotonic() + self.every_seconds
        self.shown, self.shown_at = True, self.done
        if not self.terminal:
            print(f"  {self.sentence()}", file=sys.stderr, flush=True)
            return
        if self not in _bars:
            _bars.append(self)
        _draw()

    def sentence(self) -> str:
        """Such as "1,200 of 10,000 rows read, 340 per second, 26 s left"."""
        seconds = time.monotonic() - self.started
        rate = self.done / max(seconds, 1e-9)
        left = f"{duration((self.total - self.done) / rate)} left" if 0 < self.done < self.total else duration(seconds)
        return f"{self.done:,} of {self.total:,} {self.what}, {rate:,.{0 if rate >= 10 else 1}f} per second, {left}"

    def line(self) -> str:
        full = min(BAR_CHARACTERS, BAR_CHARACTERS * self.done // max(1, self.total))
        return f"  [{'#' * full:{BAR_CHARACTERS}}] {self.sentence()}"

    def close(self) -> None:
        """Takes the bar off the terminal and leaves its last line."""
        if self in _bars:
            _bars.remove(self)
            _draw()
        if self.shown and (self.terminal or self.shown_at != self.done):
            print(f"  {self.sentence()}", file=sys.stderr, flush=True)
        self.shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def is_terminal() -> bool:
    return sys.stderr.isatty()


def console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _draw() -> None:
    global _live
    if _live is None and _bars:
        from rich.live import Live

        # Without a thread of its own, which processes that read rows would inherit. What others print, libraries'
        # warnings too, comes above the bars.
        _live = Live(console=console(), auto_refresh=False, transient=True, redirect_stdout=sys.stdout.isatty())
        _live.start()
    if _live is None:
        return
    from rich.text import Text

    _live.update(Text("\n".join(bar.line() for bar in _bars), no_wrap=True, overflow="ellipsis"), refresh=True)
    if not _bars:
        _live.stop()
        _live = None
