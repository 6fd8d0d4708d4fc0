"""Characters of a region: an image folder for each, their names, the questions, and the answers in annotation.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import PIL.Image

from vlmft.config.check import ConfigError
from vlmft.config.files import write_whole
from vlmft.data.dataset import Caption
from vlmft.data.datasets.columns import Columns
from vlmft.data.images import image_inside, open_image
from vlmft.data.sources.files import json_value
from vlmft.data.sources.image_folders import class_images
from vlmft.data.sources.table import table_in_memory
from vlmft.data.sources.tables import Loaded
from vlmft.sample import Image, Message, Prompt, Question

ANNOTATION, NAMES, PROMPTS = "annotation.json", "json/character_names.json", "json/base_prompts.json"


class Characters(Columns):
    """`path`/images/<class>, json/character_names.json, json/base_prompts.json and annotation.json.

    An image without an annotation is asked the first of the base prompts, and its character's name is the answer: a new
    character is a folder and a line in character_names.json. `vlmft annotate` makes annotations for such images.
    """

    name: ClassVar[str] = "characters"
    metric: ClassVar[str] = "sentence_chrf"
    max_new_tokens: ClassVar[int] = 400

    def __init__(
        self,
        *,
        path: str | None = None,
        unannotated: bool = True,
        annotation_prompt: str = "{question}\nThe image shows {name}. Answer in a few sentences, in the language "
        "of the question.",
    ) -> None:
        """`unannotated`: use images that have no annotation. `annotation_prompt`: what an annotator is asked about such
        an image; {question} becomes one of the base prompts, {name} the character's name.

        Raises:
            ValueError: an annotation_prompt without {question}, whose answers would be stored under questions that
                were not asked.
        """
        if "{question}" not in annotation_prompt:
            raise ValueError(f"Expected annotation_prompt with {{question}} in it, got {annotation_prompt!r}")
        super().__init__(
            path=path, image="image", question="question", answer="answer", class_column="character_folder"
        )
        self.unannotated, self.annotation_prompt = unannotated, annotation_prompt

    @property
    def root(self) -> Path:
        if self.path is None:
            raise ConfigError("data.path: Expected the folder of images, json and annotation.json, got none; set it")
        return Path(self.path).expanduser()

    @property
    def drafts(self) -> Path:
        """As `Annotatable`'s."""
        return self.root / "annotation.drafts.jsonl"

    def _load(self) -> Loaded:
        root = self.root
        stored = json_value(root / ANNOTATION, list)
        rows = [
            {**row, "image": image_path(row["image"])} if isinstance(row, dict) and "image" in row else row
            for row in stored
        ]
        if self.unannotated:
            names, prompts = json_value(root / NAMES, dict), self._prompts()
            for found in unannotated_images(root, stored):
                folder = found["class"]
                asked = {"question": prompts[0], "answer": names.get(folder), "character_folder": folder}
                rows.append({"image": found["image"], **asked})
        table = table_in_memory([rows], root)
        return Loaded({"train": table}, {"train": f"{ANNOTATION} and the folders of images"}, declared=True)

    def missing(self) -> Sequence[Question]:
        """As `Annotatable`'s; an id is the image's path below the folder, such as "images/gena/2.jpg"."""
        root, prompts, names = self.root, self._prompts(), json_value(self.root / NAMES, dict)
        questions = []
        for found in unannotated_images(root, self._annotations()):
            image, name = found["image"], self._name(names, found["class"])
            text = self.annotation_prompt.replace("{question}", question_about(image, prompts)).replace("{name}", name)
            picture = Image(partial(_opened, root, image), image)
            questions.append(Question(image, Prompt((Message("user", (picture, text)),))))
        return questions

    def store(self, captions: Sequence[Caption]) -> None:
        """As `Annotatable`'s: rows like the others, with a `source`; what annotation.json holds stays as it is."""
        rows, prompts, names = self._annotations(), self._prompts(), json_value(self.root / NAMES, dict)
        annotated = annotated_images(rows)
        for caption in captions:
            if caption.id in annotated:
                continue
            folder = PurePosixPath(caption.id).parts[1]
            rows.append(
                {
                    "image": f"data/{caption.id}",
                    "character_folder": folder,
                    "character_name": self._name(names, folder),
                    "question": question_about(caption.id, prompts),
                    "answer": caption.text,
                    "source": dict(caption.source),
                }
            )
        content = json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
        write_whole(self.root / ANNOTATION, content.encode())
        self._tables = {}  # read again when needed

    def _annotations(self) -> list[Any]:
        """The rows as they are stored; none where the first are still to be made."""
        file = self.root / ANNOTATION
        return list(json_value(file, list)) if file.exists() else []

    def _prompts(self) -> list[str]:
        found = json_value(self.root / PROMPTS, list)
        if not found or not all(isinstance(prompt, str) for prompt in found):
            raise ConfigError(f"data.path: Expected at least one question, and texts alone, in {self.root / PROMPTS}")
        return list(found)

    def _name(self, names: dict[str, Any], folder: str) -> str:
        name = names.get(folder)
        if not isinstance(name, str):
            found = "none" if name is None else repr(name)
            raise ConfigError(
                f"data.path: Expected the name of {folder!r} in {self.root / NAMES}, got {found}; add a line"
            )
        return name


def question_about(image: str, prompts: Sequence[str]) -> str:
    """One of the base prompts, always the same: an image's draft and its annotation have the same question."""
    return prompts[int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") % len(prompts)]


def unannotated_images(root: Path, rows: Sequence[Any]) -> list[dict[str, str]]:
    """As `class_images`, without those that `rows` are about."""
    if not (root / "images").is_dir():
        raise ConfigError(f"data.path: Expected a folder images in {str(root)!r}, got none; name the folder above it")
    annotated = annotated_images(rows)
    return [found for found in class_images(root, root / "images") if found["image"] not in annotated]


def annotated_images(rows: Sequence[Any]) -> set[Any]:
    """Paths below the folder."""
    return {image_path(row["image"]) for row in rows if isinstance(row, dict) and isinstance(row.get("image"), str)}


def _opened(root: Path, image: str) -> PIL.Image.Image:
    """A picture whose file is looked for when it is needed, so that one lost file fails one image only."""
    return open_image(image_inside(root, image))


def image_path(stored: Any) -> Any:
    """ "data/images/gena/2.jpg" as below the folder: "images/gena/2.jpg"."""
    parts = PurePosixPath(stored).parts if isinstance(stored, str) else ()
    return "/".join(parts[parts.index("images") :]) if "images" in parts else stored
