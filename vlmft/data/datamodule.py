"""The LightningDataModule: one instance serves one dataset. It knows rows and windows, never a tokenizer or a model.

Training and validation loss take windows of encoded rows with their answers; test and prediction take prompts, which
are encoded without an answer.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import lightning as L
import torch.utils.data
from torch.utils.data import DataLoader

from vlmft.config.failures import outlive_signals
from vlmft.config.schema import DataConfig
from vlmft.data.dataset import Dataset
from vlmft.data.ledger import Ledger
from vlmft.data.order import WindowSampler
from vlmft.data.rows import Rows
from vlmft.data.stream import LeftOut, Mark, Streamed, Window, WindowStream, shown_in
from vlmft.sample import BadRow, BadRowError, EncodedRow, Prompt, Question, Sample, Split

Encode = Callable[[Sample], EncodedRow]
EncodePrompt = Callable[[str, Prompt], EncodedRow]
"""(row id, prompt) -> the row as generation gets it."""


@dataclass(frozen=True)
class PromptRow:
    """A row to be answered: its encoded prompt, and the references, for scoring only."""

    id: str
    prompt: EncodedRow
    references: tuple[str, ...]


def as_prompt(encode_prompt: EncodePrompt, sample: Sample) -> PromptRow:
    return PromptRow(sample.id, encode_prompt(sample.id, sample.prompt), sample.references)


class EncodedRows(torch.utils.data.Dataset[Any]):
    """Stages 1 to 3 for one row, in a worker: read, render, encode. A row that fails comes out as a `BadRow`."""

    def __init__(self, dataset: Dataset, ids: Sequence[str], encode: Callable[[Sample], Any]) -> None:
        self.dataset, self.ids, self.encode = dataset, ids, encode

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> Any:
        row_id = self.ids[position]
        try:
            return self.encode(self.dataset.to_sample(self.dataset.read(row_id)))
        except BadRowError as error:
            return BadRow(row_id, str(error))


def as_list(rows: list[Any]) -> list[Any]:
    """A window stays a list until the module cuts it into batches. Named, so that workers can be spawned."""
    return rows


class VLMDataModule(Rows, L.LightningDataModule):
    """Rows of a dataset's splits, served as windows for training, and as batches for validation, test and prediction.

    Test and prediction need `encode_prompt`.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        encode: Encode,
        ledger: Ledger,
        rows_per_step: int,
        seed: int,
        encode_prompt: EncodePrompt | None = None,
    ) -> None:
        L.LightningDataModule.__init__(self)
        Rows.__init__(self, dataset, config, ledger, seed)
        self.encode, self.encode_prompt, self.rows_per_step = encode, encode_prompt, rows_per_step
        self.prompts_per_batch = 64
        """Rows of a batch in test and prediction."""
        self.predict_split: Split = "test"
        """Whose rows `trainer.predict` answers."""
        self.position = (0, 0)
        """(epoch, windows of it already trained): where the next training loader begins."""
        self.mark = Mark()
        """Of a stream: the block of the window that was trained last."""
        self.left_out = 0
        """Of a stream: training rows of this rank that show what another split shows."""

    def questions(self, row_ids: Sequence[str]) -> list[Question]:
        """The rows as generation gets them: without answers."""
        return [Question(sample.id, sample.prompt) for sample in self.samples(row_ids)]

    def _rank(self) -> tuple[int, int]:
        """This process's rank, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _loader(
        self,
        split: Split,
        encode: Callable[[Sample], Any],
        windows: WindowSampler | None = None,
        positions: range | None = None,
        batch_size: int = 1,
    ) -> DataLoader[Any]:
        workers = self.config.workers or 0
        # Own generators: creating an iterator draws from the global one, which would move dropout between two runs.
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            EncodedRows(self.dataset, self.ids[split], encode),
            batch_sampler=windows,
            sampler=positions,
            batch_size=batch_size,
            collate_fn=as_list,
            num_workers=workers,
            worker_init_fn=outlive_signals,
            persistent_workers=workers > 0,
            generator=generator,
        )

    def _windows(self) -> WindowSampler:
        overfits = self.trainer is not None and bool(getattr(self.trainer, "overfit_batches", 0))
        seed = None if overfits else self.seed  # then each epoch begins with the same rows
        groups = self.image_groups() if self.config.group_by_image else None
        return WindowSampler(len(self.ids["train"]), self.rows_per_step, seed, *self._rank(), self.mix(), groups)

    @property
    def n_windows(self) -> int:
        """Windows of an epoch without Lightning's limits; a stream's has no end."""
        if self.streams:
            return sys.maxsize
        return len(self._windows())

    @property
    def streams(self) -> bool:
        """Whether training rows are read as they come."""
        return self.config.streaming

    def _stream(self) -> DataLoader[Any]:
        held_out = {key for split in ("val", "test") for sample in self._held_out(split) for key in shown_in(sample)}
        stream = WindowStream(
            cast(Streamed, self.dataset),
            self.encode,
            self.rows_per_step,
            self.config.block_rows,
            self.seed,
            self._rank(),
            held_out,
            self.mark if self.position[1] else Mark(),  # that of a fit before this one is none
            self.position[1],
        )
        self.position = (0, 0)
        # One process at most: several would each have the whole stream.
        workers, own = min(1, self.config.workers or 0), torch.Generator()
        return DataLoader(stream, batch_size=None, num_workers=workers, worker_init_fn=outlive_signals, generator=own)

    def _held_out(self, split: Split) -> Iterator[Sample]:
        """Rows of a split before limits, without bad ones."""
        for row_id in self.splits.ids[split]:
            with contextlib.suppress(BadRowError):
                yield self.sample(row_id)

    def train_dataloader(self) -> DataLoader[Any]:
        if self.streams:
            return self._stream()
        sampler = self._windows()
        sampler.epoch, sampler.served = self.position
        self.position = (0, 0)  # another fit of this object starts from the beginning
        return self._loader("train", self.encode, sampler)

    def state_dict(self) -> dict[str, Any]:
        """Progress of training: finished epochs, and trained windows of the current one. A window is one step."""
        assert self.trainer is not None
        steps = self.trainer.global_step
        if self.streams:
            state = {"windows": steps, "mark": self.mark.to_dict(), "left_out": self.left_out}
            return {"epoch": 0, **state}
        epoch, windows = divmod(steps, int(self.trainer.num_training_batches)) if steps else (0, 0)
        return {"epoch": epoch, "windows": windows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next training loader begin there. Lightning asks an iterator of it before it sets an epoch."""
        self.position = (state_dict["epoch"], state_dict["windows"])
        if self.streams:
            self.mark, self.left_out = (
                Mark(**state_dict["mark"]),
                (state_dict["left_out"] if self._rank()[0] == 0 else 0),
            )

    def val_dataloader(self) -> DataLoader[Any]:
        windows = WindowSampler(len(self.ids["val"]), self.rows_per_step, None, *self._rank())
        return self._loader("val", self.encode, windows)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._prompts("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._prompts(self.predict_split)

    def _prompts(self, split: Split) -> DataLoader[Any]:
        """Batches of `PromptRow`, in the order of the rows."""
        assert self.encode_prompt is not None, "made without encode_prompt"
        rank, n_ranks = self._rank()
        positions = range(rank, len(self.ids[split]), n_ranks)
        return self._loader(
            split, partial(as_prompt, self.encode_prompt), positions=positions, batch_size=self.prompts_per_batch
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> list[Any]:
        """In the main process: bad rows go to the ledger, the others on."""
        if isinstance(batch, Window):
            self.mark, batch = batch.mark, batch.rows
        good = []
        for row in batch:
            if isinstance(row, LeftOut):
                self.left_out += 1
            elif isinstance(row, BadRow):
                self.ledger.refuse(row)
            else:
                self.ledger.admit(row.id)
                good.append(row)
        return good

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # rows are numpy; the module moves the batches that it collates
