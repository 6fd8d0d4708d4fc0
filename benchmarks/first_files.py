"""Five kinds of files as people bring them, from the files to the report: what is typed, and how long it takes.

    python benchmarks/first_files.py [FOLDER]

Makes class folders in a Kaggle-like zip, a CSV as Excel on Windows saves it, LLaVA's JSON with images in another
folder, COCO captions, and an export of Label Studio: 60 drawn pictures of a coloured box each. Runs `vlmft check` and
`python train.py` (model=tiny, the defaults) on each, and prints the commands, their seconds and where the report is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import PIL.ImageDraw

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 60, 200)}
N_PICTURES = 60


def picture(number: int) -> tuple[PIL.Image.Image, str]:
    """A box on grey, no two alike, and its colour's name."""
    name = list(COLOURS)[number % len(COLOURS)]
    found = PIL.Image.new("RGB", (96, 96), (225 - number % 20, 225, 225))
    left, top = 5 + number * 7 % 40, 5 + number * 11 % 40
    PIL.ImageDraw.Draw(found).rectangle((left, top, left + 40, top + 36), fill=COLOURS[name])
    return found, name


def pictures(folder: Path) -> list[tuple[str, str]]:
    """Draws them into the folder; returns names of files and colours."""
    folder.mkdir(parents=True)
    found = []
    for number in range(N_PICTURES):
        drawn, colour = picture(number)
        drawn.save(folder / f"{number:012d}.jpg", quality=92)
        found.append((f"{number:012d}.jpg", colour))
    return found


def kaggle_zip(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "archive.zip", "w") as packed:
        for number in range(N_PICTURES):
            drawn, colour = picture(number)
            file = folder / "picture.png"
            drawn.save(file)
            split = "Test" if number % 5 == 4 else "Train"
            packed.write(file, f"boxes/{split}/{colour}/{number}.png")
        packed.writestr("__MACOSX/boxes/._Train", b"\0")
        file.unlink()
    return ["data=imagefolder", f"data.path={folder / 'archive.zip'}"]


def excel_csv(folder: Path) -> list[str]:
    lines = ["Bild;Frage;Antwort"]
    lines += [f"bilder\\{name};Welche Farbe hat das Kästchen?;{colour}" for name, colour in pictures(folder / "bilder")]
    (folder / "fragen.csv").write_text("\r\n".join(lines), encoding="cp1252")
    named = ["data.options.question=Frage", "data.options.answer=Antwort"]
    return ["data=columns", f"data.path={folder / 'fragen.csv'}", *named]


def llava(folder: Path) -> list[str]:
    rows = [
        {
            "id": name,
            "image": name,
            "conversations": [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": colour}],
        }
        for name, colour in pictures(folder / "images")
    ]
    (folder / "annotations").mkdir()
    (folder / "annotations" / "llava.json").write_text(json.dumps(rows), encoding="utf-8")
    return ["data=messages", f"data.path={folder / 'annotations' / 'llava.json'}"]


def coco(folder: Path) -> list[str]:
    drawn = pictures(folder / "train2017")
    images = [{"id": number, "file_name": name} for number, (name, _) in enumerate(drawn)]
    texts = ("A {} box.", "There is a {} box on grey.")
    notes = [
        {"id": 2 * n + i, "image_id": n, "caption": text.format(drawn[n][1])}
        for n in range(len(drawn))
        for i, text in enumerate(texts)
    ]
    (folder / "annotations").mkdir()
    file = folder / "annotations" / "captions_train2017.json"
    file.write_text(json.dumps({"info": {}, "images": images, "annotations": notes}), encoding="utf-8")
    return [
        "data=columns",
        f"data.path={file}",
        "data.options.question_text=Describe the picture.",
        "data.metric=sentence_chrf",
    ]


def label_studio(folder: Path) -> list[str]:
    tasks = [
        {
            "id": number,
            "data": {"image": f"/data/upload/1/{name}"},
            "annotations": [
                {
                    "result": [
                        {"from_name": "colour", "to_name": "image", "type": "choices", "value": {"choices": [colour]}}
                    ]
                }
            ],
        }
        for number, (name, colour) in enumerate(pictures(folder / "images"))
    ]
    (folder / "project-1.json").write_text(json.dumps(tasks), encoding="utf-8")
    return [
        "data=columns",
        f"data.path={folder / 'project-1.json'}",
        "data.options.question_text=Which colour is the box?",
    ]


FORMS: dict[str, Callable[[Path], list[str]]] = {
    "class folders in a Kaggle zip": kaggle_zip,
    "a CSV from Excel on Windows": excel_csv,
    "LLaVA JSON, images in another folder": llava,
    "COCO captions": coco,
    "a Label Studio export": label_studio,
}


def seconds_of(command: list[str]) -> tuple[float, str]:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - started, done.stdout


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="first-files-"))
    for number, (form, make) in enumerate(FORMS.items()):
        folder = root / str(number)
        folder.mkdir(parents=True)
        settings = make(folder)
        check, told = seconds_of([sys.executable, "-m", "vlmft", "check", *settings])
        train, _ = seconds_of(
            [sys.executable, "train.py", *settings, "logger=none", f"output_root={folder / 'outputs'}"]
        )
        (report,) = (folder / "outputs").rglob("report.html")
        rows = next(line for line in told.splitlines() if line.startswith("rows: "))
        print(f"{form}: {rows}\n  check {check:.1f} s, train to report {train:.0f} s\n  {report}", flush=True)
        print(f"  python train.py {' '.join(settings)}", flush=True)


if __name__ == "__main__":
    main()
