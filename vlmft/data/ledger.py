"""The ledger: every row that was not used, and why. `bad_rows.jsonl` in the run folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vlmft.config.check import ConfigError
from vlmft.config.files import whole_lines
from vlmft.config.schema import OnBadRow
from vlmft.sample import BadRow, BadRowError

LEDGER_FILE = "bad_rows.jsonl"
NAMED_ROWS = 3
FIRST_LOOKS = 200
"""The ceiling applies from this many rows on: of fewer, one bad row would be a large share."""


class Ledger:
    """Counts rows looked at and rows refused; stops the run by the policy of `data.on_bad_row`."""

    def __init__(self, path: Path | None, policy: OnBadRow, ceiling: float) -> None:
        self.path: Path | None = None
        self.policy, self.ceiling = policy, ceiling
        self.seen: set[str] = set()
        self.surveyed = 0
        """Rows that were read in one pass."""
        self.all_surveyed = False
        """These were all rows: from then on no single row is counted."""
        self.bad: dict[str, str] = {}
        self.written: set[str] = set()
        """Ids in the file, which a repeated evaluation has written before."""
        if path is not None:
            self.keep(path)

    def keep(self, path: Path, *, anew: bool = False) -> None:
        """Writes the refused rows, those so far and all later ones, into this file; `anew` deletes an older one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if anew:
            path.unlink(missing_ok=True)
        lines = whole_lines(path) if path.exists() else ()
        self.path, self.written = path, {json.loads(line)["id"] for line in lines}
        for row_id, reason in self.bad.items():
            self._write(row_id, reason)

    @contextlib.contextmanager
    def kept_if_refused(self, path: Path | None) -> Iterator[None]:
        """A start that fails leaves only the list of the rows that it refused, and its error names that file; None:
        not even that."""
        try:
            yield
        except (BadRowError, ConfigError) as error:
            if path is None or not self.bad:
                raise
            self.keep(path)
            raise type(error)(f"{error} ({len(self.bad)} refused rows are listed in {path})") from error

    def survey(self, n_rows: int, n_all: int) -> None:
        """`n_rows` of `n_all` were looked at in one pass."""
        self.surveyed, self.all_surveyed = n_rows, n_rows >= n_all
        self.seen = set() if self.all_surveyed else self.seen

    def admit(self, row_id: str) -> None:
        if not self.all_surveyed:
            self.seen.add(row_id)

    def refuse(self, row: BadRow) -> None:
        """Records a bad row, once per id.

        Raises:
            BadRowError: under policy `raise`, or above the ceiling.
        """
        self.refuse_all([row])

    def refuse_all(self, rows: Sequence[BadRow]) -> None:
        """Records all of them before the policy is applied, so that the error counts them; raises as `refuse`."""
        for row in rows:
            self._note(row)
        if not rows:
            return
        if self.policy == OnBadRow["raise"]:
            others = f"; then {', '.join(row.id for row in rows[1:NAMED_ROWS])}" if len(rows) > 1 else ""
            count = f"{len(rows)} rows cannot be used; the first: " if len(rows) > 1 else ""
            remedy = (
                f"fix the row{'s' * bool(count)}, or set data.on_bad_row=skip to leave {'them' if count else 'it'} out"
            )
            raise BadRowError(f"{count}row {rows[0].id}: {rows[0].reason}{others}; {remedy}")
        looked_at = max(self.surveyed, len(self.seen))
        share = len(self.bad) / max(looked_at, FIRST_LOOKS)
        if share > self.ceiling:
            raise BadRowError(
                f"{len(self.bad)} of {looked_at} rows are bad, more than data.bad_row_ceiling={self.ceiling:g} "
                f"allows; first: row {next(iter(self.bad))}: {next(iter(self.bad.values()))}"
            )

    def take_over(self, bad: Mapping[str, str]) -> None:
        """Records what another process has refused (id -> reason), without applying the policy again."""
        for row_id, reason in bad.items():
            self._note(BadRow(row_id, reason))

    def _note(self, row: BadRow) -> None:
        self.admit(row.id)
        if row.id in self.bad:
            return
        self.bad[row.id] = row.reason
        self._write(row.id, row.reason)

    def _write(self, row_id: str, reason: str) -> None:
        if self.path is not None and row_id not in self.written:
            self.written.add(row_id)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"id": row_id, "reason": reason}, ensure_ascii=False) + "\n")
