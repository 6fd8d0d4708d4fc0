"""What the type of one setting cannot say: truths across settings, and about the machine. Sentences, no exceptions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmft.config import evaluation_schema, schema, tool_schema
from vlmft.config.setting_types import refused_values, value_at

ALLOWED_PACKAGES = ("vlmft", "vlmft_plugins", "benchmarks.tiny")
"""A stored config may name classes of these, and of those that VLMFT_PLUGINS in the environment lists with commas.
`vlmft_plugins` is yours: a folder on the Python path."""
TARGET = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*:[A-Za-z]\w*", re.ASCII)
NAMED_BY_USER: set[str] = set()
"""All texts of the settings that this process was given by command line and conf/: what is a class among them may be
imported, from whatever module."""

MOONDREAMS_OF_GPT2 = ("2025-01-09", "2025-03-27", "2025-04-14")
"""Revisions with GPT-2's token ids; their files do not tell."""
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
"""A repository on the Hub: owner and name."""


def contradictions(config: object) -> Iterator[str]:
    """A sentence for each thing about `config` that does not hold."""
    yield from refused_values(config)
    run: str | None = value_at(config, "run")
    if run is not None and not Path(run).is_dir():
        yield f"run: there is no folder {run!r}; give the folder that train.py printed"
    yield from _foreign_classes(config)
    yield from _bad_arms(config)
    path = value_at(config, "data.path")
    if path is not None and not Path(path).expanduser().exists():
        yield f"data.path: there is no file or folder {path!r}; check it, or leave it out where the dataset needs none"
    model: schema.ModelConfig | None = value_at(config, "model")
    if model is not None:
        yield from _model_contradictions(model)
    if isinstance(config, schema.TrainConfig):
        yield from _training_contradictions(config)
        yield from _sharding_contradictions(config)
        yield from _streaming_contradictions(config)
    if isinstance(config, schema.EvaluateConfig):
        yield from _evaluation_contradictions(config)
    if isinstance(config, tool_schema.AskConfig) and (config.run is None) == (config.model is None):
        yield "run: Expected either run=<run folder> or model=, got " + ("both" if config.run is not None else "none")
    if isinstance(config, tool_schema.PlayConfig):
        yield from _play_contradictions(config)
    if isinstance(config, tool_schema.ExportConfig):
        yield from _export_contradictions(config)
    if isinstance(config, tool_schema.AnnotateConfig):
        yield from _annotation_contradictions(config)


def _bad_arms(config: object) -> Iterator[str]:
    evaluation: Any = value_at(config, "evaluation")
    if evaluation is None:
        return
    adapters = list(config.adapters) if isinstance(config, schema.EvaluateConfig) else []
    servers = list(evaluation.servers or ())
    others = [*adapters, *servers]
    for name in evaluation.arms or ():
        what, at, asked = name.partition("@")
        if what not in (*evaluation_schema.ARMS, *others) or (at and asked not in evaluation_schema.PROMPTS):
            yield f"evaluation.arms: Expected one of {', '.join((*evaluation_schema.ARMS, *others))}, got {name!r}"
        elif at and what not in ("untuned", "tuned", *others):
            yield f"evaluation.arms: Expected untuned or tuned before an @, got {name!r}"
        elif asked == "vendor" and what in servers:
            yield f"evaluation.arms: Expected @bare behind a server's name, got {name!r}"
    keys = {**dict.fromkeys(servers, "evaluation.servers"), **dict.fromkeys(adapters, "adapters")}
    for name, key in keys.items():
        taken = name in evaluation_schema.ARMS or others.count(name) > 1
        if taken or re.fullmatch(r"[A-Za-z][\w-]*", name) is None:
            yield f"{key}: Expected a name of letters, digits, - and _ that is no arm's yet, got {name!r}"
    if evaluation.few_shot.choose == evaluation_schema.ShotChoice.file and evaluation.few_shot.file is None:
        yield "evaluation.few_shot.file: Expected a file of examples with choose=file, got none; set it"
    if evaluation.arms == []:
        yield "evaluation.arms: Expected at least one arm, got none; set it"


def _foreign_classes(config: object) -> Iterator[str]:
    for key in ("data.dataset", "model.family"):
        value = value_at(config, key)
        if value is not None and (key, value) != ("model.family", "generic"):
            yield from foreign_target(key, value)


def foreign_target(key: str, target: str) -> Iterator[str]:
    """A sentence if `target` is no module.path:ClassName that may be imported. Looks at the text alone."""
    packages = (*ALLOWED_PACKAGES, *os.environ.get("VLMFT_PLUGINS", "").split(","))
    if not TARGET.fullmatch(target):
        yield f"{key}: Expected module.path:ClassName, got {target!r}"
    elif target not in NAMED_BY_USER and not target.replace(":", ".").startswith(tuple(f"{p}." for p in packages)):
        yield (
            f"{key}: Expected module.path:ClassName inside vlmft or vlmft_plugins, got {target!r}, which this command "
            f"does not name itself; if it is yours, set VLMFT_PLUGINS={re.split('[.:]', target)[0]} in the environment"
        )


def _model_contradictions(model: schema.ModelConfig) -> Iterator[str]:
    tunings = [model.train.language, model.train.connector, model.train.vision]
    mode = model.quantization.mode
    if mode != schema.QuantizationMode.none:
        if model.train.language == schema.Tuning.full:
            yield (
                "model.train.language: full training needs weights that are not quantised, "
                f"got model.quantization.mode={mode.name}; set it to none, or model.train.language=lora"
            )
        elif model.init == schema.Init.random and schema.Tuning.full in tunings:
            yield "model.init: random weights are trained in full; set model.quantization.mode=none"
    older = model.revision in MOONDREAMS_OF_GPT2
    fitting = f"vlmft.models.families.moondream2.family:Moondream2{'Gpt2' * older}Family"
    if ".moondream2." in model.family and model.revision is not None and model.family != fitting:
        yield f"model.family: moondream2 of {model.revision} has other token ids; set model.family={fitting}"
    if not model.lora.target_modules and schema.Tuning.lora in tunings:
        yield "model.lora.target_modules: Expected at least one layer name, got none"


def _training_contradictions(config: schema.TrainConfig) -> Iterator[str]:
    parts = config.model.train
    if {parts.language, parts.connector, parts.vision} == {schema.Tuning.frozen}:
        yield "model.train: Expected lora or full for at least one part, got frozen for all; there is nothing to train"
    for part in ("language", "connector", "vision"):
        if getattr(config.train.lr_by_part, part) is not None and getattr(parts, part) == schema.Tuning.frozen:
            yield f"train.lr_by_part.{part}: this part is not trained; set model.train.{part}=lora, or leave it out"
    if config.train.lora_plus_ratio is not None and schema.Tuning.lora not in vars(parts).values():
        yield "train.lora_plus_ratio: no part is trained by lora, got a ratio of its matrices; leave it out"
    if config.ckpt_path not in (None, *schema.OWN_CHECKPOINTS) and not Path(config.ckpt_path).is_dir():
        yield f"ckpt_path: Expected last, best or a checkpoint's folder, got {config.ckpt_path!r}; check it"
    for key, value in objects_of(config):
        if not (isinstance(value, Mapping) and isinstance(value.get("_target_"), str)):
            yield f"{key}: Expected a mapping with _target_: module.Class, got {value!r}; check its spelling"
    if config.train.early_stopping_patience is not None and config.trainer.limit_val_batches == 0:
        yield "train.early_stopping_patience: needs validation, got trainer.limit_val_batches=0; set one of the two"


def objects_of(config: schema.TrainConfig) -> Iterator[tuple[str, Any]]:
    """Key and settings of each object that a run makes by `_target_`; null is left out."""
    chosen = {name: getattr(config.trainer, name) for name in ("strategy", "profiler")}
    groups: dict[str, Mapping[str, Any]] = {
        "callbacks": config.callbacks,
        "logger.lightning": config.logger.lightning,
        "trainer.plugins": {str(i): plugin for i, plugin in enumerate(config.trainer.plugins)},
        "trainer": {name: value for name, value in chosen.items() if isinstance(value, Mapping)},  # else a name
    }
    for group, members in groups.items():
        yield from ((f"{group}.{name}", value) for name, value in members.items() if value is not None)


def _export_contradictions(config: tool_schema.ExportConfig) -> Iterator[str]:
    if Path(config.to).exists():
        yield f"to: Expected a folder that is not there yet, got {config.to!r}; give another name"
    if config.push is not None and not HUB_ID.fullmatch(config.push):
        yield f"push: Expected a Hub repository as NAME/MODEL, got {config.push!r}"
    if config.public and config.push is None:
        yield "public: nothing is pushed; give push=NAME/MODEL, too, or leave it out"


ALL_ROWS = {
    "limit_train": None,
    "train_per_class": None,
    "group_by_image": False,
    "group_near_duplicates": False,
    "val_rows": 0.1,
    "test_rows": 0.2,
}
"""Settings of data that ask for all rows before training, and their defaults."""


def _streaming_contradictions(config: schema.TrainConfig) -> Iterator[str]:
    if not config.data.streaming:
        return
    for name, default in ALL_ROWS.items():
        if (value := getattr(config.data, name)) != default:
            yield f"data.{name}: Expected {default} beside data.streaming, got {value}; it takes all rows to do that"
    if config.trainer.max_steps < 1:
        yield "trainer.max_steps: Expected the end of training beside data.streaming, for a stream has none, got none"


def _sharding_contradictions(config: schema.TrainConfig) -> Iterator[str]:
    if config.trainer.strategy == "fsdp" and config.train.compile:
        yield "train.compile: Expected trainer.strategy=ddp or auto beside it, got fsdp, which swaps a layer's weights"
    if config.trainer.strategy == "fsdp" and config.model.train.language == schema.Tuning.full:
        yield "trainer.strategy: Expected ddp for model.train.language=full, got fsdp, which shards frozen layers alone"


def _evaluation_contradictions(config: schema.EvaluateConfig) -> Iterator[str]:
    if config.run is not None and (config.model is not None or config.adapter is not None):
        yield "run: Expected run= without model= and adapter=, got both; a run brings its own, adapters.NAME= adds more"
    if config.run is None and (config.model is None or config.data is None):
        yield "run: Expected run=<run folder>, or model= and data= for an untuned model"
    if config.logger.lightning:
        names = " and ".join(config.logger.lightning)
        yield f"logger: Expected wandb or none, got {names}; an evaluation's numbers are in its summary.json"


def _play_contradictions(config: tool_schema.PlayConfig) -> Iterator[str]:
    named = [name for name in ("run", "export", "model") if getattr(config, name) is not None]
    if not named or (config.run is not None and len(named) > 1):
        got = " and ".join(named) or "none"
        yield f"run: Expected run=<run folder>, or export=<folder>, model= or both, got {got}"
    if config.export is None:
        return
    folder = Path(config.export).expanduser()
    if not folder.is_dir():
        yield f"export: there is no folder {config.export!r}; give the one that vlmft export made"
    elif (folder / "adapter_config.json").is_file():
        if config.model is None:
            yield f"export: Expected model=<its base> beside the adapter in {config.export!r}, got none"
    elif not (folder / "config.json").is_file():
        yield f"export: Expected a folder of vlmft export, got {config.export!r}, which holds no model; check it"


def _annotation_contradictions(config: tool_schema.AnnotateConfig) -> Iterator[str]:
    local = config.annotator == tool_schema.AnnotatorName.local
    models = [name for name in ("run", "model") if getattr(config, name) is not None]
    if config.annotator is None and not (config.review or config.accept_all):
        yield "annotator: Expected openai, gigachat, local, or review=true or accept_all=true without one, got none"
    if config.review and config.accept_all:
        yield "accept_all: Expected it or review=true, got both"
    if local and len(models) != 1:
        yield f"annotator: local takes either run=<run folder> or model=, got {'both' if models else 'none'}"
    if not local and models:
        yield f"run: Expected annotator=local beside run= or model=, got {' and '.join(models)} without it"
    if config.annotator == tool_schema.AnnotatorName.openai and config.chat.model is None:
        yield "chat.model: Expected the name of the server's model, got none; set it"
