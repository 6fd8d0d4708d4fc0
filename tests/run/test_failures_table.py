"""docs/failures.md names a test for every failure, and that test is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ROW = re.compile(r"\| ([^|]+) \| [^|]+ \| ([\d, ]+) \| [^|]+ \| `(tests/[\w/]+\.py)::(test_\w+)` \|")


def missing(table: str) -> list[str]:
    """Tests that a table names and that are not there."""
    found = [match for line in table.splitlines() if (match := ROW.fullmatch(line))]
    assert len(found) == table.count("\n| ") - 1, "a row that does not read like the others"
    assert len(found) >= 14 and len({match[1] for match in found}) == len(found)
    assert {code for match in found for code in match[2].split(", ")} == {"0", "1", "2", "130", "137", "138", "143"}
    return [match[4] for match in found if not _defines(ROOT / match[3], match[4])]


def _defines(file: Path, test: str) -> bool:
    return file.is_file() and f"\ndef {test}(" in file.read_text(encoding="utf-8")


def test_every_failure_has_its_test() -> None:
    table = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
    assert missing(table) == []
    assert missing(table.replace("::test_kill_matrix`", "::test_kill_matrices`")) == ["test_kill_matrices"]
