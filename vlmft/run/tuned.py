"""A run's model as training left it, without its data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.config.schema import Init, ModelConfig, TrainConfig, TrainerConfig, Tuning
from vlmft.models.family import Family, make_family
from vlmft.models.load import Source, load_model, load_source
from vlmft.models.lora import base_of, load_adapter, tuned_parts
from vlmft.models.merge import dequantized
from vlmft.run.build import base_of_run, fingerprint, pick_device
from vlmft.run.folder import ADAPTER, read_run
from vlmft.run.memory_check import require_weights
from vlmft.run.results import FULL_PARTS_FILE, differing_fingerprint


@dataclass
class Loaded:
    """A model that can be asked."""

    source: Source
    family: Family
    model: PreTrainedModel | PeftModel

    @property
    def base(self) -> PreTrainedModel:
        return base_of(self.model)


def load_base(config: ModelConfig, trainer: TrainerConfig, seed: int) -> Loaded:
    """The untuned model."""
    source, model_config = load_source(config)
    family = make_family(config, source, model_config)
    device = pick_device(trainer)
    require_weights(config, model_config, device, trainer)
    return Loaded(source, family, load_model(config, source, model_config, device, seed))


def load_tuned(
    folder: Path, run: TrainConfig, trainer: TrainerConfig, *, exact: bool = False, mismatch: bool = False
) -> Loaded:
    """The run's model with what it trained; `exact` takes the quantised base's weights in fp32.

    Raises:
        ConfigError: there is no adapter, or it was trained under another prompt, processor or base and not `mismatch`.
    """
    adapter = folder / ADAPTER
    if not adapter.is_dir():
        raise ConfigError(f"run: there is no folder {ADAPTER!r} in {str(folder)!r}; did the training end?")
    if not tuned_parts(run.model.train, Tuning.lora):  # then it holds the whole model
        whole = dataclasses.replace(run.model, path=str(adapter), revision=None, init=Init.pretrained)
        found = load_base(whole, trainer, run.seed)
    else:
        found = load_base(run.model, trainer, run.seed)
        prints = fingerprint(found.family, base_of_run(run.model, found.source, run.seed))
        differing = differing_fingerprint(adapter, prints)
        if differing and not mismatch:
            raise ConfigError(f"run: the adapter was trained under another {', '.join(differing)} than is here now")
    found.model = dequantized(found.base) if exact else found.base
    if (adapter / FULL_PARTS_FILE).is_file():
        _put_full_parts(found.base, load_file(adapter / FULL_PARTS_FILE))
    if tuned_parts(run.model.train, Tuning.lora):
        found.model = load_adapter(found.base, str(adapter))
    found.model.eval()
    return found


def _put_full_parts(model: PreTrainedModel, stored: dict[str, torch.Tensor]) -> None:
    """Parts that were trained in full, stored under PEFT's names."""
    mine = dict(model.named_parameters())
    names = {name: name.removeprefix("base_model.model.") for name in stored}
    if odd := sorted(set(names.values()) - mine.keys()):
        raise ConfigError(f"run: {len(odd)} tensors of {FULL_PARTS_FILE} do not fit the model ({odd[0]})")
    for name, tensor in stored.items():
        parameter = mine[names[name]]
        parameter.data = tensor.to(parameter.device)  # fp32, as it was trained


def chosen_model(run: str | None, model: ModelConfig | None, trainer: TrainerConfig, *, mismatch: bool) -> Loaded:
    """The run's tuned model, or the untuned `model`; raises ConfigError as `load_tuned`."""
    if run is not None:
        return load_tuned(Path(run), read_run(run), trainer, mismatch=mismatch)
    assert model is not None  # checked() has seen to it
    return load_base(model, trainer, seed=0)
