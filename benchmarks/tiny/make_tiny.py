"""python -m benchmarks.tiny.make_tiny: writes the tiny models' configs, tokenizers and processors into the package."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from benchmarks.tiny.models import build_tiny, build_tiny_qwen2vl
from benchmarks.tiny.shapes_pretrain import tokenizer_texts


def main(folder: Path | None = None) -> None:
    weights = folder or Path(str(importlib.resources.files("vlmft.models"))) / "weights"
    build_tiny(weights / "tiny", tokenizer_texts())
    build_tiny_qwen2vl(weights / "tiny_qwen2vl", tokenizer_texts())


if __name__ == "__main__":
    main()
