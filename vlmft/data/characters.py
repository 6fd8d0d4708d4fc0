"""Characters of a region: an image folder for each, their names, the questions, and the answers in annotation.json."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from vlmft.config.check import ConfigError
from vlmft.data.columns import Columns
from vlmft.data.imagefolder import class_images
from vlmft.data.tables import Table
from vlmft.sample import Split


class Characters(Columns):
    """`path`/images/<class>, json/character_names.json, json/base_prompts.json and annotation.json.

    An image without an annotation is asked the first of the base prompts, and its character's name is the answer: a new
    character is a folder and a line in character_names.json.
    """

    name: ClassVar[str] = "characters"
    metric: ClassVar[str] = "sentence_chrf"
    max_new_tokens: ClassVar[int] = 400

    def __init__(self, *, path: str | None = None, unannotated: bool = True) -> None:
        """`unannotated`: use images that have no annotation."""
        super().__init__(
            path=path, image="image", question="question", answer="answer", class_column="character_folder"
        )
        self.unannotated = unannotated

    def _load(self) -> dict[Split, Table]:
        if self.path is None:
            raise ConfigError("data.path: Expected the folder of images, json and annotation.json, got none; set it")
        root = Path(self.path).expanduser()
        rows = [
            {**row, "image": image_path(row["image"])} if isinstance(row, dict) and "image" in row else row
            for row in _json(root / "annotation.json", list)
        ]
        if self.unannotated:
            annotated = {row["image"] for row in rows if isinstance(row, dict) and "image" in row}
            names, prompts = (
                _json(root / "json/character_names.json", dict),
                _json(root / "json/base_prompts.json", list),
            )
            for found in class_images(root, root / "images"):
                if found["image"] not in annotated:
                    folder = found["class"]
                    asked = {"question": prompts[0], "answer": names.get(folder), "character_folder": folder}
                    rows.append({"image": found["image"], **asked})
        return {"train": Table(rows, root, range(len(rows)))}


def image_path(stored: Any) -> Any:
    """ "data/images/gena/2.jpg" as below the folder: "images/gena/2.jpg"."""
    parts = PurePosixPath(stored).parts if isinstance(stored, str) else ()
    return "/".join(parts[parts.index("images") :]) if "images" in parts else stored


def _json(file: Path, kind: type) -> Any:
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.path: Expected JSON in {file}, got an error ({error}); mend the file") from error
    if not isinstance(found, kind):
        raise ConfigError(f"data.path: Expected a JSON {kind.__name__} in {file}, got {type(found).__name__}; mend it")
    return found
