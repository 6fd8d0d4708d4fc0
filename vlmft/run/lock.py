"""One process a run folder. The lock ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vlmft.config.check import ConfigError
from vlmft.config.files import lock

_held: set[int] = set()
"""File descriptors of this process's locks."""


def _let_go() -> None:
    """In a forked child: a lock belongs to all that have it open, and processes that read rows outlive a killed run."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(folder: Path, advice: str = "or give this run a name=") -> Iterator[None]:
    """Holds the folder's lock while it lasts; `advice` ends the message that says to wait for its holder.

    Raises:
        ConfigError: another process holds it; names that process.
    """
    path = folder / ".lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            lock(file)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ConfigError(f"{folder} is in use by {holder}; wait for it, {advice}") from error
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
        _held.add(file.fileno())
        try:
            yield
        finally:
            _held.discard(file.fileno())
