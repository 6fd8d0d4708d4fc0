"""The LightningDataModule: one instance serves one dataset. It knows rows and windows, never a tokenizer or a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import lightning as L
import torch.utils.data
from torch.utils.data import DataLoader

from vlmft.config.failures import outlive_signals
from vlmft.config.schema import DataConfig
from vlmft.data.dataset import Dataset
from vlmft.data.ledger import Ledger
from vlmft.data.rows import Rows
from vlmft.data.sampler import WindowSampler
from vlmft.sample import BadRow, BadRowError, EncodedRow, Question, Sample, Split

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


class VLMDataModule(Rows, L.LightningDataModule):
    """Rows of a dataset's splits, served as windows for training and as batches for validation loss."""

    def __init__(
        self, dataset: Dataset, config: DataConfig, encode: Encode, ledger: Ledger, rows_per_step: int, seed: int
    ) -> None:
        L.LightningDataModule.__init__(self)
        Rows.__init__(self, dataset, config, ledger, seed)
        self.encode, self.rows_per_step = encode, rows_per_step
        self.position = (0, 0)
        """(epoch, windows of it already trained) at which the next training loader begins."""

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
        sampler = WindowSampler(len(self.ids["train"]), self.rows_per_step, self.seed, *self._rank(), self.mix())
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
