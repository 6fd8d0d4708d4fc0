"""moondream2 (revisions 2025-01-09 to 2025-06-21) as a transformers model under the Hub's own tensor names.

A sequence is the start token, the image (27x27 features), then text. The start token and the image see each other both
ways; everything after them is causal, and so is a row without an image. The region head (`model.region.*`: points and
boxes) is left unread, text does not use it. Source of the computation: `moondream/torch/` in vikhyat/moondream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep

LAYER_NORM_EPSILON = 1e-5
ROTARY_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class TextSizes:
    """Of the language part, under the Hub's names; the defaults are those of the 2B model."""

    dim: int = 2048
    ff_dim: int = 8192
    n_layers: int = 24
    n_heads: int = 32
    vocab_size: int = 51200
    max_context: int = 2048


@dataclasses.dataclass(frozen=True)
class VisionSizes:
    """Of the vision part and the connector. Lengths in pixels but for `overlap_margin`, which counts patches."""

    enc_dim: int = 1152
    enc_ff_dim: int = 4304
    enc_n_layers: int = 27
    enc_n_heads: int = 16
    enc_patch_size: int = 14
    in_channels: int = 3
    crop_size: int = 378
    overlap_margin: int = 4
    max_crops: int = 12
    proj_inner_dim: int = 8192
    proj_out_dim: int = 2048

    @property
    def grid(self) -> int:
        """Patches along each side of a crop; an image becomes grid * grid tokens, however many crops it has."""
        return self.crop_size // self.enc_patch_size


Sizes = TypeVar("Sizes", TextSizes, VisionSizes)


def _sizes(kind: type[Sizes], said: Mapping[str, Any]) -> Sizes:
    return kind(**{field.name: said[field.name] for field in dataclasses.fields(kind) if field.name in said})


class Moondream2Config(PreTrainedConfig):  # type: ignore[misc]
    """`config.json` as it lies on the Hub: everything stands under `config`, and what is not said is the 2B model's.

    Raises:
        ValueError: a config of the 2024 generation, which is another architecture (Phi) under the same model type.
    """

    model_type = "moondream1"
    config: dict[str, Any] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if "text_config" in kwargs:
            raise ValueError(
                "Expected moondream2 of 2025-01-09 or later, got the 2024 generation on Phi; take revision 2025-06-21"
            )
        self.config = {"text": {}, "vision": {}, **(self.config or {})}
        said = self.config["text"]
        if "n_kv_heads" in said and said["n_kv_heads"] != self.text.n_heads:
            raise ValueError(f"Expected n_kv_heads == n_heads == {self.text.n_heads}, got {said['n_kv_heads']!r}")
        super().__post_init__(**kwargs)

    @property
    def text(self) -> TextSizes:
        return _sizes(TextSizes, (self.config or {})["text"])

    @property
    def vision(self) -> VisionSizes:
        return _sizes(VisionSizes, (self.config or {})["vision"])

    image_token_id = property(lambda self: self.text.vocab_size)
    """Stands in the ids where image features go. The first id behind the vocabulary: no text can make it."""
    vocab_size = property(lambda self: self.text.vocab_size)
    hidden_size = property(lambda self: self.text.dim)
    num_hidden_layers = property(lambda self: self.text.n_layers)
    num_attention_heads = property(lambda self: self.text.n_heads)
    max_position_embeddings = property(lambda self: self.text.max_context)


def _eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.float().softmax(-1).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class Attention(nn.Module):
    """Query, key and value from one layer. Rotation, cache and mask are the language part's alone."""

    def __init__(self, config: Moondream2Config, dim: int, n_heads: int, layer_index: int = 0) -> None:
        super().__init__()
        self.config, self.n_heads, self.layer_index = config, n_heads, layer_index
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        rotation: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        batch, length, dim = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            query, key = _rotated(query, rotation), _rotated(key, rotation)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_index)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _eager_attention)
        scale = (dim // self.n_heads) ** -0.5
        seen, _ = attend(self, query, key, value, mask, scaling=scale, dropout=0.0, is_causal=False)
        mixed: torch.Tensor = self.proj(seen.reshape(batch, length, dim))
        return mixed


def _rotated(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Turns the first half of each head by its position, `rotation` (2, B, 1, T, head / 4); the other half has none.

    The reference stores a turned pair side by side, here its halves lie apart: products of queries and keys are equal.
    """
    cos, sin = rotation
    n = cos.shape[-1]
    first, second, rest = x[..., :n].float(), x[..., n : 2 * n].float(), x[..., 2 * n :]
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return torch.cat([turned.to(x.dtype), rest], dim=-1)


class Mlp(nn.Module):
    def __init__(self, dim_in: int, dim_inner: int, dim_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim_in, dim_inner)
        self.fc2 = nn.Linear(dim_inner, dim_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class TextBlock(GradientCheckpointingLayer):  # type: ignore[misc]
    """Attention and MLP side by side behind one norm."""

    def __init__(self, config: Moondream2Config, layer_index: int) -> None:
        super().__init__()
        sizes = config.text
        self.ln = nn.LayerNorm(sizes.dim, LAYER_NORM_EPSILON)
        self.attn = Attention(config, sizes.dim, sizes.n_heads, layer_index)
        self.mlp = Mlp(sizes.dim, sizes.ff_dim, sizes.dim)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor, rotation: torch.Tensor, past_key_values: Cache | None = None
    ) -> torch.Tensor:
        normed = self.ln(x)
        summed: torch.Tensor = x + self.attn(normed, mask, rotation, past_key_values) + self.mlp(normed)
        return summed


class Text(nn.Module):
    """The language part. `wte` is a bare parameter, as it is on the Hub."""

    def __init__(self, config: Moondream2Config) -> None:
        super().__init__()
        sizes = config.text
        self.wte = nn.Parameter(torch.empty(sizes.vocab_size, sizes.dim))
        self.blocks = nn.ModuleList(TextBlock(config, i) for i in range(sizes.n_layers))
        self.post_ln = nn.LayerNorm(sizes.dim, LAYER_NORM_EPSILON)
        self.lm_head = nn.Linear(sizes.dim, sizes.vocab_size)
        self.n_turned = sizes.dim // sizes.n_heads // 2

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, past_key_values: Cache | None
    ) -> torch.Tensor:
        steps = torch.arange(0, self.n_turned, 2, device=x.device, dtype=torch.float32) / self.n_turned
        angles = positions[:, None, :, None] * ROTARY_BASE**-steps
        rotation = torch.stack([angles.cos(), angles.sin()])
        for block in self.blocks:
            x = block(x, mask, rotation, past_key_values=past_key_values)
        normed: torch.Tensor = self.post_ln(x)
        return normed


class VisionBlock(nn.Module):
    def __init__(self, config: Moondream2Config) -> None:
        super().__init__()
        sizes = config.vision
        self.ln1 = nn.LayerNorm(sizes.enc_dim, LAYER_NORM_EPSILON)
        self.attn = Attention(config, sizes.enc_dim, sizes.enc_n_heads)
        self.ln2 = nn.LayerNorm(sizes.enc_dim, LAYER_NORM_EPSILON)
        self.mlp = Mlp(sizes.enc_dim, sizes.enc_ff_dim, sizes.enc_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))  # type: ignore[no-any-return]


class Vision(nn.Module):
    """The vision part, and in it the connector, `proj_mlp`."""

    def __init__(self, config: Moondream2Config) -> None:
        super().__init__()
        self.sizes = sizes = config.vision
        self.patch_emb = nn.Linear(sizes.in_channels * sizes.enc_patch_size**2, sizes.enc_dim)
        self.pos_emb = nn.Parameter(torch.empty(1, sizes.grid**2, sizes.enc_dim))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(sizes.enc_n_layers))
        self.post_ln = nn.LayerNorm(sizes.enc_dim, LAYER_NORM_EPSILON)
        self.proj_mlp = Mlp(2 * sizes.enc_dim, sizes.proj_inner_dim, sizes.proj_out_dim)

    def forward(self, crops: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """One image's features (grid * grid, width) from its crops (1 + rows * columns, 3, side, side), whole first."""
        grid, patch = self.sizes.grid, self.sizes.enc_patch_size
        patches = crops.reshape(len(crops), -1, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        x = self.patch_emb(patches.flatten(3).flatten(1, 2)) + self.pos_emb
        for block in self.blocks:
            x = block(x)
        x = self.post_ln(x)
        local = self._stitched(x[1:].reshape(rows, columns, grid, grid, -1))
        pooled = F.adaptive_avg_pool2d(local.permute(2, 0, 1), (grid, grid)).permute(1, 2, 0).flatten(0, 1)
        features: torch.Tensor = self.proj_mlp(torch.cat([x[0], pooled], dim=-1))
        return features

    def _stitched(self, tiles: torch.Tensor) -> torch.Tensor:
        """One map of features from overlapping tiles (rows, columns, grid, grid, width): half of each overlap each."""
        rows, columns, grid = tiles.shape[:3]
        margin = self.sizes.overlap_margin

        def kept(i: int, n: int) -> slice:
            return slice(margin if i > 0 else 0, grid - margin if i < n - 1 else grid)

        bands = [torch.cat([tiles[i, j][:, kept(j, columns)] for j in range(columns)], dim=1) for i in range(rows)]
        return torch.cat([band[kept(i, rows)] for i, band in enumerate(bands)], dim=0)


class Parts(nn.Module):
    def __init__(self, config: Moondream2Config) -> None:
        super().__init__()
        self.text = Text(config)
        self.vision = Vision(config)


class Moondream2ForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    config_class = Moondream2Config
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["TextBlock", "VisionBlock"]  # noqa: RUF012 (transformers' own form)
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = [r"^model\.region\."]  # noqa: RUF012

    def __init__(self, config: Moondream2Config) -> None:
        super().__init__(config)
        self.model = Parts(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        for name, parameter in module.named_parameters(recurse=False):
            if name in ("wte", "pos_emb"):
                initialization.normal_(parameter, mean=0.0, std=0.02)

    def get_input_embeddings(self) -> nn.Module:
        """A view of the bare parameter, made for the call: hooks on it would never run."""
        words = self.model.text.wte
        return nn.Embedding(words.shape[0], words.shape[1], _weight=words)

    def get_output_embeddings(self) -> nn.Module:
        return self.model.text.lm_head

    def get_image_features(
        self, pixel_values: torch.Tensor, pixel_tilings: torch.Tensor, return_dict: bool = True
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` (images, grid * grid, width).

        Args:
            pixel_values: (images, crops, 3, side, side) in -1..1, the whole image first; crops beyond an image's own
                are padding and never looked at.
            pixel_tilings: (images, 2) rows and columns of the crops behind the first.
            return_dict: as in the library's own models; there is no other form.
        """
        see = self.model.vision
        pairs = zip(pixel_values, pixel_tilings.tolist(), strict=True)
        features = [see(crops[: 1 + rows * columns], rows, columns) for crops, (rows, columns) in pairs]
        return BaseModelOutputWithPooling(pooler_output=torch.stack(features))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_tilings: torch.Tensor | None = None,
        mm_encoder_outputs: Mapping[str, BaseModelOutputWithPooling] | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool = True,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, vocabulary), or (kept, vocabulary) where `logits_to_keep` is a bool mask (B, T).

        A 4-D bool `attention_mask` (B, 1, T, all keys) is taken as it is.

        Raises:
            ValueError: image places in the ids without as many features, or the other way round.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if pixel_values is not None and pixel_tilings is not None:
            mm_encoder_outputs = {"image": self.get_image_features(pixel_values, pixel_tilings)}
        images = list(mm_encoder_outputs["image"].pooler_output) if mm_encoder_outputs else []
        mask = self._mask(input_ids, attention_mask, past)
        if position_ids is None:
            position_ids = self._positions(mask, attention_mask)
        text = self.model.text
        hidden = text(self._embedded(input_ids, images), mask, position_ids, past_key_values)
        logits = text.lm_head(slice_logits_to_keep(hidden, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def _embedded(self, input_ids: torch.Tensor, images: list[torch.Tensor]) -> torch.Tensor:
        places = input_ids == self.config.image_token_id
        embedded = F.embedding(input_ids.masked_fill(places, 0), self.model.text.wte)
        n_places, n_features = int(places.sum()), sum(len(image) for image in images)
        if n_places != n_features:
            raise ValueError(f"Expected a feature for each image token, got {n_features} for {n_places} tokens")
        return embedded.masked_scatter(places[..., None], torch.cat(images).to(embedded)) if images else embedded

    def _positions(self, mask: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """(B or 1, T): real tokens before each one. A mask that is 4-D already says nothing of padding."""
        length, total = mask.shape[-2:]
        flat = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else mask.new_ones(1, total)
        return (flat.long().cumsum(-1) - 1).clamp(min=0)[:, total - length :]

    def _mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, past: int) -> torch.Tensor:
        """(B, 1, T, past + T) bool. All up to an image's last token see each other; padding sees but itself."""
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask.bool()
        keys = torch.arange(past + input_ids.shape[1], device=input_ids.device)
        queries = keys[past:, None]
        places = (input_ids == self.config.image_token_id).int()
        prefix = places.flip(1).cummax(1).values.flip(1).bool()
        both_ways = prefix[:, :, None] & F.pad(prefix, (past, 0))[:, None]
        allowed: torch.Tensor = (keys <= queries) | both_ways
        if attention_mask is not None:
            allowed = allowed & attention_mask[:, None].bool()
        allowed = allowed | (keys == queries)
        return allowed[:, None]
