"""Rows of parquet files, one row group in memory at a time, from any row on.

Trap: `datasets` streams parquet by Arrow's scanner, whose threads hang or abort at the end of a process that has not
read all rows (measured with pyarrow 26; datasets' own remedy is for pyarrow 24 and older, apache/arrow issue 45214).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class ParquetRows:
    """The part of a `datasets.IterableDataset` that a stream needs: take, skip, features and an exact state."""

    def __init__(self, files: Sequence[str], skipped: int = 0) -> None:
        """`files` are paths, or addresses that fsspec opens."""
        self.files, self.skipped = list(files), skipped
        self.at = {"file": 0, "group": 0, "row": skipped}
        """The next row: number of its file, of its row group, and within that."""

    @property
    def features(self) -> Any:
        """Types of the columns, with the names of classes where `datasets` has written the file."""
        import datasets
        import pyarrow.parquet  # type: ignore[import-untyped]

        with _opened(self.files[0]) as file:
            return datasets.Features.from_arrow_schema(pyarrow.parquet.ParquetFile(file).schema_arrow)

    def take(self, n: int) -> Iterator[dict[str, Any]]:
        return itertools.islice(ParquetRows(self.files, self.skipped), n)

    def skip(self, n: int) -> ParquetRows:
        return ParquetRows(self.files, self.skipped + n)

    def state_dict(self) -> dict[str, int]:
        return dict(self.at)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.at = dict(state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import pyarrow.parquet  # type: ignore[import-untyped]

        first_file, first_group, row = self.at["file"], self.at["group"], self.at["row"]
        for number in range(first_file, len(self.files)):
            with _opened(self.files[number]) as file:
                parquet = pyarrow.parquet.ParquetFile(file)
                for group in range(first_group if number == first_file else 0, parquet.num_row_groups):
                    n_rows = parquet.metadata.row_group(group).num_rows
                    if row >= n_rows:  # of a group that is left out, its length alone is read
                        row -= n_rows
                        continue
                    rest = parquet.read_row_group(group, use_threads=False).slice(row)
                    for batch in rest.to_batches(max_chunksize=64):
                        for record in batch.to_pylist():
                            row += 1
                            self.at = {"file": number, "group": group, "row": row}
                            yield record
                    row = 0


def _opened(address: str) -> Any:
    import fsspec  # type: ignore[import-untyped]

    return fsspec.open(address, "rb")
