"""Models with the ratio of vision to language work of published ones, and rows of pictures and questions about them.

Random weights, the architectures' own classes; `SCALED` are small enough for two CPU cores, `REAL` have the published
sizes. Random weights cost as much time as trained ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from benchmarks.smoke.models import MROPE, QWEN2_VL, QWEN25_VL, SMOLVLM, Tiny, save

# No newline behind an answer: TRL would train on it, and vlmft, which ends at the end token, would not.
TEMPLATE = (
    "{% for m in messages %}{{ '' if loop.first else '\n' }}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}IMAGE{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n' }}<|im_start|>assistant\n{% endif %}"
)
WIDTH, HEIGHT = 800, 557
QUESTIONS = ("How many red items are there?", "Which has more: red or blue?", "How many blue ones?", "Count all items.")
ANSWERS = ("There are 4 of them.", "The second has more.", "This is 17.", "All in all 23 items.")


@dataclass(frozen=True)
class Picture:
    """What a model makes of a picture of `WIDTH` x `HEIGHT`."""

    tokens: int
    sequences: tuple[int, ...]
    """Patches that see each other."""
    windows: tuple[int, ...] = ()
    """The same in layers that see windows alone."""


@dataclass(frozen=True)
class Scaled:
    """One architecture at one size."""

    tiny: Tiny
    vocabulary: int
    image: Picture
    lora_rank: int = 4
    """In proportion to the widths, so that adapters are as small a share of the work as beside a whole model."""


@dataclass(frozen=True)
class Work:
    """FLOPs of a forward pass over one row, without logits, as torch's counter has them: attention in full, causal or
    not. Published figures often have causal attention at half."""

    vision: float
    linear: float
    """Of the language part's layers."""
    attention: float
    """Of the same."""

    @property
    def ratio(self) -> float:
        return self.vision / (self.linear + self.attention)


def work_of(scaled: Scaled, text_tokens: int) -> Work:
    """Worked out from the sizes, for a row with so many tokens beside those of its one image."""
    tower, text, image = scaled.tiny.vision, scaled.tiny.text, scaled.image
    width, layers, n = text["hidden_size"], text["num_hidden_layers"], image.tokens + text_tokens
    keys = width * text["num_key_value_heads"] // text["num_attention_heads"]
    linear = layers * 2 * n * (2 * width**2 + 2 * width * keys + 3 * width * text["intermediate_size"])
    seen, depth = tower.get("embed_dim", tower["hidden_size"]), tower.get("depth", tower.get("num_hidden_layers"))
    patches, merged = sum(image.sequences), sum(image.sequences) // image.tokens
    matrices = 3 if "fullatt_block_indexes" in tower else 2
    hidden = tower.get("intermediate_size", seen * tower.get("mlp_ratio", 0))
    whole = 4 * seen * sum(length**2 for length in image.sequences)
    windows = 4 * seen * sum(length**2 for length in image.windows)
    n_whole = len(tower["fullatt_block_indexes"]) if image.windows else depth
    vision = depth * patches * (8 * seen**2 + 2 * matrices * seen * hidden)
    vision += n_whole * whole + (depth - n_whole) * windows
    vision += 2 * patches * seen * 3 * tower["patch_size"] ** 2 * (1 if "image_size" in tower else 2)  # of two frames
    first = (merged * seen) ** 2 if "image_size" not in tower else 0
    vision += 2 * image.tokens * (first + merged * seen * width)
    return Work(vision, linear, layers * 4 * n**2 * width)


def _text(width: int, hidden: int, layers: int, heads: int, kv_heads: int) -> dict[str, object]:
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width // heads,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }


def _smolvlm(tower: dict[str, int], text: dict[str, object], scale: int) -> Tiny:
    tile, patch = tower["image_size"], tower["patch_size"]
    pixels = {"size": {"longest_edge": 4 * tile}, "max_image_size": {"longest_edge": tile}}
    return replace(
        SMOLVLM,
        text={"model_type": "llama", **text},
        vision=tower,
        config={"scale_factor": scale, "image_token_id": "id:<image>"},
        image_processor=("Idefics3ImageProcessor", pixels),
        processor=(("image_seq_len", (tile // patch // scale) ** 2),),
    )


def _qwen(like: Tiny, tower: dict[str, object], text: dict[str, object], most_patches: int) -> Tiny:
    section = int(str(text["head_dim"])) // 8
    mrope = {**MROPE, "rope_theta": 1e6, "mrope_section": [section, 3 * section // 2, 3 * section // 2]}
    pixels = {"size": {"shortest_edge": 56 * 56, "longest_edge": most_patches * 14 * 14}}
    return replace(
        like,
        text={**text, "rope_parameters": mrope},
        vision={**tower, "patch_size": 14},
        image_processor=("Qwen2VLImageProcessor", pixels),
    )


def _qwen2_tower(depth: int, width: int, heads: int, out: int) -> dict[str, object]:
    return {"depth": depth, "embed_dim": width, "num_heads": heads, "mlp_ratio": 4, "hidden_size": out}


def _qwen25_tower(depth: int, width: int, hidden: int, heads: int, full: list[int], out: int) -> dict[str, object]:
    sizes = {"depth": depth, "hidden_size": width, "intermediate_size": hidden, "num_heads": heads}
    return {**sizes, "window_size": 112, "fullatt_block_indexes": full, "out_hidden_size": out}


def _siglip(width: int, hidden: int, layers: int, heads: int, tile: int, patch: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": heads, "image_size": tile, "patch_size": patch}


def _windowed(rows: int, columns: int) -> Picture:
    """Of so many patches, merged by fours; windows of 8 x 8 patches, cut off at the edge."""
    heights, widths = ([min(8, side - start) for start in range(0, side, 8)] for side in (rows, columns))
    windows = tuple(height * width for height in heights for width in widths)
    return Picture(rows * columns // 4, (rows * columns,), windows)


# The scaled ones have the published ratio of vision to language work within 1 %, worked out for both by `work_of`,
# which a test holds against the counter. For SmolVLM it is 11.2; 12.5 is named where causal attention counts half and
# the text is a little shorter. Qwen2.5-VL is named 1.05 with full attention in all layers of its vision; 28 of 32 see
# windows alone, which makes it 0.87.
# SmolVLM's row has the published counts of image and text tokens, so that questions about one image share as much. So
# that attention is the published share, its language part is as wide as two published heads, two layers deep, and its
# MLP takes what is left of the work. The vocabulary is so large that the logits of a whole row are the published share.
SCALED = {
    "SmolVLM": Scaled(
        _smolvlm(_siglip(192, 512, 12, 3, 256, 16), _text(128, 1608, 2, 2, 1), 2), 3008, Picture(832, (256,) * 13), 5
    ),
    "Qwen2-VL": Scaled(
        _qwen(QWEN2_VL, _qwen2_tower(6, 192, 3, 256), _text(256, 760, 7, 4, 2), 640), 8192, Picture(150, (600,))
    ),
    "Qwen2.5-VL": Scaled(
        _qwen(QWEN25_VL, _qwen25_tower(6, 192, 512, 3, [2, 5], 256), _text(256, 832, 14, 4, 2), 640),
        8192,
        _windowed(20, 30),
    ),
}
REAL = {
    "SmolVLM": Scaled(
        _smolvlm(_siglip(768, 3072, 12, 12, 512, 16), _text(576, 1536, 30, 9, 3), 4),
        49280,
        Picture(832, (1024,) * 13),
        16,
    ),
    "Qwen2-VL": Scaled(
        _qwen(QWEN2_VL, _qwen2_tower(32, 1280, 16, 1536), _text(1536, 8960, 28, 12, 2), 16384),
        151936,
        Picture(580, (2320,)),
        16,
    ),
    "Qwen2.5-VL": Scaled(
        _qwen(
            QWEN25_VL, _qwen25_tower(32, 1280, 3420, 16, [7, 15, 23, 31], 2048), _text(2048, 11008, 36, 16, 2), 16384
        ),
        151936,
        _windowed(40, 58),
        16,
    ),
}


def save_config(scaled: Scaled, folder: Path) -> Any:
    """Writes config, tokenizer and processor; returns the config with the whole vocabulary."""
    save(scaled.tiny, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("IMAGE", scaled.tiny.image_mark), encoding="utf-8")
    config = AutoConfig.from_pretrained(folder)
    config.get_text_config().vocab_size = scaled.vocabulary
    return config


def save_model(scaled: Scaled, folder: Path, device: str) -> None:
    """Config, tokenizer, processor and random weights: fp32 on the CPU, bf16 on a GPU."""
    config = save_config(scaled, folder)
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    with torch.no_grad():  # larger than at initialisation, so that a wrong image feature shows in the loss
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)
    model.save_pretrained(folder)


def write_rows(folder: Path, images: int, questions: int, n_test: int = 0) -> list[dict[str, str]]:
    """`questions` rows on each of so many pictures of noise in coloured fields, as rows.jsonl beside the PNG files; of
    the first `n_test` pictures for testing, of the others for training."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    rows = []
    for number in range(images):
        fields = chance.integers(0, 256, (14, 20, 3), dtype=np.uint8).repeat(40, 0).repeat(40, 1)[:HEIGHT, :WIDTH]
        noise = chance.integers(0, 32, fields.shape, dtype=np.uint8)
        PIL.Image.fromarray(fields // 2 + noise).save(folder / f"{number}.png")
        for asked in range(questions):
            question = QUESTIONS[(number + asked) % len(QUESTIONS)]
            answer = ANSWERS[(number + asked) % len(ANSWERS)]
            split = "test" if number < n_test else "train"
            rows.append({"image": f"{number}.png", "question": question, "answer": answer, "split": split})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    return rows
