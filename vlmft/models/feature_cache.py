"""What a frozen vision tower makes of an image, made once: read by epochs, validations, arms, sweep jobs, later runs.

An entry is an image's features, and the few facts that a row needs in place of its pixels. It is found by the hash of
the decoded pixels, below a key of all else that determines a feature's bits (`feature_key`). Entries stay in memory up
to a limit, and in files (`feature_files.py`) up to another. A cached run and an uncached one end with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from transformers import PreTrainedModel

from vlmft.config.files import contents_sha256, source_files
from vlmft.models.feature_files import Entry, FeatureFiles
from vlmft.models.lora import part_of
from vlmft.sample import EncodedImage

SEEING = ("vision", "connector")
"""Parts whose output features are."""
OF_NO_FEATURE = ("_name_or_path", "dtype", "quantization_config", "transformers_version")
"""Of a model's config: quantisation leaves out what sees, and weights are compared themselves."""


class FeatureCache:
    """Entries of images by the hash of their pixels, for models of one `feature_key`.

    Travels to workers without what it holds in memory; they look into the files.
    """

    def __init__(self, key: str, processor: str, files: FeatureFiles | None, max_memory_bytes: int) -> None:
        self.key, self.processor, self.files, self.max_memory_bytes = key, processor, files, max_memory_bytes
        self.memory: dict[str, Entry] = {}
        self.memory_bytes = 0
        self.made = 0
        """Images whose features were made in this process."""
        self.serving: weakref.WeakKeyDictionary[PreTrainedModel, tuple[int, bool]] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> Any:
        return FeatureCache, (self.key, self.processor, self.files, self.max_memory_bytes)

    def serves(self, model: PreTrainedModel) -> bool:
        """Whether this model's features are these: frozen, and made by the same weights."""
        n_parameters = sum(1 for _ in model.parameters())  # an adapter that is loaded later adds some
        known, answer = self.serving.get(model, (0, False))
        if known != n_parameters:
            answer = is_frozen(model) and feature_key(model, self.processor) == self.key
            self.serving[model] = (n_parameters, answer)
        return answer

    def facts(self, sha256: str) -> tuple[Mapping[str, np.ndarray], str] | None:
        """The processor's arrays without pixels and the placeholder of an image that is stored."""
        if (entry := self.memory.get(sha256)) is not None:
            return entry.arrays, entry.placeholder
        return self.files.facts(sha256) if self.files is not None else None

    def get(self, sha256: str) -> torch.Tensor | None:
        """The features of an image that is stored, (n_image_tokens, d) on the CPU."""
        entry = self.memory.get(sha256)
        if entry is None and self.files is not None and (entry := self.files.read(sha256)) is not None:
            self._remember(sha256, entry)
        return entry.feature if entry is not None else None

    def put(self, image: EncodedImage, feature: torch.Tensor) -> None:
        """Stores what was made of an image."""
        arrays = {name: array for name, array in image.arrays.items() if not name.startswith("pixel")}
        identity = image.image.identity if image.image is not None else ""
        entry = Entry(feature.cpu(), arrays, image.placeholder, identity)
        self.made += 1
        self._remember(image.sha256, entry)
        if self.files is not None:
            self.files.add(image.sha256, entry)

    def _remember(self, sha256: str, entry: Entry) -> None:
        if self.memory_bytes + entry.n_bytes <= self.max_memory_bytes:
            self.memory[sha256] = entry
            self.memory_bytes += entry.n_bytes

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *error: object) -> None:
        """Writes what waits to be written."""
        if self.files is not None:
            self.files.flush()


def is_frozen(model: PreTrainedModel) -> bool:
    """Whether nothing of vision and connector is trained or has an adapter."""
    seeing = ((name, parameter) for name, parameter in model.named_parameters() if part_of(name) in SEEING)
    return not any(parameter.requires_grad or ".lora_" in name for name, parameter in seeing)


def code_of(family_class: type) -> str:
    """Hash of the code that makes features and what is stored beside them: all of `vlmft/models`, and the class's."""
    return contents_sha256({*Path(__file__).parent.rglob("*.py"), *source_files(family_class)})


def processor_key(processor: Any, code: str) -> str:
    """What decides an image's pixels and placeholder beside the image: settings of a processor, its class, our code."""
    image_processor = {k: v for k, v in processor.image_processor.to_dict().items() if not k.startswith("_")}
    own = {k: v for k, v in vars(processor).items() if isinstance(v, (str, int, float, bool)) and k != "chat_template"}
    names = [type(processor).__qualname__, type(processor.image_processor).__qualname__]
    text = json.dumps([names, own, image_processor, code], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def machine(device: torch.device) -> dict[str, Any]:
    """What moves bits beside weights and inputs: device, threads, libraries."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()] if device.type == "cpu" else [],
        "matmul": torch.get_float32_matmul_precision(),
        "versions": [library.__version__ for library in (torch, transformers, np, PIL)],
    }


def feature_key(model: PreTrainedModel, processor: str) -> str:
    """Hash of all that determines the bits of a feature beside the image: `processor_key`, weights of vision and
    connector, dtype, attention, device, threads and libraries."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in OF_NO_FEATURE}
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    said = {
        "processor": processor,
        "config": config,
        "dtype": str(model.dtype),
        "attention": sorted({part.config._attn_implementation for part in parts}),
        **machine(model.device),
    }
    digest = hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if part_of(name) in SEEING:
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
