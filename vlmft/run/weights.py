"""Stored weights: written at the end of a run, and put on a base again.

They come from a run, one of its checkpoints, somebody's PEFT adapter, or a whole model such as an export.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.config.schema import (
    EvaluateConfig,
    Init,
    ModelConfig,
    QuantizationConfig,
    QuantizationMode,
    TrainConfig,
    Tuning,
)
from vlmft.config.trainer_schema import TrainerConfig
from vlmft.evaluation.evaluate import peft_name
from vlmft.models.family import make_family
from vlmft.models.load import load_model, load_source
from vlmft.models.loaded import LoadedModel
from vlmft.models.locate import first_line
from vlmft.models.lora import dequantized, load_adapter, rounded, trainable, tuned_parts
from vlmft.models.memory_check import require_weights
from vlmft.run.build import pick_device
from vlmft.run.folder import ADAPTER, read_run, write_json
from vlmft.run.start import local_adapter
from vlmft.run.threads import use_threads
from vlmft.training.checkpoint import CheckpointError, read_checkpoint, whole_folder

FINGERPRINT_FILE = "fingerprint.json"
FULL_PARTS_FILE = "full_parts.safetensors"
"""Beside an adapter: the parts that were trained in full."""
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", FINGERPRINT_FILE]


def save_adapter(model: LoadedModel, folder: Path) -> Path:
    """The adapter in PEFT's own format with processor and fingerprint beside it; or, after full training, the model.

    Raises:
        OSError: it cannot be written whole, such as on a full disk.
    """
    with whole_folder(folder) as beside:
        model.family.processor.save_pretrained(beside)  # type: ignore[attr-defined]
        write_json(beside / FINGERPRINT_FILE, model.fingerprint)
        if isinstance(model.model, PeftModel):
            # Named, for PEFT would gather a sharded base on this rank alone, and wait for ever.
            own = {name: p.detach() for name, p in model.model.named_parameters() if ".lora_" in name}
            model.model.save_pretrained(beside, safe_serialization=True, save_embedding_layers=False, state_dict=own)
            full = {n: p.detach().cpu().contiguous() for n, p in trainable(model.model).items() if ".lora_" not in n}
            if full:  # PEFT stores its own tensors alone
                save_file(full, beside / FULL_PARTS_FILE)
        else:
            _save_in_bf16(model.base, beside)
    return folder


def _save_in_bf16(model: PreTrainedModel, folder: Path) -> None:
    """Stores the whole model and leaves its weights rounded as stored: what is evaluated next is what was saved."""
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    rounded(model, torch.bfloat16).save_pretrained(folder, max_shard_size="50GB")
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])


def _stored_fingerprint(folder: Path) -> dict[str, str] | None:
    path = folder / FINGERPRINT_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _differing(stored: Mapping[str, str] | None, model: LoadedModel) -> str:
    """What of prompt format, processor and base differs from what an adapter was trained under; "" where nothing is."""
    stored, mine = stored or {}, model.fingerprint
    return ", ".join(sorted(name for name in {*stored, *mine} if stored.get(name) != mine.get(name)))


def load_base(config: ModelConfig, trainer: TrainerConfig, seed: int) -> LoadedModel:
    """The untuned model."""
    use_threads(trainer.threads or config.default_threads)
    source, hf_config = load_source(config)
    family = make_family(config, source, hf_config)
    device = pick_device(trainer)
    require_weights(config, hf_config, device, trainer)
    return LoadedModel(config, source, family, load_model(config, source, hf_config, device, seed), device, seed)


def load_tuned(
    folder: Path, run: TrainConfig, trainer: TrainerConfig, *, exact: bool = False, mismatch: bool = False
) -> LoadedModel:
    """The run's model with what it trained, without its data; `exact` takes the quantised base's weights in fp32.

    Raises:
        ConfigError: there is no adapter, or it was trained under another prompt, processor or base and not `mismatch`.
    """
    adapter = folder / ADAPTER
    if not adapter.is_dir():
        raise ConfigError(f"run: there is no folder {ADAPTER!r} in {str(folder)!r}; did the training end?")
    adapted = bool(tuned_parts(run.model.train, Tuning.lora))  # else it holds the whole model
    whole = dataclasses.replace(run.model, path=str(adapter), revision=None, init=Init.pretrained)
    model = load_base(run.model if adapted else whole, trainer, run.seed)
    differing = _differing(_stored_fingerprint(adapter), model) if adapted else ""
    if differing and not mismatch:
        raise ConfigError(f"run: the adapter was trained under another {differing} than is here now")
    model.model = dequantized(model.base) if exact else model.base
    if (adapter / FULL_PARTS_FILE).is_file():
        stored = load_file(adapter / FULL_PARTS_FILE)  # under PEFT's names, in fp32 as they were trained
        stored = {name.removeprefix("base_model.model."): tensor for name, tensor in stored.items()}
        mine = dict(model.base.named_parameters())
        if odd := sorted(stored.keys() - mine.keys()):
            raise ConfigError(f"run: {len(odd)} tensors of {FULL_PARTS_FILE} do not fit the model ({odd[0]})")
        for name, tensor in stored.items():
            mine[name].data = tensor.to(mine[name])
    if adapted:
        model.model = load_adapter(model.base, str(adapter))
    model.model.eval()
    return model


def chosen_model(run: str | None, model: ModelConfig | None, trainer: TrainerConfig, *, mismatch: bool) -> LoadedModel:
    """The run's tuned model, or the untuned `model`; raises ConfigError as `load_tuned`."""
    if run is not None:
        return load_tuned(Path(run), read_run(run), trainer, mismatch=mismatch)
    assert model is not None  # guaranteed by checked()
    return load_base(model, trainer, seed=0)


@dataclass
class Others:
    """What was put beside an untuned model."""

    adapters: list[str] = field(default_factory=list)
    """Names of the adapters on the model."""
    models: dict[str, Callable[[], LoadedModel]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def put_others(model: LoadedModel, config: EvaluateConfig) -> Others:
    """Puts every adapter that the settings name on the model, the run's own first, and finds the whole models.

    Raises:
        ConfigError: nothing usable at a place, or an adapter of another prompt, processor or base, unless allowed.
    """
    others = Others()
    places = {f"adapters.{name}": (name, place) for name, place in config.adapters.items()}
    if (own := config.run or config.adapter) is not None:
        places = {"run" if config.run is not None else "adapter": ("tuned", own), **places}
    for key, (name, place) in places.items():
        folder = Path(place).expanduser()
        is_whole = (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()
        if name != "tuned" and is_whole:
            others.models[name] = partial(_whole, model, folder)
        else:
            _put(model, key, peft_name(name), place, config, others.notes)
            others.adapters.append(name)
    model.model.eval()
    return others


def _whole(model: LoadedModel, folder: Path) -> LoadedModel:
    none = QuantizationConfig(mode=QuantizationMode.none)
    place = {"path": str(folder), "revision": None, "init": Init.pretrained, "quantization": none}
    return model.other(dataclasses.replace(model.model_config, **place))  # type: ignore[arg-type]


def _put(model: LoadedModel, key: str, name: str, place: str, config: EvaluateConfig, notes: list[str]) -> None:
    folder = _adapter_folder(key, place)
    is_checkpoint = (folder / "state.json").is_file()
    adapter = folder.parent.parent / ADAPTER if is_checkpoint else folder
    if is_checkpoint and not adapter.is_dir():
        raise ConfigError(f"{key}: Expected a checkpoint of an ended run, got {place!r}; resume the run first")
    if (folder / FULL_PARTS_FILE).is_file():
        raise ConfigError(f"{key}: {str(folder)!r} trained parts in full; export it (vlmft export) and name the export")
    notes += _mismatch(model, key, adapter, allowed=config.allow_fingerprint_mismatch)
    if is_checkpoint:
        _put_checkpoint(model, key, name, folder, adapter)
        return
    try:
        model.model = load_adapter(model.model, str(folder), name, key)
    except (ValueError, RuntimeError, KeyError) as error:  # what PEFT raises for missing layers and other shapes
        raise ConfigError(f"{key}: the adapter in {place!r} does not fit this model ({first_line(error)})") from error


def _adapter_folder(key: str, place: str) -> Path:
    if (folder := local_adapter(key, place)) is not None:
        return folder
    try:
        return Path(snapshot_download(place, allow_patterns=ADAPTER_FILES))
    except (OSError, ValueError) as error:  # huggingface_hub's own are kinds of these
        raise ConfigError(
            f"{key}: {place!r} cannot be read ({first_line(error)}); check the id and the network"
        ) from error


def _mismatch(model: LoadedModel, key: str, folder: Path, *, allowed: bool) -> list[str]:
    """What to note of an adapter's fingerprint; raises ConfigError for one that differs where that is not allowed."""
    stored = _stored_fingerprint(folder)
    if stored is None and key != "run":
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        return [
            f"{key}: the adapter carries no fingerprint, so nothing shows under which prompt, processor and base it "
            f"was trained (it names {base!r}; this is {model.model_config.path!r})"
        ]
    if not (differing := _differing(stored, model)):
        return []
    if not allowed:
        raise ConfigError(
            f"{key}: the adapter was trained under another {differing} than this evaluation has; "
            "restore it, or set allow_fingerprint_mismatch=true and read the table with that in mind"
        )
    return [f"{key}: the adapter was trained under another {differing}"]


def _put_checkpoint(model: LoadedModel, key: str, name: str, folder: Path, adapter: Path) -> None:
    """A checkpoint holds trained parameters alone; the run's adapter config says in which form."""
    try:
        stored: dict[str, torch.Tensor] = read_checkpoint(folder)["state_dict"]
        form = PeftConfig.from_pretrained(str(adapter))
    except (CheckpointError, OSError, ValueError) as error:
        raise ConfigError(
            f"{key}: {str(folder)!r} cannot be read ({first_line(error)}); name a checkpoint of an ended run"
        ) from error
    form.inference_mode = True
    if isinstance(model.model, PeftModel):
        model.model.add_adapter(name, form)
    else:
        model.model = get_peft_model(model.model, form, adapter_name=name)
    mine = dict(model.model.named_parameters())
    named = {key.replace(".default.", f".{name}."): tensor for key, tensor in stored.items()}
    if odd := sorted(named.keys() ^ {n for n in mine if ".lora_" in n and f".{name}." in n}):
        raise ConfigError(f"{key}: {len(odd)} tensors of {str(folder)!r} do not fit the model ({odd[0]})")
    for parameter_name, tensor in named.items():
        mine[parameter_name].data = tensor.to(mine[parameter_name])
