"""The LightningDataModule: one instance serves one dataset. It knows rows and windows, never a tokenizer or a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
