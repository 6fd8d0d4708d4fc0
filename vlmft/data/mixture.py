"""Several datasets as one; a weight sets how often the rows of each come in an epoch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmft.config.check import ConfigError, nearest, one_line
from vlmft.config.entry import conf_dir
from vlmft.config.schema import DataConfig
from vlmft.data.dataset import Dataset, Description, Ids, Record
from vlmft.data.make import make_dataset
from vlmft.data.sources.table import Chained
from vlmft.data.survey.cache import code_of
from vlmft.data.survey.facts import sources_of
from vlmft.sample import CLASS, GROUP, SPLITS, BadRowError, Sample, Split

SOURCE = "source"
"""Tag of a Sample: the part that it comes from, and what the part itself calls its source."""
LEGAL = ("data", "weight", "path", "revision", "dataset", "options")


class Mixture(Dataset):
    """`parts={chartqa: 2, mine: {data: messages, path: rows.jsonl, weight: 0.5}}`: name -> weight, or settings.

    A part is the dataset of conf/data/<name>.yaml, or of the file that `data` names, with its own `path`, `revision`
    and `options` over those; or a `dataset` (module:Class) without a file. The weight, 1 by default, is how often
    each of its training rows comes in an epoch. Val and test have each row once.

    Ids begin with the part's name. Splits that a part does not declare are taken from its train by content, together
    with those of other such parts. Limits and shares (`data.limit_train`, `data.val_rows`) are the mixture's own.
    """

    name: ClassVar[str] = "mixture"
    fills_splits: ClassVar[bool] = True

    def __init__(self, *, parts: Mapping[str, Any] | None = None) -> None:
        """Raises ConfigError for missing or invalid parts."""
        if not parts:
            raise ConfigError(
                "data.options.parts: Expected datasets and weights such as {chartqa: 2, shapes: 1}, got none"
            )
        self.parts = dict(parts)
        self._weights, self._configs, self._datasets = {}, {}, {}
        for name, setting in self.parts.items():
            self._configs[name], self._weights[name] = part_config(name, setting)
            try:
                self._datasets[name] = make_dataset(self._configs[name])
            except ConfigError as error:
                raise ConfigError(f"data.options.parts.{name}: {error}") from error
        self._indices: dict[str, Mapping[Split, Sequence[str]]] = {}

    def __getstate__(self) -> dict[str, Any]:  # a worker gets its ids
        return {**self.__dict__, "_indices": {}}

    @property
    def metric(self) -> str:  # type: ignore[override]
        """That of the parts; raises ConfigError where they have several."""
        metrics = {name: config.metric or self._datasets[name].metric for name, config in self._configs.items()}
        if len(set(metrics.values())) > 1:
            several = ", ".join(f"{metric} of {name}" for name, metric in metrics.items())
            raise ConfigError(f"data.metric: Expected one metric for all parts, got {several}; set data.metric")
        return next(iter(metrics.values()))

    @property
    def max_new_tokens(self) -> int:  # type: ignore[override]
        """The longest of the parts'."""
        return max(c.max_new_tokens or self._datasets[name].max_new_tokens for name, c in self._configs.items())

    @property
    def disjoint_by_construction(self) -> bool:  # type: ignore[override]
        return len(self._datasets) == 1 and all(part.disjoint_by_construction for part in self._datasets.values())

    @property
    def allow_tokens(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of any part."""
        return tuple(dict.fromkeys(token for part in self._datasets.values() for token in part.allow_tokens))

    def describe(self) -> Description:
        """What each part was read as, by its name."""
        whole = Description()
        for name, dataset in self._datasets.items():
            part = dataset.describe().under(name)
            whole.roles |= part.roles
            whole.unread |= part.unread
            whole.notes += part.notes
            for split, origin in part.splits.items():
                whole.splits[split] = "; ".join(filter(None, (whole.splits.get(split), origin)))
        return whole

    def index(self) -> Mapping[Split, Sequence[str]]:
        """Split -> ids such as "chartqa/chartqa/test/000012": the part, then the id that it has there."""
        self._indices = {name: part.index() for name, part in self._datasets.items()}
        found: dict[Split, Sequence[str]] = {}
        for split in SPLITS:
            rows = {name: index[split] for name, index in self._indices.items() if split in index}
            if rows:
                found[split] = Chained(
                    [Ids(partial(_spelled, name, ids), range(len(ids))) for name, ids in rows.items()]
                )
        return found

    def undeclared(self, index: Mapping[Split, Sequence[str]]) -> Mapping[tuple[Split, ...], np.ndarray]:
        found: dict[tuple[Split, ...], list[np.ndarray]] = {}
        start = 0
        for name, part in self._datasets.items():
            for lacking, places in part.undeclared(self._indices[name]).items():
                found.setdefault(lacking, []).append(start + places)
            start += len(self._indices[name].get("train", ()))
        return {lacking: np.concatenate(places) for lacking, places in found.items()}

    def weights(self) -> Mapping[str, float]:
        return self._weights if set(self._weights.values()) != {1} else {}

    def read(self, row_id: str) -> Record:
        """The part's record, with the part's name before its "id"."""
        part, own_id = self._at(row_id)
        return {**part.read(own_id), "id": row_id}

    def to_sample(self, record: Record) -> Sample:
        """The part's sample. Rows that are grouped there are grouped here, never with rows of another part."""
        part, own_id = self._at(record["id"])
        sample = part.to_sample({**record, "id": own_id})
        name = record["id"].partition("/")[0]
        tied = {tag: f"{name}/{sample.tags[tag]}" for tag in (GROUP, CLASS) if sample.tags.get(tag)}
        source = {SOURCE: f"{name} {sample.tags[SOURCE]}" if SOURCE in sample.tags else name}
        return dataclasses.replace(
            sample,
            id=record["id"],
            conversation=f"{name}/{sample.conversation}" if sample.conversation else "",
            tags={**sample.tags, **tied, **source},
        )

    def _at(self, row_id: str) -> tuple[Dataset, str]:
        name, _, own_id = row_id.partition("/")
        if name not in self._datasets:
            raise BadRowError(f"Expected an id that begins with {', '.join(self._datasets)}, got {row_id!r}")
        return self._datasets[name], own_id

    def comes_from(self) -> tuple[str, ...] | None:
        """The sources and settings of all parts; None where those of one part are unknown."""
        found: list[str] = []
        for name, part in self._datasets.items():
            sources, settings = sources_of(part), part.settings()
            if sources is None or settings is None:
                return None
            found += [name, settings, code_of(type(part)), *sources]
        return tuple(found)


def part_config(name: str, setting: Any) -> tuple[DataConfig, float]:
    """One part's settings and weight.

    Raises:
        ConfigError: a name with "/", no such file, a setting that a part does not have, a weight of 0 or below.
    """
    key = f"data.options.parts.{name}"
    settings = dict(setting) if isinstance(setting, Mapping) else {"weight": setting}
    if unknown := [key for key in settings if key not in LEGAL]:
        raise ConfigError(f"{key}.{unknown[0]}: no such setting of a part; {nearest(unknown[0], LEGAL)}")
    weight, file = settings.pop("weight", 1), settings.pop("data", name)
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not 0 < weight < math.inf:
        raise ConfigError(f"{key}: Expected a weight above 0, or settings with one, got {weight!r}")
    if "/" in name:
        raise ConfigError(f"{key}: Expected a name without '/', which ends it in the ids of rows; rename it")
    known = sorted(path.stem for path in (conf_dir() / "data").glob("*.yaml") if path.stem != "mixture")
    if "dataset" not in settings and file not in known:
        raise ConfigError(f"{key}: there is no dataset {file!r}; {nearest(str(file), known)}, or set data or dataset")
    stored = {"name": name} if "dataset" in settings else OmegaConf.load(conf_dir() / "data" / f"{file}.yaml")
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), stored, settings))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {one_line(error)}") from error
    assert isinstance(config, DataConfig)
    return config, float(weight)


def _spelled(name: str, ids: Sequence[str], place: int) -> str:
    return f"{name}/{ids[place]}"
