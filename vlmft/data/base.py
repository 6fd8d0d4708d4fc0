"""The LightningDataModule: one instance serves one dataset. It knows rows and windows, never a tokenizer or a model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import lightning as L
import torch.utils.data
from torch.utils.data import DataLoader

from vlmft.config.check import ConfigError
from vlmft.config.failures import outlive_signals
from vlmft.config.schema import DataConfig
from vlmft.data.card import SplitCard, Tally
from vlmft.data.dataset import CLASS, Dataset
from vlmft.data.ledger import Ledger
from vlmft.data.sampler import WindowSampler, epoch_order
from vlmft.data.splits import assert_disjoint, assign, groups_of
from vlmft.sample import SPLITS, BadRow, BadRowError, EncodedRow, Question, Sample, Split

Encode = Callable[[Sample], EncodedRow]


NUMBER = 8675309
"""Stands for a gold answer that the source holds as a number."""


def _replaced(value: Any, golds: set[str], answer: str, *, numbers: bool) -> Any:
    if isinstance(value, str):
        return answer if value.strip().casefold() in golds else value
    if isinstance(value, Mapping):
        return {key: _replaced(item, golds, answer, numbers=numbers) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_replaced(item, golds, answer, numbers=numbers) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if numbers and isinstance(value, (int, float)) and not isinstance(value, bool) and str(value) in golds:
        return type(value)(NUMBER)
    return value


class EncodedRows(torch.utils.data.Dataset[EncodedRow | BadRow]):
    """Stages 1 to 3 for one row, in a worker: read, render, encode. A row that fails comes out as a `BadRow`."""

    def __init__(self, dataset: Dataset, ids: Sequence[str], encode: Encode) -> None:
        self.dataset, self.ids, self.encode = dataset, ids, encode

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> EncodedRow | BadRow:
        row_id = self.ids[position]
        try:
            return self.encode(self.dataset.to_sample(self.dataset.read(row_id)))
        except BadRowError as error:
            return BadRow(row_id, str(error))


def as_list(rows: list[EncodedRow | BadRow]) -> list[EncodedRow | BadRow]:
    """A window stays a list until the module cuts it into batches. Named, so that workers can be spawned."""
    return rows


class VLMDataModule(L.LightningDataModule):
    """Rows of a dataset's splits, served as windows for training and as batches for validation loss."""

    def __init__(
        self, dataset: Dataset, config: DataConfig, encode: Encode, ledger: Ledger, rows_per_step: int, seed: int
    ) -> None:
        super().__init__()
        self.dataset, self.config, self.encode, self.ledger = dataset, config, encode, ledger
        self.rows_per_step, self.seed = rows_per_step, seed
        self._hashes: dict[bytes, str] = {}
        self.divided: tuple[Split, ...] = ()
        """Splits that the source does not declare: their rows were taken from train."""
        self.cards: dict[Split, SplitCard] = {}
        """Filled by `check_splits`."""
        self.ids: dict[Split, Sequence[str]] = self._limited(self._filled(dataset.index()))
        self.position = (0, 0)
        """(epoch, windows of it already trained) at which the next training loader begins."""

    def _filled(self, index: Mapping[Split, Sequence[str]]) -> Mapping[Split, Sequence[str]]:
        """Where val or test is not declared: taken from train by content, without the rows that cannot be read."""
        missing: dict[Split, float] = {"test": self.config.test_rows, "val": self.config.val_rows}
        missing = {split: share for split, share in missing.items() if share > 0 and split not in index}
        if not missing or not self.dataset.fills_splits or "train" not in index:
            return index
        bad: list[BadRow] = []
        classes: dict[str, str] = {}
        rows = self._readable(index["train"], bad.append)

        def seen(split: Split, sample: Sample, contents: set[str]) -> None:
            classes[sample.id] = sample.tags.get(CLASS, "")
            self.ledger.admit(sample.id)

        groups = groups_of({"train": rows}, self._hashes, seen, bad.append)
        self.ledger.refuse_all(bad)
        asked = sum(share if share >= 1 else share * len(groups) for share in missing.values())
        if asked >= len(groups):
            keys = ", ".join(f"data.{split}_rows={share:g}" for split, share in missing.items())
            raise ConfigError(f"{keys}: Expected fewer than the {len(groups)} usable rows that there are; lower them")
        self.divided = tuple(missing)
        divided = assign(groups, classes, missing, self.config.split_seed)
        return {**index, **{split: sorted(rows) for split, rows in divided.items()}}

    def _limited(self, index: Mapping[Split, Sequence[str]]) -> dict[Split, Sequence[str]]:
        ids: dict[Split, Sequence[str]] = {}
        for split in SPLITS:
            rows = index.get(split, [])
            if split == "train" and self.config.train_per_class is not None:
                rows = self._of_each_class(rows, self.config.train_per_class)
            limit = getattr(self.config, f"limit_{split}")
            if limit is not None and limit < 1:
                limit = max(1, round(limit * len(rows)))
            if limit is not None and limit < len(rows):
                # of val and test the same rows for every training seed
                seed = self.seed if split == "train" else self.config.split_seed
                chosen = sorted(epoch_order(len(rows), seed, epoch=0)[: int(limit)].tolist())
                rows = [rows[i] for i in chosen]
            ids[split] = rows
        return ids

    def _of_each_class(self, rows: Sequence[str], most: int) -> list[str]:
        """Rows of no class are bad ones and stay: they are refused by name where they are used."""
        taken: Counter[str] = Counter()
        chosen = []
        for position in epoch_order(len(rows), self.seed, epoch=0).tolist():
            with contextlib.suppress(BadRowError):
                tags = self.sample(rows[position]).tags
                if CLASS not in tags:
                    raise ConfigError(f"data.train_per_class: {self.dataset.name} knows no classes; leave it out")
                taken[tags[CLASS]] += 1
                if taken[tags[CLASS]] > most:
                    continue
            chosen.append(position)
        return [rows[position] for position in sorted(chosen)]

    @property
    def metric_name(self) -> str:
        return self.config.metric or self.dataset.metric

    @property
    def max_new_tokens(self) -> int:
        return self.config.max_new_tokens or self.dataset.max_new_tokens

    def sample(self, row_id: str) -> Sample:
        """Stages 1 and 2 for one row.

        Raises:
            BadRowError: as the dataset says, without its id.
        """
        return self.dataset.to_sample(self.dataset.read(row_id))

    def with_answer(self, row_id: str, answer: str) -> tuple[Sample, bool]:
        """The row as if its gold answer were another, and whether its source record already said so.

        For the leak canary: whatever reads the answer on the way to the prompt would show. A gold answer that the
        record holds as a number becomes `NUMBER`; one that is computed from the record cannot be replaced there.
        """
        sample = self.sample(row_id)
        golds = {text.strip().casefold() for text in (sample.answer, *sample.references)}
        # Numbers only where texts are not enough: one of them may be equal to the answer by chance.
        tried = [self._rewritten(row_id, golds, answer, numbers=numbers) or sample for numbers in (False, True)]
        reached = [changed for changed in tried if changed.answer.strip().casefold() not in golds]
        censored = dataclasses.replace((reached or tried)[0], answer=answer, references=(answer,))
        return censored, bool(reached)

    def _rewritten(self, row_id: str, golds: set[str], answer: str, *, numbers: bool) -> Sample | None:
        record = self.dataset.read(row_id)
        changed = _replaced(record, golds, answer, numbers=numbers)
        kept = {key: value for key, value in record.items() if key == "id"}
        try:
            return self.dataset.to_sample({**changed, **kept})
        except (ValueError, TypeError, LookupError, AttributeError):  # the dataset takes no such answer
            return None

    def samples(self, row_ids: Sequence[str]) -> list[Sample]:
        """The rows as samples, without those that the ledger takes."""
        found = []
        for row_id in row_ids:
            try:
                found.append(self.sample(row_id))
                self.ledger.admit(row_id)
            except BadRowError as error:
                self.ledger.refuse(BadRow(row_id, str(error)))
        return found

    def check_splits(self, poll: Callable[[], None] = lambda: None) -> None:
        """Makes sure that no row and no image stands in two of the splits as used; decodes every image once.

        Counts on the way what `cards` tells of the rows, and refuses those that cannot be read. `poll` is called before
        each row; it raises where the run was asked to stop.

        Raises:
            ConfigError: with the count and one pair of rows by name; or there is nothing to train on.
            BadRowError: as the ledger says.
        """
        if not self.ids["train"]:
            raise ConfigError("data: the training split has no rows; choose other splits or mend the data")
        assert_disjoint(self.ids)
        if self.dataset.disjoint_by_construction:
            return
        bad: list[BadRow] = []
        tallies = {split: Tally() for split in SPLITS}

        def seen(split: Split, sample: Sample, contents: set[str]) -> None:
            tallies[split].add(sample, contents, sample.tags.get(CLASS, ""))
            self.ledger.admit(sample.id)

        rows = {split: self._readable(self.ids[split], bad.append, poll) for split in SPLITS}
        groups_of(rows, self._hashes, seen, bad.append)
        self.ledger.refuse_all(bad)
        self.cards = {split: tallies[split].card(len(self.ids[split])) for split in SPLITS if self.ids[split]}

    def _readable(
        self, rows: Sequence[str], refuse: Callable[[BadRow], None], poll: Callable[[], None] = lambda: None
    ) -> Iterator[Sample]:
        for row_id in rows:
            poll()
            try:
                sample = self.sample(row_id)
            except BadRowError as error:
                refuse(BadRow(row_id, str(error)))
                continue
            yield sample

    def questions(self, row_ids: Sequence[str]) -> list[Question]:
        """What generation may see of these rows."""
        return [Question(sample.id, sample.prompt) for sample in self.samples(row_ids)]

    def _rank(self) -> tuple[int, int]:
        """This process's rank, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _loader(self, split: Split, sampler: WindowSampler) -> DataLoader[Any]:
        rows = EncodedRows(self.dataset, self.ids[split], self.encode)
        workers = self.config.workers
        # Own generators: creating an iterator draws from the global one, which would move dropout between two runs.
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=as_list,
            num_workers=workers,
            worker_init_fn=outlive_signals,
            persistent_workers=workers > 0,
            generator=generator,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        sampler = WindowSampler(len(self.ids["train"]), self.rows_per_step, self.seed, *self._rank())
        sampler.epoch, sampler.served = self.position
        return self._loader("train", sampler)

    def state_dict(self) -> dict[str, Any]:
        """Where training stands: epochs ended, and windows trained of the one begun."""
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        ended = self.trainer.is_last_batch
        return {"epoch": self.trainer.current_epoch + ended, "windows": 0 if ended else progress.ready}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next training loader begin there. Lightning asks an iterator of it before it sets an epoch."""
        self.position = (state_dict["epoch"], state_dict["windows"])

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val", WindowSampler(len(self.ids["val"]), self.rows_per_step, None, *self._rank()))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> list[EncodedRow]:
        """In the main process: bad rows go to the ledger, the others on."""
        good = []
        for row in cast(list[EncodedRow | BadRow], batch):
            if isinstance(row, BadRow):
                self.ledger.refuse(row)
            else:
                self.ledger.admit(row.id)
                good.append(row)
        return good

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # rows are numpy; the module moves the batches that it collates
