"""More arms beside a run's own: other runs, checkpoints, somebody's PEFT adapter, whole models such as an export."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftConfig, PeftModel, get_peft_model

from vlmft.config.check import ConfigError
from vlmft.config.schema import EvaluateConfig, Init, QuantizationConfig, QuantizationMode
from vlmft.models.lora import load_adapter
from vlmft.run.build import Built
from vlmft.run.evaluate import peft_name
from vlmft.run.folder import ADAPTER
from vlmft.run.results import FULL_PARTS_FILE, differing_fingerprint, read_fingerprint
from vlmft.run.start import local_adapter
from vlmft.training.checkpoint import CheckpointError, read_checkpoint

ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "fingerprint.json"]


@dataclass
class Others:
    """What was added to an evaluation."""

    adapters: list[str] = field(default_factory=list)
    """Names of the adapters on the model."""
    models: dict[str, Callable[[], Built]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def put_others(built: Built, config: EvaluateConfig) -> Others:
    """Puts every adapter that the settings name on the model, the run's own first, and finds the whole models.

    Raises:
        ConfigError: nothing usable at a place, or an adapter of another prompt, processor or base, unless allowed.
    """
    found = Others()
    own = "run" if config.run is not None else "adapter"
    if (place := config.run or config.adapter) is not None:
        _put(built, own, peft_name("tuned"), place, config, found)
        found.adapters.append("tuned")
    for name, place in config.adapters.items():
        folder = Path(place).expanduser()
        if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
            found.models[name] = partial(_whole, built, folder)
        else:
            _put(built, f"adapters.{name}", peft_name(name), place, config, found)
            found.adapters.append(name)
    built.model.eval()
    return found


def _put(built: Built, key: str, name: str, place: str, config: EvaluateConfig, found: Others) -> None:
    folder = _adapter_folder(key, place)
    if (folder / "state.json").is_file():
        run = folder.parent.parent
        if not (run / ADAPTER).is_dir():
            raise ConfigError(f"{key}: Expected a checkpoint of an ended run, got {place!r}; resume the run first")
        _refuse_mismatch(built, key, run / ADAPTER, config, found)
        _put_checkpoint(built, key, name, folder, run / ADAPTER)
        return
    if (folder / FULL_PARTS_FILE).is_file():
        raise ConfigError(f"{key}: {str(folder)!r} trained parts in full; export it (vlmft export) and name the export")
    _refuse_mismatch(built, key, folder, config, found)
    try:
        built.model = load_adapter(built.model, str(folder), name, key)
    except (ValueError, RuntimeError, KeyError) as error:  # PEFT's words for layers that are not there, or other shapes
        raise ConfigError(f"{key}: the adapter in {place!r} does not fit this model ({_first(error)})") from error


def _adapter_folder(key: str, place: str) -> Path:
    if (folder := local_adapter(key, place)) is not None:
        return folder
    try:
        return Path(snapshot_download(place, allow_patterns=ADAPTER_FILES))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, ValueError) as error:
        raise ConfigError(f"{key}: {place!r} cannot be read ({_first(error)}); check the id and the network") from error


def _refuse_mismatch(built: Built, key: str, folder: Path, config: EvaluateConfig, found: Others) -> None:
    if key != "run" and read_fingerprint(folder) is None:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        found.notes.append(
            f"{key}: the adapter carries no fingerprint, so nothing shows under which prompt, processor and base it "
            f"was trained (it names {base!r}; this is {built.model_config.path!r})"
        )
    elif differing := differing_fingerprint(folder, built.fingerprint):
        if not config.allow_fingerprint_mismatch:
            raise ConfigError(
                f"{key}: the adapter was trained under another {', '.join(differing)} than this evaluation has; "
                "restore it, or set allow_fingerprint_mismatch=true and read the table with that in mind"
            )
        found.notes.append(f"{key}: the adapter was trained under another {', '.join(differing)}")


def _put_checkpoint(built: Built, key: str, name: str, folder: Path, adapter: Path) -> None:
    """A checkpoint holds trained parameters alone; its run's adapter says of what form they are."""
    try:
        stored: dict[str, torch.Tensor] = read_checkpoint(folder)["state_dict"]
        form = PeftConfig.from_pretrained(str(adapter))
    except (CheckpointError, OSError, ValueError) as error:
        raise ConfigError(
            f"{key}: {str(folder)!r} cannot be read ({_first(error)}); name a checkpoint of an ended run"
        ) from error
    form.inference_mode = True
    if isinstance(built.model, PeftModel):
        built.model.add_adapter(name, form)
    else:
        built.model = get_peft_model(built.model, form, adapter_name=name)
    mine = dict(built.model.named_parameters())
    named = {key.replace(".default.", f".{name}."): tensor for key, tensor in stored.items()}
    if odd := sorted(named.keys() ^ {n for n in mine if ".lora_" in n and f".{name}." in n}):
        raise ConfigError(f"{key}: {len(odd)} tensors of {str(folder)!r} do not fit the model ({odd[0]})")
    for parameter_name, tensor in named.items():
        mine[parameter_name].data = tensor.to(mine[parameter_name])


def _whole(built: Built, folder: Path) -> Built:
    none = QuantizationConfig(mode=QuantizationMode.none)
    return built.other(
        dataclasses.replace(
            built.model_config, path=str(folder), revision=None, init=Init.pretrained, quantization=none
        )
    )


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
