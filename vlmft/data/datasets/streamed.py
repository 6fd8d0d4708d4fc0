"""data=columns data.streaming=true: a table whose training rows are read as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.datasets.columns import Columns
from vlmft.data.sources.declared_splits import split_column
from vlmft.data.sources.split_names import known_names
from vlmft.data.sources.streams import Stream, streamed_tables
from vlmft.data.sources.table import Table
from vlmft.data.sources.tables import Loaded
from vlmft.sample import Split


class StreamedColumns(Columns):
    """The rows that are looked at are those of a table; the others come from `training_rows`."""

    _stream: Stream

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def _load(self) -> Loaded:
        if self.where or self.images is not None:
            raise ConfigError("data.options: Expected no where and no images beside data.streaming; prepare the source")
        loaded, self._stream = streamed_tables(
            self.path, self.hub_id, self.revision, known_names(self.split_names), self.subset
        )
        return loaded

    def _kept(self, tables: dict[Split, Table], declared: bool) -> dict[Split, Table]:
        names, setting = known_names(self.split_names), self.named["split"]
        column = split_column(tables, self._column.values(), names) if setting is None else self._column.get("split")
        if column is not None:
            raise ConfigError(
                f"data.streaming: Expected splits by the names of files or of the Hub, got a column {column!r}; "
                "prepare files by split, or set data.options.split=none to train on all rows"
            )
        return tables

    def training_rows(self, state: Mapping[str, Any] | None) -> tuple[Any, Iterator[Any]]:
        """As `Streamed` in data/stream.py."""
        assert self.tables
        return self._stream.training_rows(state)

    def streamed_id(self, number: int) -> str:
        """Of the training row with this number."""
        return f"{self.name}/train/{number:06d}"
