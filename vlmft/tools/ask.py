"""vlmft ask: a question about an image, or about each image of a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from vlmft.config.check import ConfigError
from vlmft.config.tool_schema import AskConfig
from vlmft.data.images import image_from_file
from vlmft.evaluation.predict import Answerer
from vlmft.run.quiet import quiet_libraries
from vlmft.run.weights import chosen_model
from vlmft.sample import Answer, BadRow, BadRowError, Marks, Message, Prompt, Question

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


def ask(config: AskConfig) -> None:
    """Prints the answer, or writes one line for each image of a folder; what cannot be read is named on stderr.

    Raises:
        ConfigError: no image there, or no such model.
        BadRowError: the one image that was asked about cannot be used.
    """
    quiet_libraries()
    path = Path(config.image).expanduser()
    names = images_in(path)
    loaded = chosen_model(config.run, config.model, config.trainer, mismatch=config.allow_fingerprint_mismatch)
    bad: list[BadRow] = []
    answerer = Answerer(loaded.family, loaded.base, config.rows_per_batch, config.max_new_tokens, bad.append)
    root = path if path.is_dir() else path.parent
    marks = cast(Marks, "" if config.marks == "none" else config.marks)
    rows = answers(answerer, root, names, config.question, bad, marks)
    if path.is_dir():
        _write(rows, bad, config)
        return
    for row in rows:
        print(json.dumps(row, ensure_ascii=False) if config.json else row["text"])
    if bad:
        raise BadRowError(f"{bad[0].id}: {bad[0].reason}")


def images_in(path: Path) -> list[str]:
    """Names of the image files, sorted; of one file where `path` is one."""
    if path.is_file():
        return [path.name]
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not names:
        raise ConfigError(f"image: Expected an image file or a folder with {', '.join(SUFFIXES)}, got {str(path)!r}")
    return names


def answers(
    answerer: Answerer, root: Path, names: list[str], question: str, bad: list[BadRow], marks: Marks = ""
) -> Iterator[dict[str, str | int]]:
    """A row for each image, batch by batch, in the order of `names`; what cannot be used comes to `bad`."""
    questions = []
    for name in names:
        try:
            message = Message("user", (image_from_file(root, name), question))
        except BadRowError as error:
            bad.append(BadRow(name, str(error)))
            continue
        questions.append(Question(name, Prompt((message,), marks)))
    for batch in answerer.batches(questions, skip=lambda ids: False):
        for name, answer in batch.items():
            yield _row(name, question, answer)


def _row(name: str, question: str, answer: Answer) -> dict[str, str | int]:
    content: dict[str, str | int] = {"text": answer.text, "finish": answer.finish, "n_new_tokens": answer.n_new_tokens}
    return {"id": name, "question": question, **content, **({"raw": answer.raw} if answer.raw else {})}


def _write(rows: Iterator[dict[str, str | int]], bad: list[BadRow], config: AskConfig) -> None:
    path, count = Path(config.to), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False)
            print(line, file=stream, flush=True)
            count += 1
            if config.json:
                print(line)
    for one in bad:
        print(f"not asked: {one.id}: {one.reason}", file=sys.stderr)
    if not config.json:
        print(f"{count} answers in {path}" + (f", {len(bad)} images not asked" if bad else ""))
