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


def refuse_length(most: int, n_tokens: int, what: str) -> None:
    """Raises BadRowError for a row of more tokens than `most`; `what` says what they are counted with."""
    if n_tokens > most:
        raise BadRowError(
            f"Expected at most {most} tokens {what}, got {n_tokens}; "
            "shorten the row, or raise model.max_length_tokens as far as the model and memory allow"
        )
