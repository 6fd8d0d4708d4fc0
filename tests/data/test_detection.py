"""data=detection: the same boxes in every published layout, and one clear line for what is wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.data.datasets.detection import Detection
from vlmft.sample import BadRowError, Box, Mark, Point, Sample, read_marks

SIZE = (200, 100)
BOXES = {
    "a.jpg": [("cat", 20, 10, 60, 50), ("dog", 100, 0, 200, 100)],
    "b.jpg": [("dog", 0.0, 25, 50, 75)],
    "c.jpg": [],
}
"""Of three pictures of 200 x 100, in pixels."""


def picture(file: Path, size: tuple[int, int] = SIZE, turned: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.new("RGB", size, (len(file.name) * 9, 80, 120))
    exif = image.getexif()
    if turned:
        exif[0x0112] = 6
    image.save(file, exif=exif)


def coco_of(names: list[str], **more: Any) -> dict[str, Any]:
    """As https://cocodataset.org/#format-data has it; category ids have gaps there, too."""
    kinds = {"cat": 17, "dog": 18, "nothing": 90}
    images = [{"id": 100 + i, "file_name": n, "width": SIZE[0], "height": SIZE[1]} for i, n in enumerate(names)]
    notes = [
        {"id": 0, "image_id": 100 + i, "category_id": kinds[k], "bbox": [x, y, r - x, b - y], "area": 1, "iscrowd": 0}
        for i, name in enumerate(names)
        for k, x, y, r, b in BOXES[name]
    ]
    notes = [{**note, "id": number} for number, note in enumerate(notes, 1)]
    categories = [{"id": i, "name": name, "supercategory": "animal"} for name, i in kinds.items()]
    return {"info": {}, "licenses": [], "images": images, "annotations": notes, "categories": categories, **more}


def write_coco(root: Path) -> None:
    """annotations/instances_train2017.json, train2017/*.jpg, and the same of val."""
    for split, names in {"train2017": ["a.jpg", "b.jpg"], "val2017": ["c.jpg"]}.items():
        for name in names:
            picture(root / split / name)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco_of(names)))


def write_roboflow_coco(root: Path) -> None:
    for split, names in {"train": ["a.jpg", "b.jpg"], "valid": ["c.jpg"]}.items():
        for name in names:
            picture(root / split / name)
        (root / split / "_annotations.coco.json").write_text(json.dumps(coco_of(names)))


def yolo_line(box: tuple[Any, ...]) -> str:
    kind, left, top, right, bottom = box
    numbers = ((left + right) / 2 / SIZE[0], (top + bottom) / 2 / SIZE[1])
    numbers += ((right - left) / SIZE[0], (bottom - top) / SIZE[1])
    return " ".join([str(["cat", "dog"].index(kind)), *map(str, numbers)])


def write_yolo(root: Path) -> None:
    """Ultralytics: images/train, labels/train; the picture of nothing has no label file."""
    for split, names in {"train": ["a.jpg", "b.jpg"], "val": ["c.jpg"]}.items():
        for name in names:
            picture(root / "images" / split / name)
            if BOXES[name]:
                label = (root / "labels" / split / name).with_suffix(".txt")
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_text("\n".join(map(yolo_line, BOXES[name])) + "\n")
    (root / "data.yaml").write_text(
        "path: ../datasets/pets\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"
    )


def write_roboflow_yolo(root: Path) -> None:
    """train/images, train/labels; the paths in data.yaml begin one folder too high, and there is no test."""
    for split, names in {"train": ["a.jpg", "b.jpg"], "valid": ["c.jpg"]}.items():
        for name in names:
            picture(root / split / "images" / name)
            label = (root / split / "labels" / name).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("\n".join(map(yolo_line, BOXES[name])))
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    (root / "data.yaml").write_text(f"{paths}nc: 2\nnames: ['cat', 'dog']\n")


def voc_of(name: str, size: tuple[int, int] = SIZE, database: str = "Unknown", first: int = 0) -> str:
    things = "".join(
        f"<object><name>{k}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
        f"<xmin>{x + first:g}</xmin><ymin>{y + first:g}</ymin><xmax>{r:g}</xmax><ymax>{b:g}</ymax></bndbox></object>"
        for k, x, y, r, b in BOXES[name]
    )
    width, height = size
    return (
        f"<annotation><folder>x</folder><filename>{name}</filename><source><database>{database}</database></source>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{things}</annotation>"
    )


def write_voc(root: Path, database: str = "The VOC2007 Database", first: int = 1) -> None:
    """VOCdevkit: Annotations, JPEGImages, ImageSets/Main; pixels from 1."""
    sets = {"train": ["a.jpg", "b.jpg"], "val": ["c.jpg"]}
    for split, names in sets.items():
        for name in names:
            picture(root / "JPEGImages" / name)
            file = (root / "Annotations" / name).with_suffix(".xml")
            file.parent.mkdir(exist_ok=True)
            file.write_text(voc_of(name, database=database, first=first))
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(n[0] for n in names) + "\n")


def write_roboflow_voc(root: Path) -> None:
    for split, names in {"train": ["a.jpg", "b.jpg"], "valid": ["c.jpg"]}.items():
        for name in names:
            picture(root / split / name)
            (root / split / name).with_suffix(".xml").write_text(voc_of(name, database="roboflow.com"))


LAYOUTS = [write_coco, write_roboflow_coco, write_yolo, write_roboflow_yolo, write_voc, write_roboflow_voc]


def samples(data: Detection) -> dict[str, Sample]:
    return {row: data.to_sample(data.read(row)) for rows in data.index().values() for row in rows}


def marks(sample: Sample) -> tuple[Mark, ...]:
    found = read_marks(sample.references[0])
    assert found is not None
    return found


def near(found: Mark, box: tuple[Any, ...]) -> bool:
    return found.label == box[0] and all(abs(a - b) < 0.02 for a, b in zip(found.numbers, box[1:], strict=True))


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_layouts(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    data = Detection(path=str(tmp_path))
    assert {split: len(rows) for split, rows in data.index().items()} == {"train": 2, "val": 1}
    found = samples(data)
    by_image = {Path(s.prompt.images[0].name).name: s for s in found.values()}
    assert set(by_image) == set(BOXES)
    for name, boxes in BOXES.items():
        assert len(marks(by_image[name])) == len(boxes)
        assert all(near(mark, box) for mark, box in zip(marks(by_image[name]), boxes, strict=True))
    assert all(s.prompt.marks == "boxes" and s.answer == s.references[0] for s in found.values())
    assert by_image["a.jpg"].bare_question == "Detect all objects of these kinds: cat, dog."
    assert pickle.loads(pickle.dumps(data)).index() == data.index()
    assert data.describe().roles["boxes"] == "2 labels: cat, dog"


def test_jsonl_of_paligemma(tmp_path: Path) -> None:
    """Y before x, in 1024 bins."""
    for split, name in {"train": "a.jpg", "valid": "b.jpg"}.items():
        picture(tmp_path / "dataset" / name)
        suffix = " ; ".join(
            "".join(
                f"<loc{round(n):04d}>" for n in (y / 100 * 1024, x / 200 * 1024, b / 100 * 1024 - 1, r / 200 * 1024 - 1)
            )
            + f" {k}"
            for k, x, y, r, b in BOXES[name]
        )
        line = {"image": name, "prefix": "detect cat ; dog", "suffix": suffix}
        (tmp_path / "dataset" / f"_annotations.{split}.jsonl").write_text(json.dumps(line) + "\n")
    found = samples(Detection(path=str(tmp_path)))
    assert [s.bare_question for s in found.values()] == ["detect cat ; dog"] * 2
    cat, dog = marks(found["detection/train/000000"])
    assert cat.label == "cat" and dog.label == "dog"
    assert [round(n) for n in cat.numbers] == [20, 10, 60, 50] and abs(dog.numbers[2] - 200) < 0.3


@pytest.mark.parametrize(
    ("suffix", "label"),
    [
        ("cat<loc_100><loc_100><loc_300><loc_500>dog<loc_500><loc_0><loc_1000><loc_1000>", "Florence-2"),
        (json.dumps([{"label": k, "bbox_2d": [x, y, r, b]} for k, x, y, r, b in BOXES["a.jpg"]]), "pixels"),
    ],
)
def test_other_jsonl(suffix: str, label: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "annotations.jsonl").write_text(json.dumps({"image": "a.jpg", "prefix": "<OD>", "suffix": suffix}))
    (sample,) = samples(Detection(path=str(tmp_path))).values()
    assert all(near(mark, box) for mark, box in zip(marks(sample), BOXES["a.jpg"], strict=True)), label


def test_questions(tmp_path: Path) -> None:
    write_coco(tmp_path)
    by_label = samples(Detection(path=str(tmp_path), ask="label", question="Find every {labels}."))
    assert [(i, s.bare_question, len(marks(s))) for i, s in by_label.items()] == [
        ("detection/train/000000/cat", "Find every cat.", 1),
        ("detection/train/000000/dog", "Find every dog.", 1),
        ("detection/train/000001/dog", "Find every dog.", 1),
    ]
    every = samples(Detection(path=str(tmp_path), ask="every_label"))
    assert len(every) == 6 and [len(marks(s)) for s in every.values()] == [1, 1, 0, 1, 0, 0]
    vendor = Detection(path=str(tmp_path), question="detect {labels}", separator=" ; ")
    assert samples(vendor)["detection/val/000000"].bare_question == "detect cat ; dog"
    only = samples(Detection(path=str(tmp_path), labels=["dog"]))
    assert [mark.label for mark in marks(only["detection/train/000000"])] == ["dog"]


def test_points(tmp_path: Path) -> None:
    write_coco(tmp_path)
    data = Detection(path=str(tmp_path), points=True)
    sample = samples(data)["detection/train/000001"]
    assert data.metric == "point_accuracy" and Detection.metric == "box_f1" and sample.prompt.marks == "points"
    assert read_marks(sample.answer) == (Point(25, 50, "dog"),) and marks(sample) == (Box(0, 25, 50, 75, "dog"),)


def test_pixels_count_from_one_in_voc_itself_alone(tmp_path: Path) -> None:
    write_voc(tmp_path, database="Unknown", first=0)
    data = Detection(path=str(tmp_path))
    assert near(marks(samples(data)["detection/train/000000"])[0], BOXES["a.jpg"][0])
    assert not any("from 1" in note for note in data.describe().notes)


def test_a_turned_picture(tmp_path: Path) -> None:
    """Annotated as it lies in the file, or upright: the declared size says which, and the first is refused."""
    picture(tmp_path / "a.jpg", (100, 200), turned=True)
    (tmp_path / "x.json").write_text(json.dumps(coco_of(["a.jpg"])))
    (sample,) = samples(Detection(path=str(tmp_path))).values()
    assert sample.prompt.images[0].size == (200, 100)
    picture(tmp_path / "a.jpg", (200, 100), turned=True)
    with pytest.raises(
        BadRowError, match=r"200x100 as its annotations say, got 100x200 \(its EXIF turn was not applied"
    ):
        samples(Detection(path=str(tmp_path)))


def one_coco(root: Path, **box: Any) -> Detection:
    value = coco_of(["b.jpg"])
    value["annotations"][0].update(box)
    picture(root / "b.jpg")
    (root / "x.json").write_text(json.dumps(value))
    return Detection(path=str(root))


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ({"bbox": [1, 2, 3]}, r"annotation 1 in x\.json: Expected \[x, y, width, height\].* got bbox \[1, 2, 3\]"),
        ({"bbox": None}, "got bbox None"),
        ({"category_id": 5}, "of category 5"),
        ({"bbox": [10, 10, 0, 5]}, r"a width and a height, got \[10, 10, 10, 15\] of 'dog'"),
        ({"bbox": [150, 10, 90, 5]}, r"a box inside 200x100, got \[150, 10, 240, 15\]"),
        ({"bbox": [float("nan"), 10, 90, 5]}, "a box inside 200x100"),
    ],
)
def test_what_is_wrong_with_a_row_of_coco(box: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(BadRowError, match=said):
        samples(one_coco(tmp_path, **box))


def test_a_pixel_beyond_is_rounding(tmp_path: Path) -> None:
    (sample,) = samples(one_coco(tmp_path, bbox=[-0.6, 25, 50, 75.9])).values()
    assert marks(sample) == (Box(0, 25, 49.4, 100, "dog"),)


def test_crowds_and_strays_are_told(tmp_path: Path) -> None:
    data = one_coco(tmp_path, iscrowd=1)
    assert marks(next(iter(samples(data).values()))) == () and "1 regions" in data.describe().notes[0]
    assert "images that it does not list" in " ".join(one_coco(tmp_path, image_id=7).describe().notes)


@pytest.mark.parametrize("line", ["1 0.5 0.5", "7 0.5 0.5 0.1 0.1", "dog 0.5 0.5 0.1 0.1", "1 nan 0.5 0.1 0.1"])
def test_what_is_wrong_with_a_line_of_yolo(line: str, tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "b.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    data = Detection(path=str(tmp_path))
    with pytest.raises(BadRowError, match=rf"b\.txt line 2: Expected a class of 2 .* got {line!r}"):
        data.read("detection/train/000001")
    data.read("detection/train/000000")


def test_yolo_polygons_are_their_boxes(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "b.txt").write_text("1 0.1 0.2 0.5 0.4 0.3 0.9\n")
    assert near(marks(samples(Detection(path=str(tmp_path)))["detection/train/000001"])[0], ("dog", 20, 20, 100, 90))


def test_yolo_without_labels_is_not_a_set_of_empty_pictures(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "annotations")
    with pytest.raises(ConfigError, match="Expected label files in a folder labels beside images, got none for 3"):
        Detection(path=str(tmp_path)).index()


def test_broken_xml_and_json_lines_are_rows(tmp_path: Path) -> None:
    write_roboflow_voc(tmp_path)
    (tmp_path / "train" / "b.xml").write_text("<annotation><object>")
    with pytest.raises(BadRowError, match=r"b\.xml: Expected XML"):
        samples(Detection(path=str(tmp_path)))
    picture(tmp_path / "lines" / "a.jpg")
    (tmp_path / "lines" / "a.jsonl").write_text('{"image": "a.jpg", "prefix": "q", "suffix": "a cat"}\n{"image"\n')
    data = Detection(path=str(tmp_path / "lines"))
    for row, said in {
        "000000": "line 1: Expected boxes in the suffix, got 'a cat'",
        "000001": "line 2: Expected JSON",
    }.items():
        with pytest.raises(BadRowError, match=said):
            data.read(f"detection/train/{row}")


def test_no_boxes_and_two_forms(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected boxes in"):
        Detection(path=str(tmp_path)).index()
    write_coco(tmp_path)
    write_yolo(tmp_path)
    with pytest.raises(ConfigError, match=r"of one form, got COCO JSON .* and YOLO"):
        Detection(path=str(tmp_path)).index()
    with pytest.raises(ConfigError, match=r"data\.options\.labels: Expected labels of the boxes, got 'cow'"):
        Detection(path=str(tmp_path / "annotations"), images=str(tmp_path), labels=["cow"]).index()


def test_a_picture_that_is_not_there(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "train2017" / "b.jpg").unlink()
    data = Detection(path=str(tmp_path))
    with pytest.raises(BadRowError, match=r"b\.jpg"):
        data.to_sample(data.read("detection/train/000001"))
