"""Parts of a model, and adapters on them: resolved to full names, counted, loaded, and merged into their base."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel

from vlmft.config.check import ConfigError, nearest
from vlmft.config.schema import LoraInit, ModelConfig, PartsConfig, Tuning

Part = Literal["language", "connector", "vision", "audio"]
PARTS: tuple[Part, ...] = ("language", "connector", "vision")
"""Those that can be tuned: audio (Gemma 4) stays as it is."""

CONNECTOR = re.compile(
    r"(^|\.)(connector|projector|multi_modal_projector|perceiver_resampler|embed_vision|vision\.proj_mlp"
    r"|visual\.(merger|deepstack_merger_list)|image_newline)(\.|$)"
)
VISION = re.compile(r"(^|\.)(vision|vision_model|vision_tower|visual)(\.|$)")
AUDIO = re.compile(r"(^|\.)(audio_tower|embed_audio)(\.|$)")
NOT_LANGUAGE = (
    r"(?:.*\.)?(?:vision|vision_model|vision_tower|visual|connector|projector|multi_modal_projector|perceiver_resampler"
    r"|embed_vision|audio_tower|embed_audio)"
)
"""The same as transformers matches its list of modules that are not quantised: a regular expression from the start of
the full name. A plain "vision_model" would skip nothing."""


def part_of(name: str) -> Part:
    """The part that a module or parameter belongs to, by its full name; what is none of the others is
    language."""
    if AUDIO.search(name):
        return "audio"
    if CONNECTOR.search(name):
        return "connector"
    return "vision" if VISION.search(name) else "language"


def layer_lists(model: torch.nn.Module) -> list[list[torch.nn.Module]]:
    """The layers of the language part: the members of its outermost lists of modules. Most models have one list."""
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and part_of(name) == "language"
    ]
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [list(model.get_submodule(name).children()) for name in outermost]


def language_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """All of `layer_lists`, in order."""
    return [layer for layers in layer_lists(model) for layer in layers]


def last_layer(model: torch.nn.Module) -> torch.nn.Module | None:
    """Of the language part; None where it is not known which that is: of several lists (IDEFICS: each fourth layer
    follows one of another list) none need be the last to be called."""
    lists = layer_lists(model)
    return lists[0][-1] if len(lists) == 1 else None


def tuned_parts(parts: PartsConfig, tuning: Tuning) -> list[Part]:
    return [part for part in PARTS if getattr(parts, part) == tuning]


def target_names(model: PreTrainedModel, config: ModelConfig) -> list[str]:
    """Full names of the linear layers that get an adapter, in the model's order.

    Raises:
        ConfigError: a name in model.lora.target_modules that matches no linear layer of the parts tuned by lora, or
            such a part in which no name matches.
    """
    parts = tuned_parts(config.train, Tuning.lora)
    output = model.get_output_embeddings()
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not output]
    inside = [name for name in linear if part_of(name) in parts]
    leaves = sorted({name.rpartition(".")[2] for name in inside})
    for target in config.lora.target_modules:
        if target not in leaves:
            where = ", ".join(parts)
            raise ConfigError(
                f"model.lora.target_modules: {target!r} is no linear layer of {where}; {nearest(target, leaves)}"
            )
    names = [name for name in inside if name.rpartition(".")[2] in config.lora.target_modules]
    for part in parts:
        if not any(part_of(name) == part for name in names):
            there = sorted({name.rpartition(".")[2] for name in inside if part_of(name) == part})
            raise ConfigError(
                f"model.train.{part}: Expected a linear layer of {part} in model.lora.target_modules, got none; "
                f"add one of {', '.join(there)}, or set model.train.{part}=frozen"
            )
    return names


def attach(model: PreTrainedModel, config: ModelConfig, seed: int) -> PreTrainedModel | PeftModel:
    """The model with fp32 adapters on its lora parts and its full parts trainable; the rest stays frozen.

    The adapters start the same for the same seed, whatever else drew random numbers before.
    """
    model.loaded_dtypes = {}  # type: ignore[assignment]  # of full parts, for `as_loaded`
    for name, parameter in model.named_parameters():
        if part_of(name) in tuned_parts(config.train, Tuning.full):
            model.loaded_dtypes[parameter] = parameter.dtype  # type: ignore[index, operator]
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    if model.loaded_dtypes and model.config.model_type == "smolvlm":
        # Trap: SmolVLM2 puts features in their places in the dtype of its first weights.
        model.get_input_embeddings().register_forward_hook(functools.partial(_in_dtype_of, model.model))
    if not tuned_parts(config.train, Tuning.lora):
        return model
    full = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    peft_config = PeftLoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora.dropout,
        target_modules=target_names(model, config),
        init_lora_weights="gaussian" if config.lora.init == LoraInit.gaussian else True,
        use_rslora=config.lora.use_rslora,
        use_dora=config.lora.use_dora,
        bias="none",
        revision=config.revision,
    )  # type: ignore[call-arg]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, peft_config)
    peft_config.base_model_name_or_path = config.path  # PEFT writes its own idea there: a cache or a temporary folder
    for name in full:  # get_peft_model freezes everything but its own
        adapted.get_base_model().get_parameter(name).requires_grad_(True)
    return adapted


def _in_dtype_of(model: PreTrainedModel, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.to(model.dtype)


@contextlib.contextmanager
def as_loaded(model: torch.nn.Module) -> Iterator[None]:
    """Where no gradients are computed, parts that are trained in full have the dtype that they were loaded in.

    They are trained in fp32, which does not compute beside frozen parts in bf16 unless under autocast; rounded, they
    answer as a later load of what is stored will.
    """
    dtypes: Mapping[torch.nn.Parameter, torch.dtype] = getattr(model, "loaded_dtypes", {})
    trained = {p: p.data for p, dtype in dtypes.items() if p.dtype != dtype and not torch.is_grad_enabled()}
    try:
        with torch.inference_mode(False):
            for parameter, exact in trained.items():  # inside: where memory runs out, all get their own values back
                parameter.data = exact.to(dtypes[parameter])
        yield
    finally:
        for parameter, exact in trained.items():
            parameter.data = exact


def checkpoint_language(model: PreTrainedModel) -> None:
    """The language part's activations are computed again in the backward pass, instead of kept.

    Raises:
        ConfigError: the architecture has no blocks for that.
    """
    if not model.supports_gradient_checkpointing:
        raise ConfigError("train.gradient_checkpointing: this model has none; set it to false")
    model.activation_checkpointing_enable({"use_reentrant": False})
    # Trap: transformers hooks the embeddings, vision's too, to require gradients; the frozen vision part would be
    # back-propagated through.
    model.disable_input_require_grads()
    for name, module in model.named_modules():
        if hasattr(module, "gradient_checkpointing") and name and part_of(name) != "language":
            module.gradient_checkpointing = False  # type: ignore[assignment]
    if (last := last_layer(model)) is not None:  # the backward pass begins with it: doing it again would free nothing
        last.gradient_checkpointing = False  # type: ignore[assignment]


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model itself, adapters inside it where there are any."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter of all that is trained, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_by_part(model: torch.nn.Module) -> dict[str, dict[str, int]]:
    """Part -> {"trainable", "modules"}: numbers of trained parameters, and of adapted layers."""
    counts: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    for name, parameter in trainable(model).items():
        counts[part_of(name)]["trainable"] += parameter.numel()
        counts[part_of(name)]["modules"] += "lora_A" in name
    return {part: {"trainable": c["trainable"], "modules": c["modules"]} for part, c in counts.items()}


def _refuse_other_kinds(key: str, folder: Path) -> None:
    """An adapter that changes the base, or is not switched off with it, would answer for the untuned model, too."""
    said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    expected: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none",),
        "init_lora_weights": (True, False, "gaussian"),
        "modules_to_save": (None, []),
    }
    for name, legal in expected.items():
        if (value := said.get(name, legal[0])) not in legal:
            raise ConfigError(
                f"{key}: Expected an adapter with {name}={legal[0]!r}, got {value!r}; others change the untuned model, "
                "too: merge it into its base and name that folder"
            )


def load_adapter(model: PreTrainedModel | PeftModel, folder: str, name: str = "default", key: str = "run") -> PeftModel:
    """The base with a saved PEFT adapter on it, beside those that it has. From safetensors alone: PEFT would read a
    pickle where there are none.

    Raises:
        ConfigError: no adapter_model.safetensors in the folder, or tensors in it other than the adapter has. PEFT would
            leave those out with a warning, and what is evaluated would be partly the untuned model.
    """
    _refuse_other_kinds(key, Path(folder))
    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        raise ConfigError(f"{key}: there is no adapter_model.safetensors in {folder!r}; did the training end?")
    if isinstance(model, PeftModel):
        model.load_adapter(folder, name, is_trainable=False, autocast_adapter_dtype=True)
        adapted = model
    else:
        adapted = PeftModel.from_pretrained(model, folder, name, is_trainable=False, autocast_adapter_dtype=True)
    with safe_open(file, "pt") as stored:
        mine = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
        odd = sorted(mine.keys() ^ set(stored.keys()))
    if odd:
        raise ConfigError(f"{key}: {len(odd)} tensors of {str(file)!r} do not fit the model ({odd[0]}); export it anew")
    return adapted


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """The weights that a quantised model computes with, in fp32: the adapter was trained beside these."""
    if getattr(model, "is_quantized", False):
        model = model.dequantize()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():  # not model.to(): that would round buffers, such as rotary frequencies
        parameter.data = parameter.data.float()
    return model


def merged(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter added in, exact to rounding in fp32.

    Raises:
        ConfigError: the base is quantised. Merging would quantise the sum anew, which moved logits as far as they are
            large (measured 0.79 at a scale of 0.72).
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, (Linear4bit, Linear8bitLt))]
    if layers:
        raise ConfigError(
            f"form: Expected weights in 16 or 32 bit to merge into, got {len(layers)} quantised layers ({layers[0]}); "
            "dequantise the base first"
        )
    whole: PreTrainedModel = model.merge_and_unload()  # type: ignore[operator, assignment]
    return whole


def rounded(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """All weights in `dtype`; buffers stay: `model.to` would round rotary frequencies, too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def unused_gradient_names(model: torch.nn.Module) -> dict[str, Any]:
    """Trainable parameters without a gradient, and frozen ones with one: both must be empty after a backward pass; and
    weights of a vision part that has gradients elsewhere: LLaVA does not use its last layers."""
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    seeing = any(part_of(n) == "vision" for n, p in model.named_parameters() if p.grad is not None)
    unused = [n for n in without if seeing and part_of(n) == "vision" and ".lora_" not in n]
    return {
        "trainable_without": [n for n in without if n not in unused],
        "frozen_with": [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None],
        "unused": unused,
    }
