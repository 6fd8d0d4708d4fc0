"""Rows drawn by code, in files exactly as each published dataset lies on its Hub or in its archive: `scale=smoke`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.data.datasets.scenes import Draw, make_scene, render

if TYPE_CHECKING:
    import PIL.Image

ROWS: Mapping[str, int] = {"train": 24, "val": 8, "test": 12}
"""How many are drawn where the source declares splits."""
N_ROWS = sum(ROWS.values())

CHARACTERS = {"gena": "Крокодил Гена", "cheburashka": "Чебурашка", "kolobok": "Колобок", "masha": "Маша"}
PROMPTS = ("Кто изображён на картинке?", "Что это за персонаж?", "Опиши этого персонажа")
SPORTS = ("archery", "canoe slamon", "hockey", "surfing")
"""Folder names of 100 Sports, one of the misspelt ones among them."""
PLAYERS = ("soccer player", "surfer", "tennis player", "cyclist")
CHARTS = ("box_chart", "funnel_chart")
MONTHS = ("January", "April", "July", "October")


# ------------------------------------------------------------------------------------------------------------ forms


def write_picture(file: Path, picture: PIL.Image.Image) -> None:
    """In the format of the file's suffix; makes its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)


def write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def write_parquet(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows with a picture as `image`, stored as the Hub does: the bytes of a file, and its name."""
    import datasets

    encoded = [{**row, "image": {"bytes": png(row["image"]), "path": None}} for row in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(encoded).cast_column("image", datasets.Image()).to_parquet(file)


def png(picture: PIL.Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def write_characters(
    folder: Path,
    pictures: Mapping[str, PIL.Image.Image],
    names: Mapping[str, str],
    prompts: Sequence[str],
    annotations: Mapping[str, tuple[str, str]],
) -> None:
    """The folder of the regional characters: `pictures` and `annotations` (question, answer) by "class/file"."""
    for name, picture in pictures.items():
        write_picture(folder / "images" / name, picture)
    write_json(folder / "json/character_names.json", dict(names))
    write_json(folder / "json/base_prompts.json", list(prompts))
    rows = []
    for name, (question, answer) in annotations.items():
        character = name.partition("/")[0]
        who = {"character_folder": character, "character_name": names[character]}
        asked = {"question": question, "answer": answer}
        rows.append({"image": f"data/images/{name}", "converted_image": None, **who, **asked})
    write_json(folder / "annotation.json", rows)


def write_conversations(file: Path, rows: Iterable[tuple[str, str, str, str]]) -> None:
    """LLaVA's form, as ChartLlama has it; of each row id, image, question and answer."""
    write_json(
        file,
        [
            {
                "id": row_id,
                "image": image,
                "model": "",
                "conversations": [
                    {"from": "human", "value": f"<image>\n{question}"},
                    {"from": "gpt", "value": answer},
                ],
            }
            for row_id, image, question, answer in rows
        ],
    )


# ------------------------------------------------------------------------------------------------------- what is drawn


def scene(name: str, count: int) -> PIL.Image.Image:
    """A scene of so many objects; another name, another picture."""
    return render(make_scene(Draw("smoke", name), "A", count, count, 96))


def chart(name: str) -> tuple[PIL.Image.Image, dict[str, int]]:
    """A bar chart, and its values by month."""
    import PIL.Image
    import PIL.ImageDraw

    draw = Draw("smoke chart", name)
    values = {month: draw.between(5, 95) for month in MONTHS}
    picture = PIL.Image.new("RGB", (240, 160), "white")
    pen = PIL.ImageDraw.Draw(picture)
    for number, (month, value) in enumerate(values.items()):
        left = 15 + 55 * number
        pen.rectangle((left, 140 - value, left + 35, 140), fill=(40 + 50 * number, 90, 180))
        pen.text((left, 145), month[:3], fill="black")
        pen.text((left + 8, 126 - value), str(value), fill="black")
    return picture, values


# --------------------------------------------------------------------------------------------------------- datasets


def clevr_count(folder: Path) -> None:
    """leonardPKU/clevr_cogen_a_train: RGBA scenes of 480x320, one split, the answer in its mark."""
    rows = []
    for number in range(N_ROWS):
        count = 3 + number % 8
        picture = scene(f"clevr {number}", count).resize((480, 320)).convert("RGBA")
        asked = {"problem": "How many items are there in the image?", "solution": f"<answer> {count} </answer>"}
        rows.append({"image": picture, **asked})
    write_parquet(folder / "data/train-00000-of-00001.parquet", rows)


def pjn_charts(folder: Path) -> None:
    """krowiemlekommm/PJN_CHARTS: three splits, and the label as a list of one text."""
    for split, n_rows in ROWS.items():
        rows = []
        for number in range(n_rows):
            picture, values = chart(f"pjn {split} {number // 2}")
            month = MONTHS[number % 2]
            rows.append({"image": picture, "query": f"What is the value in {month}?", "label": [str(values[month])]})
        write_parquet(folder / f"data/{split}-00000-of-00001.parquet", rows)


def chartllama(folder: Path) -> None:
    """listen2you002/ChartLlama-Dataset, unpacked: a JSON file for each kind of chart, and one row of glued pairs."""
    for kind in CHARTS:
        rows = []
        for number in range(N_ROWS // len(CHARTS)):
            name = f"{kind}_100examples_{number // 2}"
            picture, values = chart(name)
            write_picture(folder / f"ours/ours/{kind}/png/{name}.png", picture)
            month, other = MONTHS[number % 2], MONTHS[2 + number % 2]
            answer = str(values[month])
            if number == 0:
                answer += f"\n\nQuestion: What is the value in {other}?\nAnswer: {values[other]}"
            row_id = f"ours_simplified_qa_{number // 2}_{number % 2}"
            rows.append((row_id, f"ours/{kind}/png/{name}.png", f"What is the value in {month}?", answer))
        write_conversations(folder / f"{kind}_100examples_simplified_qa.json", rows)


def characters(folder: Path) -> None:
    """The regional characters: twelve images of each, all but two of them annotated."""
    names = [f"{character}/{number}.jpg" for character in CHARACTERS for number in range(N_ROWS // len(CHARACTERS))]
    pictures = {name: scene(name, 3 + number % 4) for number, name in enumerate(names)}
    annotations = {}
    for number, name in enumerate(names[:-2]):
        who = CHARACTERS[name.partition("/")[0]]
        annotations[name] = (PROMPTS[number % len(PROMPTS)], f"Это {who}.")
    write_characters(folder, pictures, CHARACTERS, PROMPTS, annotations)


def sports(folder: Path) -> None:
    """100 Sports: train, valid and test of class folders with images of 224x224, and the list of them."""
    listed = ["class id,filepaths,labels,data set"]
    for split, n_rows in {"train": ROWS["train"], "valid": ROWS["val"], "test": ROWS["test"]}.items():
        for number in range(n_rows):
            sport = SPORTS[number % len(SPORTS)]
            name = f"{split}/{sport}/{number // len(SPORTS) + 1:03d}.jpg"
            write_picture(folder / name, scene(name, 3 + number % 4).resize((224, 224)))
            listed.append(f"{number % len(SPORTS)},{name},{sport},{split}")
    (folder / "sports.csv").write_text("\n".join(listed) + "\n", encoding="utf-8")


def sports_captions(folder: Path) -> None:
    """nlphuji/flickr30k: one table with a column that says the split, five captions a picture, not all of sport."""
    rows: list[dict[str, Any]] = []
    for split, n_rows in ROWS.items():
        for number in range(n_rows + 2):
            player = PLAYERS[number % len(PLAYERS)] if number < n_rows else "cook"
            name = f"{split} {number}"
            captions = [f"A {player} {does} ." for does in ("waits", "is near things", "looks on", "plays", "is there")]
            rows.append({"image": scene(name, 3 + number % 4), "caption": captions, "split": split})
            rows[-1] |= {"sentids": [f"{5 * len(rows) + n}" for n in range(5)], "img_id": f"{len(rows)}"}
            rows[-1] |= {"filename": f"{len(rows)}.jpg"}
    write_parquet(folder / "test/0000.parquet", rows)


WRITERS: Mapping[str, Callable[[Path], None]] = {
    "clevr_count": clevr_count,
    "pjn_charts": pjn_charts,
    "chartllama": chartllama,
    "characters": characters,
    "sports": sports,
    "sports_captions": sports_captions,
}
"""`data.name` of a config in conf/data -> what writes its rows into a folder, which is then `data.path`."""
