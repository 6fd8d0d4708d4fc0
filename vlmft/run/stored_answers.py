"""The untuned model's answers, generated once: a later run that asks the same base the same prompts finds them.

They lie in the cache folder, below a key of all that decides their bits: what stands in a predictions file, the prompts
of all rows in their order, because batches are cut of them, the model's settings and small files, device, threads,
libraries, and our code.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vlmft.config.files import contents_sha256, source_files
from vlmft.config.schema import CacheConfig
from vlmft.data.survey.cache import Store, sha256
from vlmft.evaluation import few_shot, predict
from vlmft.evaluation.predict import PredictionFile
from vlmft.models import family
from vlmft.models.feature_cache import machine
from vlmft.models.loaded import LoadedModel
from vlmft.models.ranks import of_rank_0, rank
from vlmft.sample import BadRowError, Prompt, Question

ANSWERS = "answers-"
"""What keys in the store begin with."""
NAMES = ("arm", "split")
"""In the key of a predictions file; they decide no answer."""
OF_TRAINING = ("name", "lora", "default_lr", "default_threads")
"""Settings of a model that say nothing of it untuned."""
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
"""Of a model's folder: its config and its tokenizer. Of its weights a predictions file has the name."""


# Trap: as this process has loaded them. After hours of training other code or packages may lie on the disk.
ASKING = [Path(str(module.__file__)) for module in (predict, few_shot)]
CODE = contents_sha256([*Path(str(family.__file__)).parent.rglob("*.py"), *ASKING])
PACKAGES = [version(name) for name in ("peft", "bitsandbytes", "tokenizers")]


def bits_of(model: LoadedModel) -> dict[str, Any]:
    """What moves the bits of an untuned model's answers beside what stands in a predictions file."""
    folder, is_cuda = Path(model.source.path), model.device.type == "cuda"
    return {
        "settings": {n: v for n, v in dataclasses.asdict(model.model_config).items() if n not in OF_TRAINING},
        "files": contents_sha256(file for pattern in SMALL_FILES for file in folder.glob(pattern)),
        "allowed": sorted(model.family.allowed_ids),
        "code": [CODE, contents_sha256(source_files(type(model.family)))],
        "packages": PACKAGES,
        "kernels": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark] if is_cuda else [],
        **machine(model.device),
    }


class StoredAnswers:
    """Answers of one untuned model to one list of questions."""

    def __init__(self, model: LoadedModel, questions: Sequence[Question], file: PredictionFile) -> None:
        decides = {name: value for name, value in file.key.items() if name not in NAMES}
        asked = [[asks.id, *map(_sha256, (asks.prompt, *asks.shorter))] for asks in questions]
        said = json.dumps([decides, asked, bits_of(model)], sort_keys=True, default=str)
        self.file, self.ids, self.name = file, {asks.id for asks in questions}, f"{ANSWERS}{sha256(said)}"
        self.is_begun = not self.ids.isdisjoint(file.rows)
        """By another process, of which nothing is known but the file's key."""

    def fill(self) -> None:
        """Adds to the file what is stored and not in it yet."""
        rows = of_rank_0(self._stored() if rank() == 0 else [])
        self.file.append([row for row in rows if row["id"] not in self.file.rows])

    def _stored(self) -> list[dict[str, Any]]:
        store = Store()
        (value,) = store.values([self.name], [""])
        if value is None:
            return []
        store.used(self.name)
        return list(json.loads(zlib.decompress(value)))

    def forget(self) -> None:
        """Deletes what is stored."""
        if rank() == 0:
            Store().forget([self.name])

    def keep(self) -> None:
        """Stores the file's answers to these questions, where this process has generated all of them."""
        if rank() == 0 and not self.is_begun:
            rows = [row for row_id, row in self.file.rows.items() if row_id in self.ids]
            rows = [{name: value for name, value in row.items() if name not in self.file.key} for row in rows]
            store = Store()
            store.keep([(self.name, "", zlib.compress(json.dumps(rows, ensure_ascii=False).encode()))])
            store.used(self.name)


def reusable(settings: CacheConfig) -> type[StoredAnswers] | None:
    """What keeps answers for later runs; None where that is switched off."""
    return StoredAnswers if settings.enabled and settings.answers else None


def _sha256(prompt: Prompt) -> str:
    try:
        return prompt.sha256
    except BadRowError:  # it is refused where it is asked
        return ""
