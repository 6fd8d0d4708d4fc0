"""The model's own tokens in texts: refused, but those of boxes and the like where the data says so."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.sample import BadRowError

MEDIA = ("image", "img", "vision", "video", "audio")
KEY = "data.options.allow_tokens"


def control_texts(processor: Any, image_token_id: int) -> list[str]:
    """All special tokens of the tokenizer, and what stands for an image; sorted."""
    tokenizer = processor.tokenizer
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    image = getattr(processor, "image_token", None) or tokenizer.convert_ids_to_tokens(image_token_id)
    return sorted({*added, *tokenizer.all_special_tokens, image})


def refuse_control(text: str, controls: Sequence[str]) -> None:
    """Raises BadRowError where the text holds one: it would become a control token, or shift the images."""
    for control in controls:
        if control in text:
            raise BadRowError(
                f"Expected plain text, got the model's own token {control!r} in it; remove it, or set {KEY} "
                "where the model's own data are written so"
            )


def require_allowed(tokens: Sequence[str], controls: Sequence[str], tokenizer: Any, written: str) -> None:
    """What is `written` by the template, and the tokenizer's own, mark images, turns and ends, and are never text.

    Raises:
        ConfigError: a token that is one of those, or no special token of the model.
    """
    fixed = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    for token in tokens:
        if token not in controls:
            raise ConfigError(f"{KEY}: Expected a special token of this model, got {token!r}; texts may hold it anyway")
        if token in fixed or token in written or any(medium in token for medium in MEDIA):
            raise ConfigError(f"{KEY}: {token!r} marks an image, a turn or an end of this model; leave it out")


def decoded(tokenizer: Any, ids: Sequence[int], allowed: Collection[int]) -> str:
    """Text of ids without special tokens but the allowed ones, and without surrounding white space."""
    if not allowed:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
    hidden = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - set(allowed)
    return str(tokenizer.decode([i for i in ids if i not in hidden], skip_special_tokens=False)).strip()
