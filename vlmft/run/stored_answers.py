"""The untuned model's answers, generated once: a later run that asks the same base the same prompts finds them.

They lie in the cache folder, below a key of all that decides their bits: what stands in a predictions file, the prompts
of all rows in their order, because batches are cut of them, the model's settings, device, threads, libraries, and our
code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from vlmft.data.survey.cache import Store, sha256
from vlmft.evaluation import predict
from vlmft.evaluation.predict import PredictionFile
from vlmft.models.feature_cache import code_of, machine
from vlmft.models.loaded import LoadedModel
from vlmft.models.ranks import of_rank_0, rank
from vlmft.sample import Question

ANSWERS = "answers-"
"""What keys in the store begin with."""
NAMES = ("arm", "split")
"""In the key of a predictions file; they decide no answer."""
OF_TRAINING = ("name", "lora", "default_lr", "default_threads")
"""Settings of a model that say nothing of it untuned."""


class StoredAnswers:
    """Answers of one untuned model to one list of questions."""

    def __init__(self, model: LoadedModel, questions: Sequence[Question], file: PredictionFile) -> None:
        decides = {name: value for name, value in file.key.items() if name not in NAMES}
        asked = [[asks.id, *(prompt.sha256 for prompt in (asks.prompt, *asks.shorter))] for asks in questions]
        self.file, self.ids = file, [asks.id for asks in questions]
        self.name = f"{ANSWERS}{sha256(json.dumps([decides, asked], sort_keys=True))}"
        settings = {n: v for n, v in dataclasses.asdict(model.model_config).items() if n not in OF_TRAINING}
        versions = [version(library) for library in ("peft", "bitsandbytes")]
        code = [code_of(type(model.family)), hashlib.sha256(inspect.getsource(predict).encode()).hexdigest()]
        allowed = sorted(model.family.allowed_ids)
        said = {"model": settings, "allowed": allowed, "packages": versions, "code": code, **machine(model.device)}
        self.mark = sha256(json.dumps(said, sort_keys=True, default=str))

    def fill(self) -> None:
        """Adds to the file what is stored and not in it yet."""
        rows = of_rank_0(self._stored() if rank() == 0 else [])
        self.file.append([row for row in rows if row["id"] not in self.file.rows])

    def _stored(self) -> list[dict[str, Any]]:
        (value,) = Store().values([self.name], [self.mark])
        return list(json.loads(zlib.decompress(value))) if value is not None else []

    def keep(self) -> None:
        """Stores the file's answers to these questions."""
        if rank() == 0:
            rows = [self.file.rows[row_id] for row_id in self.ids if row_id in self.file.rows]
            rows = [{name: value for name, value in row.items() if name not in self.file.key} for row in rows]
            store = Store()
            store.keep([(self.name, self.mark, zlib.compress(json.dumps(rows, ensure_ascii=False).encode()))])
            store.used(self.name)
