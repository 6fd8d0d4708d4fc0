"""From a folder or Hub id to (model, processor). All knowledge of quantisation lives here."""

from __future__ import annotations

import hashlib
import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, PreTrainedModel
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from vlmft.config.check import ConfigError
from vlmft.config.schema import Attention, Init, ModelConfig, QuantizationConfig, QuantizationMode, Tuning

NOT_LANGUAGE = r"(?:.*\.)?(?:vision_model|vision_tower|visual|connector|multi_modal_projector|perceiver_resampler)"
"""Names of vision and connector modules over all architectures, as transformers matches its skip list: a regular
expression from the start of the full name. A plain "vision_model" would skip nothing."""

DIGEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """Where a model's files are, and which bytes exactly."""

    path: str
    """Local folder or Hub id, as transformers takes it."""
    revision: str | None
    commit: str
    """The Hub commit it resolved to, or a digest of the folder's files; `random` where weights were made on the fly."""


def locate(config: ModelConfig) -> str:
    """`model.path` as transformers takes it: package:NAME becomes the folder inside this package.

    Raises:
        ConfigError: a local-looking path that does not exist, or no package folder of that name.
    """
    if config.path.startswith("package:"):
        name = config.path.removeprefix("package:")
        folder = Path(str(importlib.resources.files("vlmft.models"))) / "weights" / name
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model.path: no model {name!r} comes with vlmft; use a folder or a Hub id")
        return str(folder)
    path = Path(config.path).expanduser()
    if path.is_dir():
        return str(path)
    if config.path.startswith((".", "/", "~")):
        raise ConfigError(f"model.path: there is no folder {config.path!r}; give a folder in Hub layout or a Hub id")
    return config.path


def load_source(config: ModelConfig) -> tuple[Source, Any]:
    """The source and its transformers config, before any weights are read.

    Raises:
        ConfigError: nothing can be read there.
    """
    path = locate(config)
    try:
        model_config = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"model.path: {config.path!r} cannot be read ({first}); check id, revision, network"
        ) from error
    if config.init == Init.random:
        commit = "random"
    else:
        commit = getattr(model_config, "_commit_hash", None) or folder_digest(Path(path))
    return Source(path, config.revision, commit), model_config


def folder_digest(folder: Path) -> str:
    """sha256 over name, size, first and last MiB of each weight file and the whole config: quick, and moves when
    weights do."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(DIGEST_BYTES))
            stream.seek(max(0, size - DIGEST_BYTES))
            digest.update(stream.read(DIGEST_BYTES))
    return digest.hexdigest()[:40]


def image_only(processor_class: type) -> type:
    """The processor class without its video part, whose image needs torchvision.

    Trap: do not override __init__; `from_args_and_dict` reads its argument names and would lose the chat template.
    """
    keep = [name for name in processor_class.get_attributes() if "video" not in name]  # type: ignore[attr-defined]
    members = {"get_attributes": classmethod(lambda _: list(keep)), "__module__": processor_class.__module__}
    return type(processor_class.__name__, (processor_class,), members)


def load_processor(source: Source, model_type: str) -> Any:
    """The model's own processor with PIL image processing; a video part that cannot be had is left out."""
    if model_type == "smolvlm":  # its own processor wants a video part and num2words; ids and pixels are the same
        return transformers.Idefics3Processor.from_pretrained(source.path, revision=source.revision)
    try:
        return AutoProcessor.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)
    except (ImportError, OSError) as error:
        if "ideo" not in str(error):
            raise ConfigError(f"model.path: no processor in {source.path!r} ({str(error).splitlines()[0]})") from error
    processor_class = getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type])
    return image_only(processor_class).from_pretrained(source.path, revision=source.revision)  # type: ignore[attr-defined]


def storage_dtype(device: torch.device) -> torch.dtype:
    """Dtype of frozen weights and of image features: bf16 where the GPU computes in it, fp16 before, fp32 on CPU."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16


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
    config: ModelConfig, source: Source, model_config: Any, device: torch.device, seed: int
) -> PreTrainedModel:
    """The base model on `device`, frozen, in eval mode, without adapters."""
    dtype = storage_dtype(device)
    attention = config.attention.name
    if config.attention == Attention.auto:
        attention = "eager" if device.type == "cpu" else "sdpa"
    if config.init == Init.random:
        model = _random_model(model_config, attention, seed).to(dtype).to(device)
        if config.quantization.mode != QuantizationMode.none:
            model = _quantized_copy(model, config, dtype, attention, device)
    else:
        model = AutoModelForImageTextToText.from_pretrained(
            source.path,
            revision=source.revision,
            dtype=dtype,
            attn_implementation=attention,
            quantization_config=quantization(config.quantization, dtype),
            device_map={"": device},
            trust_remote_code=False,
        )
    keep_autograd_on_cpu(model)
    model.requires_grad_(False)
    return model.eval()  # type: ignore[no-any-return]


def _random_model(model_config: Any, attention: str, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForImageTextToText.from_config(model_config, attn_implementation=attention)  # type: ignore[no-any-return]


def _quantized_copy(
    model: PreTrainedModel, config: ModelConfig, dtype: torch.dtype, attention: str, device: torch.device
) -> PreTrainedModel:
    import tempfile

    with (
        tempfile.TemporaryDirectory() as folder
    ):  # quantisation happens while loading, so a random model is stored first
        model.save_pretrained(folder)
        return AutoModelForImageTextToText.from_pretrained(  # type: ignore[no-any-return]
            folder,
            dtype=dtype,
            attn_implementation=attention,
            quantization_config=quantization(config.quantization, dtype),
            device_map={"": device},
        )


def keep_autograd_on_cpu(model: torch.nn.Module) -> None:
    """Trap: on CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights in the first evaluation pass and uses a kernel
    without autograd from then on: all adapter gradients vanish without an error. Switched off, everything is exact."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def wants_full_precision(config: ModelConfig) -> bool:
    """Whether some part is trained in full: its weights are then kept in fp32 beside a 16-bit rest."""
    return Tuning.full in (config.train.language, config.train.connector, config.train.vision)
