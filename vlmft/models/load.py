"""From a folder or Hub id to a model. All knowledge of quantisation lives here."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from vlmft.config.check import ConfigError, import_allowed
from vlmft.config.schema import Attention, Init, ModelConfig, QuantizationConfig, QuantizationMode
from vlmft.models.locate import cannot_be_read, first_line, locate
from vlmft.models.lora import NOT_LANGUAGE, rounded
from vlmft.models.support import FAMILIES, refusal

DIGEST_BYTES = 1 << 24
"""Read at once; a digest covers every byte."""


@dataclass(frozen=True)
class Source:
    """Where a model's files are, and which bytes exactly."""

    path: str
    """Local folder or Hub id, as transformers takes it."""
    revision: str | None
    commit: str
    """The Hub commit it resolved to, or a digest of the folder's files; `random` where weights were made on the fly."""


def load_source(config: ModelConfig) -> tuple[Source, Any]:
    """The source and its transformers config, before any weights are read.

    Raises:
        ConfigError: nothing can be read there, or it is a model that cannot be tuned here.
    """
    path = locate(config)
    try:
        stored, _ = PreTrainedConfig.get_config_dict(path, revision=config.revision)
        if (family := FAMILIES.get(stored.get("model_type", ""))) is not None:
            import_allowed("model.family", family)  # which makes an architecture of its own known to the Auto classes
        model_config = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise cannot_be_read(config, error) from error
    if (reason := refusal(model_config)) is not None:
        raise ConfigError(f"model.path: {config.path!r} is of type {model_config.model_type!r}; this model {reason}")
    of_files = "random" if config.init == Init.random else getattr(model_config, "_commit_hash", None)
    return Source(path, config.revision, of_files or folder_digest(Path(path))), model_config


def folder_digest(folder: Path) -> str:
    """sha256 of the weights, config and tokenizer in a folder, names included, as 40 hex digits. About a second a GB.

    Every byte counts: training one part in full changes the middle of a weight file, and not its size.
    """
    digest = hashlib.sha256()
    names = ("*.safetensors", "config.json", "tokenizer.json")
    for file in sorted(file for name in names for file in folder.glob(name)):
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        with file.open("rb") as stream:
            while block := stream.read(DIGEST_BYTES):
                digest.update(block)
    return digest.hexdigest()[:40]


def storage_dtype(device: torch.device) -> torch.dtype:
    """Dtype of frozen weights and of image features: bf16 where the GPU computes in it, fp16 on older ones, else fp32:
    Apple's GPUs train without loss scaling here, and gradients in fp16 would underflow."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if computes_in_bf16() else torch.float16


def computes_in_bf16() -> bool:
    """Whether the GPU has bf16 units. Trap: torch counts emulation as support, which older GPUs are slow in."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def quantization(config: QuantizationConfig, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """transformers' form of our settings. lm_head is named because an explicit list drops the default skips."""
    skip = ["lm_head", NOT_LANGUAGE]
    if config.mode == QuantizationMode.none:
        return None
    if config.mode == QuantizationMode.int8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.mode.name,
        bnb_4bit_use_double_quant=config.double_quant,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )


def load_model(
    config: ModelConfig,
    source: Source,
    model_config: Any,
    device: torch.device,
    seed: int,
    place: torch.device | None = None,
) -> PreTrainedModel:
    """The base model on `device`, frozen, in eval mode, without adapters; `place` is where its weights are until they
    are sharded, for they may be too many for the device.

    Raises:
        ConfigError: no safetensors there (a pickle is never read), or no vision-language model.
    """
    try:
        if config.init == Init.random:
            model = _random_model(config, model_config, device, seed, place or device)
        else:
            model = _stored_model(source.path, source.revision, config, device, place or device)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path: {config.path!r} gives no model ({first_line(error)}); "
            "use a vision-language model with safetensors weights, or model.init=random for new ones"
        ) from error
    keep_autograd_on_cpu(model)
    model.requires_grad_(False)
    return model.eval()  # type: ignore[no-any-return]


def attention_kernel(config: ModelConfig) -> str | None:
    """As `from_pretrained` takes it: None is sdpa for each part of the model that has it, else eager."""
    return None if config.attention == Attention.auto else config.attention.name


def _stored_model(
    path: str, revision: str | None, config: ModelConfig, device: torch.device, place: torch.device
) -> PreTrainedModel:
    dtype = storage_dtype(device)
    return AutoModelForImageTextToText.from_pretrained(  # type: ignore[no-any-return]
        path,
        revision=revision,
        dtype=dtype,
        attn_implementation=attention_kernel(config),
        quantization_config=quantization(config.quantization, dtype),
        device_map={"": place},
        use_safetensors=True,
        trust_remote_code=False,
    )


def _random_model(
    config: ModelConfig, model_config: Any, device: torch.device, seed: int, place: torch.device
) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(model_config, attn_implementation=attention_kernel(config))
    if config.quantization.mode == QuantizationMode.none:
        return rounded(model, storage_dtype(device)).to(place)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:  # quantisation happens while loading, so the model is stored first
        model.save_pretrained(folder)
        return _stored_model(folder, None, config, device, place)


def keep_autograd_on_cpu(model: torch.nn.Module) -> None:
    """Trap: on CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights in the first evaluation pass and uses a kernel
    without autograd from then on: all adapter gradients vanish without an error. Switched off, everything is exact."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
