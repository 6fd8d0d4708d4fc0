"""A model's own processor, without the parts that are not for images and texts."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import cached_file

from vlmft.config.check import ConfigError
from vlmft.config.files import write_whole
from vlmft.models.load import Source
from vlmft.models.locate import first_line

LEFT_OUT = ("video", "audio", "feature_extractor")
"""In the names of a processor's parts. That for videos needs torchvision."""


def load_processor(source: Source, model_type: str) -> Any:
    """The model's own processor; where a part of `LEFT_OUT` cannot be had, without those parts.

    Images go through the PIL backend everywhere: the torchvision one gives other pixels, and would make an answer
    depend on what else is installed.

    Raises:
        ConfigError: no processor can be read there.
    """
    try:
        processor = _own_processor(source, model_type)
        if isinstance(processor, ProcessorMixin) and "image_processor" not in processor.get_attributes():
            return processor  # moondream2's, whose image settings stand in the model's config
        processor.image_processor = AutoImageProcessor.from_pretrained(
            source.path, revision=source.revision, backend="pil"
        )
    except (ImportError, OSError, ValueError) as error:
        raise ConfigError(
            f"model.path: no processor in {source.path!r} ({first_line(error)}); use a folder or Hub id that has one"
        ) from error
    return processor


def _own_processor(source: Source, model_type: str) -> Any:
    path, revision = source.path, source.revision
    if model_type == "smolvlm":  # its own processor wants a video part and num2words; ids and pixels are the same
        return transformers.Idefics3Processor.from_pretrained(path, revision=revision)
    try:
        return AutoProcessor.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (ImportError, OSError):
        found: Any = getattr(transformers, PROCESSOR_MAPPING_NAMES.get(model_type) or _named(source), None)
        if (
            not inspect.isclass(found)
            or not issubclass(found, ProcessorMixin)
            or _kept(found) == found.get_attributes()  # type: ignore[attr-defined]
        ):
            raise
    return image_only(found).from_pretrained(path, revision=revision)  # type: ignore[attr-defined]


def _named(source: Source) -> str:
    """The processor class that the model's files name, where transformers' table has none (GLM-OCR)."""
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        file = cached_file(source.path, name, revision=source.revision, _raise_exceptions_for_missing_entries=False)
        named = json.loads(Path(file).read_text(encoding="utf-8")).get("processor_class") if file else None
        if isinstance(named, str):
            return named
    return ""


def save_for_servers(processor: Any, source: Source, folder: Path) -> None:
    """The processor's files under the base's own class, and two that servers look for besides: the image settings under
    the name that transformers 4 knows, and the base's own for videos, a part that `load_processor` may have left out.
    Without them AutoProcessor refuses the folder of a model that also takes videos, such as Qwen2-VL."""
    processor.save_pretrained(folder)
    file = folder / "processor_config.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "image_processor" in saved:
        saved["processor_class"] = _named(source) or saved.get("processor_class")  # smolvlm's is another one here
        write_whole(file, (json.dumps(saved, indent=2) + "\n").encode())
        image = {**saved["image_processor"], "processor_class": saved["processor_class"]}
        write_whole(folder / "preprocessor_config.json", (json.dumps(image, indent=2) + "\n").encode())
    for name in ("processor_config.json", "video_preprocessor_config.json") if "video_processor" not in saved else ():
        there = cached_file(source.path, name, revision=source.revision, _raise_exceptions_for_missing_entries=False)
        of_base = json.loads(Path(there).read_text(encoding="utf-8")) if there else {}
        video = of_base if name.startswith("video") else of_base.get("video_processor")
        if video:
            write_whole(folder / "video_preprocessor_config.json", (json.dumps(video, indent=2) + "\n").encode())


def _kept(processor_class: Any) -> list[str]:
    return [name for name in processor_class.get_attributes() if not any(word in name for word in LEFT_OUT)]


class _ImageOnly(ProcessorMixin):  # type: ignore[misc]
    """Between a processor class and ProcessorMixin: what the class hands up, without the parts that are left out."""

    whole: Any
    """The class with all of its parts."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        every = self.whole.get_attributes()
        named |= dict(zip(every, parts, strict=False))
        left_out = set(every) - set(self.get_attributes())
        super().__init__(**{name: value for name, value in named.items() if name not in left_out})

    @classmethod
    def get_attributes(cls) -> list[str]:
        return _kept(cls.whole)

    @classmethod
    def _get_arguments_from_pretrained(cls, path: str, processor_dict: Any = None, **settings: Any) -> list[Any]:
        """One for each part of the whole class, in the order of its arguments."""
        found = super()._get_arguments_from_pretrained(path, processor_dict, **settings)
        kept = dict(zip(cls.get_attributes(), found, strict=True))
        return [kept.get(name) for name in cls.whole.get_attributes()]

    def __reduce__(self) -> Any:
        """Travels to workers: the class is made there anew."""
        return _image_only_with, (self.whole, self.__dict__)


def image_only(processor_class: type) -> type:
    """The processor class without the parts of `LEFT_OUT`.

    Trap: do not override its own __init__; `from_args_and_dict` reads that one's argument names and would lose the
    chat template.
    """
    members = {"whole": processor_class, "__module__": processor_class.__module__}
    return type(processor_class.__name__, (processor_class, _ImageOnly), members)


def _image_only_with(processor_class: type, state: dict[str, Any]) -> Any:
    processor: Any = object.__new__(image_only(processor_class))
    processor.__dict__.update(state)
    return processor
