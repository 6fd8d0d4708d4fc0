"""What a processor refuses is a bad row, not a broken run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vlmft.sample import BadRowError


@contextlib.contextmanager
def processor_refusals() -> Iterator[None]:
    """Raises BadRowError for the ValueError by which a processor refuses a row."""
    try:
        yield
    except ValueError as error:
        raise BadRowError(f"Expected a row that the model's processor takes, got: {error}; mend or drop it") from error
