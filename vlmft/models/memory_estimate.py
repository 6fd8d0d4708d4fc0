"""How much memory a model and its training take, from config.json and one row: before any weight is read.

Weights and what is trained are counted on a model without storage. Activations are a formula. For the backward pass
autograd keeps, of each token,

- what goes into and what comes out of each linear layer: the input for the adapter's gradient, the output for the
  product, activation function, norm or attention behind it. Some of these are one tensor, norms and residual sums make
  up for that: a layer of Llama's kind keeps 4d + 4q + 4f elements, and this counts 7d + 2q + 2kv + 3f;
- with eager attention, a row of scores for each head;
- of the last layer's queries, projection and MLP, those of supervised tokens alone (last_layer.py);
- with gradient checkpointing, the input of each block, and all of the above for the block that is computed again.

Frozen parts keep nothing: vision takes one block's worth for one image at a time. Logits are of supervised tokens
alone: they, their logarithms and their gradients are in fp32. Gradients on their way take what was kept for them.
How far this is from what is alive in training: tests/models/test_memory_estimate.py, and docs/models.md.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from vlmft.config.check import ConfigError
from vlmft.config.schema import ModelConfig, OptimizerName, QuantizationConfig, QuantizationMode, Tuning
from vlmft.models.last_layer import per_token_modules
from vlmft.models.load import attention_kernel
from vlmft.models.lora import Part, attach, last_layer, part_of, trainable, tuned_parts
from vlmft.sample import EncodedImage, EncodedRow

BLOCK = re.compile(r".*?\.\d+(?=\.)")
"""Of a layer's full name: the block that it stands in."""
MIXED_BYTES = 2.7
"""Of a kept element under mixed precision: most have 2, those of norms 4 (measured over the families: 2.6 to 2.8)."""
EIGHT_BIT_FROM = 4096
"""Elements of a tensor below which bitsandbytes' 8-bit optimisers keep 32 bit."""
HEAP = 1.8
"""What a heap that keeps freed pages takes for what is alive in it (measured on a CPU: 1.8 to 1.9)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, by what they are for."""

    weights: int
    trained: int = 0
    """Trained parameters in fp32, their gradients and the optimiser's moments."""
    activations: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.activations


@dataclass(frozen=True)
class Training:
    """What of a training memory depends on."""

    row: EncodedRow
    """The longest."""
    rows: int
    """That go through the model at once."""
    optimizer: OptimizerName
    mixed: bool
    checkpointing: bool
    keeps_pages: bool
    """Whether freed memory stays with the process: `keep_freed_pages`."""


class Anatomy:
    """A model's sizes, with adapters where `adapters`; nothing is stored behind them. `shares` is how many devices
    share the language part's linear layers, of which each has one block whole at a time.

    Raises:
        ConfigError: transformers can make no model of the config, or LoRA has no such targets.
    """

    def __init__(self, config: ModelConfig, model_config: Any, *, adapters: bool = True, shares: int = 1) -> None:
        try:
            with torch.device("meta"):
                kernel = attention_kernel(config)
                model = AutoModelForImageTextToText.from_config(model_config, attn_implementation=kernel)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.path: {config.path!r} gives no model ({error}); use another one") from error
        model.requires_grad_(False)
        self.can_checkpoint: bool = model.supports_gradient_checkpointing
        self.config, self.model_config, self.shares = config, model_config, shares
        self.full: set[Part] = set(tuned_parts(config.train, Tuning.full)) if adapters else set()
        self.alive = self.full | set(tuned_parts(config.train, Tuning.lora))
        """Parts that are trained."""
        self._measure(model)
        trained = trainable(attach(model, config, seed=0)) if adapters else {}
        self.trained = [parameter.numel() for parameter in trained.values()]
        self.adapter_numel = sum(p.numel() for name, p in trained.items() if ".lora_" in name)

    def _measure(self, model: PreTrainedModel) -> None:
        output: Any = model.get_output_embeddings()
        self.vocabulary, self.width = (int(size) for size in output.weight.shape)
        linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not output}
        self.quantisable = [(m.out_features, m.in_features) for n, m in linear.items() if part_of(n) == "language"]
        """(outputs, inputs) of each linear layer of the language part."""
        frozen = [p.numel() for name, p in model.named_parameters() if part_of(name) not in self.full]
        self.frozen = int(sum(frozen))
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.blocks: dict[Part, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        """Part -> block -> elements that its linear layers take and give of each token."""
        for name, module in linear.items():
            block = BLOCK.match(name)
            self.blocks[part_of(name)][block[0] if block else name] += module.in_features + module.out_features
        narrow = [module for part in per_token_modules(last_layer(model)) for module in part.modules()]
        sizes = [m.in_features + m.out_features for m in narrow if isinstance(m, torch.nn.Linear)]
        self.of_kept_tokens = sum(sizes)
        """Elements of the last block of language that are there for tokens whose logits are asked for, alone."""

    def estimate(
        self, quantization: QuantizationConfig, dtype: torch.dtype, training: Training | None = None
    ) -> MemoryEstimate:
        """With frozen weights in `dtype`, the language part's linear layers quantised; without `training`, weights
        alone."""
        weights = self._weights(quantization, dtype)
        if training is None:
            return MemoryEstimate(weights)
        trained = sum(count * (8 + moments(training.optimizer, count)) for count in self.trained)
        activations = self._language(training) + self._vision(training, dtype) + self._logits(training)
        if training.mixed:
            activations += 2 * self.adapter_numel  # their 16-bit copies
        if quantization.mode != QuantizationMode.none:  # one layer at a time in full
            activations += max(math.prod(shape) for shape in self.quantisable) * dtype.itemsize
        return MemoryEstimate(weights, round(trained), round(activations * (HEAP if training.keeps_pages else 1)))

    def _weights(self, quantization: QuantizationConfig, dtype: torch.dtype) -> int:
        whole = sum(math.prod(shape) for shape in self.quantisable)
        one_block = whole // max(1, len(self.blocks["language"]))
        here = whole if self.shares == 1 else min(whole, -(-whole // self.shares) + one_block)
        if quantization.mode == QuantizationMode.none or "language" in self.full:
            return (self.frozen - whole + here) * dtype.itemsize
        quantised, rest = here, (self.frozen - whole) * dtype.itemsize
        if quantization.mode == QuantizationMode.int8:  # a scale for each output
            return rest + quantised + 4 * sum(shape[0] for shape in self.quantisable)
        constants = (1 + 4 / 256) / 64 if quantization.double_quant else 4 / 64  # of blocks of 64, doubly of 256 such
        return rest + round(quantised * (0.5 + constants))

    def _language(self, training: Training) -> float:
        text = self.model_config.get_text_config()
        tokens, size = training.rows * training.row.length, MIXED_BYTES if training.mixed else 4
        score = (6 if training.mixed else 4) * self._is_eager(text)
        scores = text.num_attention_heads * training.row.length * score
        blocks = [elements * size + scores for elements in self.blocks["language"].values()]
        if training.checkpointing:
            return float(tokens * (len(blocks) * self.width * size + max(blocks)))
        left_out = tokens - training.rows * training.row.n_supervised
        return float(tokens * sum(blocks) - left_out * self.of_kept_tokens * size)

    def _vision(self, training: Training, dtype: torch.dtype) -> float:
        """Of one image where the part is frozen, of all that go through at once where it is trained."""
        images = training.row.images
        if not images:
            return 0.0
        vision = vision_config(self.model_config)
        heads = getattr(vision, "num_attention_heads", None) or getattr(vision, "num_heads", None) or vision.enc_n_heads
        alive = bool(self.alive & {"vision", "connector"})
        size = 4 if not training.mixed else MIXED_BYTES if alive else dtype.itemsize
        sizes = []
        for image in images:
            sequences, patches = patches_of(image, vision)
            scores = heads * patches * 4 * self._is_eager(vision)
            blocks = [elements * size + scores for elements in self.blocks["vision"].values()]
            sizes.append(sequences * patches * float(sum(blocks) if alive else max(blocks)))
        return training.rows * sum(sizes) if alive else max(sizes)

    def _is_eager(self, part_config: Any) -> bool:
        """Of a part of the model, whose making wrote the kernels that were chosen into its config."""
        whole: str = self.model_config._attn_implementation
        return getattr(part_config, "_attn_implementation", whole) == "eager"

    def _logits(self, training: Training) -> float:
        return training.rows * training.row.n_supervised * self.vocabulary * 4 * 3


SCORED_TOKENS = 1024
"""Tokens of a row to which eager attention is taken to hold scores."""


def answering_bytes(text_config: Any, element_bytes: int, *, eager: bool) -> float:
    """Of a token that is answered: keys and values of each layer, which stay, and what one block holds for a while.

    `text_config` is that of the language part.
    """
    heads = text_config.num_attention_heads
    width = text_config.hidden_size
    head_width = getattr(text_config, "head_dim", None) or width // heads
    kept = 2 * (getattr(text_config, "num_key_value_heads", None) or heads) * head_width * text_config.num_hidden_layers
    inner: Any = getattr(text_config, "intermediate_size", None) or 4 * width
    block = 4 * width + 3 * (max(inner) if isinstance(inner, (list, tuple)) else inner)
    return float((kept + block) * element_bytes + heads * SCORED_TOKENS * 4 * eager)


def moments(optimizer: OptimizerName, count: int) -> float:
    """Bytes that an optimiser keeps for each element of a tensor of `count`."""
    full = 4 if optimizer == OptimizerName.lion else 8
    eight_bit = optimizer in (OptimizerName.adamw_8bit, OptimizerName.paged_adamw_8bit)
    return 2 + 8 / 256 if eight_bit and count >= EIGHT_BIT_FROM else full


def vision_config(model_config: Any) -> Any:
    """Of the part that sees; moondream2 has it under another name."""
    return getattr(model_config, "vision_config", None) or model_config.vision


def patches_of(image: EncodedImage, vision: Any) -> tuple[int, int]:
    """(sequences, patches in each): the tiles of an image, or one sequence where its patches come flat (Qwen)."""
    pixels = image.arrays["pixel_values"]
    side = getattr(vision, "patch_size", None) or vision.enc_patch_size
    area = math.prod(side) if isinstance(side, (list, tuple)) else side**2
    patches = pixels.size // (3 * area * getattr(vision, "temporal_patch_size", 1))
    sequences = math.prod(pixels.shape[:-3]) if pixels.ndim > 3 else 1
    return sequences, patches // sequences
