"""Small inputs in the forms of public reports: each is read as its files say, or refused in words that help.

A case that `data=KIND` reads is held to its rows by declared split, its first sample whole, and how many rows are bad
and why. `pytest tests/field -v` is the table of all of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vlmft.config.check import ConfigError
from vlmft.config.schema import DataConfig
from vlmft.data.make import make_dataset
from vlmft.sample import BadRowError, Sample

FIELD = Path(__file__).parents[2] / os.environ.get("VLMFT_REFERENCE_DATA", "../shared") / "field"
CLASSES = {"columns": "Columns", "messages": "Messages", "imagefolder": "ImageFolder"}

pytestmark = pytest.mark.skipif(not FIELD.is_dir(), reason="the reference data are not here")


@dataclass(frozen=True)
class Case:
    path: str
    """Below the folder of cases."""
    kind: str
    rows: Mapping[str, int] = field(default_factory=dict)
    """Of each declared split, bad ones included."""
    first: str = ""
    """The first good sample's turns, an image as IMAGE; "" where none is good."""
    answer: str | None = None
    references: Sequence[str] | None = None
    """Where they are not the answer alone."""
    bad: tuple[int, str] = (0, "")
    """How many rows are refused, and the first reason's beginning."""
    options: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    """Words of the refusal of the whole input."""


CASES = (
    Case("alpaca_vision", "columns", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case(
        "alpaca_with_input/train.json",
        "columns",
        {"train": 20},
        "user: IMAGE You read boxes. Answer shortly.\nHow many boxes are in corner 0?",
        "0",
    ),
    Case(
        "answer_all_null_half",
        "columns",
        {"train": 24},
        "user: IMAGE Which colour is the box?",
        "green",
        bad=(12, "Expected a text as answer, got None; drop the "),
    ),
    Case(
        "answer_is_json_list_text",
        "columns",
        {"train": 20},
        "user: IMAGE Describe it.",
        '["sunny", "beach", "tag0"]',
        options={"question_text": "Describe it."},
    ),
    Case(
        "answer_types",
        "columns",
        {"train": 24},
        "user: IMAGE How many?",
        "0",
        bad=(2, "Expected a text as answer, got None; drop the "),
    ),
    Case("arrow_null_keys", "messages", {"train": 12}, "user: IMAGE Which shade 0?", "0"),
    Case(
        "assistant_first",
        "messages",
        {"train": 30},
        "user: IMAGE How many?",
        "0",
        bad=(4, "Expected each answer after a question, got tur"),
    ),
    Case("base64_column", "columns", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case("base64_uri", "messages", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case("bbox_list_answer", "columns", {"train": 24}, "user: IMAGE Where is the box?", "[0, 1, 20, 22]"),
    Case(
        "caption_txt_beside_image/set",
        "imagefolder",
        {"train": 12},
        "user: IMAGE What is in this image?",
        "a picture of box 0, studio light",
    ),
    Case(
        "class_folders",
        "imagefolder",
        {"train": 32},
        "user: IMAGE What is in this image? Answer with one of: blue box, café au lait, red box, сосна 5.",
        "blue box",
    ),
    Case(
        "class_folders_capital",
        "imagefolder",
        {"train": 20, "test": 20},
        "user: IMAGE What is in this image? Answer with one of: cat, dog.",
        "cat",
    ),
    Case(
        "coco_captions/annotations/captions_train2017.json",
        "columns",
        {"train": 12},
        "user: IMAGE Describe it.",
        "A box number 0 seen 0.",
        references=(
            "A box number 0 seen 0.",
            "A box number 0 seen 1.",
            "A box number 0 seen 2.",
            "A box number 0 seen 3.",
            "A box number 0 seen 4.",
        ),
        options={"question_text": "Describe it."},
    ),
    Case("conversation_json_string", "messages", {"train": 12}, "user: IMAGE How many?", "0"),
    Case("csv_bom_semicolon", "columns", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case("csv_cp1251_semicolon", "columns", {"train": 20}, "user: IMAGE Сколько коробок?", "0"),
    Case("csv_cp1252", "columns", {"train": 24}, "user: IMAGE Quelle couleur a la boîte ?", "red"),
    Case("csv_head_case", "columns", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case("csv_pandas_index_and_floats", "columns", {"train": 20}, "user: IMAGE How many boxes?", "0.0"),
    Case("csv_utf16", "columns", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case("csv_utf16_excel", "columns", {"train": 20}, "user: IMAGE Сколько коробок?", "0"),
    Case("csv_windows_paths", "columns", {"train": 20}, "user: IMAGE How many boxes?", "0"),
    Case(
        "donut_metadata",
        "columns",
        {"train": 24},
        "user: IMAGE Describe it.",
        '{"colour": "red", "n": 0}',
        options={"question_text": "Describe it."},
    ),
    Case(
        "eos_in_answer",
        "columns",
        {"train": 24},
        "user: IMAGE Which colour is the box?<end_of_utterance>",
        "red <image> x",
    ),
    Case("excel_xlsx/train.xlsx", "columns", {"train": 20}, "user: IMAGE How many boxes?", "0"),
    Case("heic", "columns", {"train": 24}, bad=(24, "Expected an image (BMP, GIF, JPEG, PNG, PPM, T")),
    Case("hub_repo_clone/repo", "columns", {"train": 16, "test": 4}, "user: IMAGE Which shade?", "1"),
    Case("image_part_base64", "messages", {"train": 12}, "user: IMAGE How many boxes?", "0"),
    Case("instruction_response", "columns", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case(
        "json_answer_dict",
        "columns",
        {"train": 24},
        "user: IMAGE Give JSON.",
        '{"colour": "red", "n": 0, "tags": ["box"]}',
    ),
    Case(
        "json_answer_list",
        "columns",
        {"train": 24},
        "user: IMAGE Where is the box? Give JSON.",
        '[{"bbox_2d": [0, 1, 20, 22], "label": "red"}]',
    ),
    Case(
        "json_answer_strlist",
        "columns",
        {"train": 24},
        "user: IMAGE List the colours as a JSON list.",
        '["red", "white"]',
    ),
    Case(
        "json_answer_text",
        "columns",
        {"train": 24},
        "user: IMAGE Give JSON.",
        '{\n "colour": "red",\n "n": 0,\n "tags": [\n  "box"\n ]\n}',
    ),
    Case("json_that_is_json_lines", "columns", {"train": 20}, "user: IMAGE How many boxes?", "0"),
    Case(
        "jsonl_bad_line",
        "columns",
        {"train": 24},
        "user: IMAGE Which colour is the box?",
        "red",
        bad=(1, "Expected JSON in line 8 of data.jsonl, got Inv"),
    ),
    Case("jsonl_is_list", "columns", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case(
        "label_studio_full",
        "columns",
        {"train": 12},
        "user: IMAGE Describe it.",
        "dog",
        options={"question_text": "Describe it."},
    ),
    Case(
        "lavis_ten_answers",
        "columns",
        {"train": 20},
        "user: IMAGE Where is he looking?",
        "down",
        references=("down", "down", "at table", "skateboard", "down", "table", "down", "down", "down", "6"),
    ),
    Case(
        "llava_images_in_other_folder/annotations/train.json",
        "messages",
        {"train": 12},
        "user: IMAGE How many boxes are there?",
        "0",
    ),
    Case("llava_list_and_missing", "messages", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case(
        "llava_mark_no_image",
        "messages",
        {"train": 24},
        "user: IMAGE Which colour is the box?",
        "red",
        bad=(2, "Expected as many images as <image> marks, got "),
    ),
    Case("llava_no_mark", "messages", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case(
        "maestro_folders",
        "columns",
        {"train": 12, "val": 4, "test": 5},
        "user: IMAGE extract document data in JSON format",
        '{"route": "J0", "pallets": 0}',
    ),
    Case(
        "mark_count",
        "messages",
        {"train": 24},
        "user: IMAGE Which colour is the box?",
        "green",
        bad=(8, "Expected as many images as <image> marks, got "),
    ),
    Case(
        "mark_in_answer",
        "messages",
        {"train": 24},
        "user: IMAGE Write the page as Markdown.",
        "# Box 0\n![fig](<image>)\nred",
    ),
    Case(
        "mark_without_image",
        "messages",
        {"train": 18},
        "user: IMAGE I want the child mode",
        "mode 0",
        bad=(6, "Expected as many images as <image> marks, got "),
    ),
    Case("metadata_conversations_imagefolder", "imagefolder", refused="set data=messages"),
    Case("metadata_file_name_qwen", "messages", {"train": 12}, "user: IMAGE How many boxes are there?", "0"),
    Case("ms_swift_query_response", "columns", {"train": 20}, "user: IMAGE How many boxes?", "0"),
    Case("multi_image", "messages", {"train": 24}, "user: First IMAGE Second IMAGE Same colour?", "no"),
    Case("multi_image_csv", "columns", {"train": 24}, "user: IMAGE IMAGE Same?", "no"),
    Case(
        "odd_images",
        "columns",
        {"train": 40},
        "user: IMAGE Which colour is the box?",
        "red",
        bad=(2, "Expected a whole image, got a damaged one in /"),
    ),
    Case("openai_image_url_base64", "messages", {"train": 12}, "system: You count. | user: How many boxes? IMAGE", "0"),
    Case(
        "parquet_classlabel",
        "columns",
        {"train": 20},
        "user: IMAGE Describe it.",
        "apple_pie",
        options={"question_text": "Describe it."},
    ),
    Case("parquet_prompt_completion", "messages", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case("parquet_struct", "columns", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case("parquet_trl_messages", "messages", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case("question_mark_columns", "columns", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case("qwen_vl_img_tags", "messages", {"train": 20}, "user: Picture 1:  IMAGE \nHow many boxes in picture 0?", "0"),
    Case("same_image_two_marks", "messages", {"train": 12}, bad=(12, "Expected as many images as <image> marks, got ")),
    Case("save_to_disk/mine", "columns", {"train": 20}, "user: IMAGE Which shade?", "0"),
    Case("save_to_disk/dict", "columns", {"train": 16, "test": 4}, "user: IMAGE Which shade?", "0"),
    Case("several_images_in_csv/a.csv", "columns", {"train": 19}, "user: IMAGE IMAGE Are they alike?", "0"),
    Case("several_images_in_csv/b.csv", "columns", {"train": 19}, "user: IMAGE IMAGE Are they alike?", "0"),
    Case(
        "sharegpt_no_mark_one_image",
        "messages",
        {"train": 12},
        "user: IMAGE Male or female? Answer in JSON.",
        '{"gender": "female", "attire": "Active Wear", "role": "assistant"}',
    ),
    Case(
        "sharegpt_roles",
        "messages",
        {"train": 24},
        "system: You name colours. | user: IMAGE Which colour is the box?",
        "red",
    ),
    Case(
        "sharegpt_user_assistant",
        "messages",
        {"train": 24},
        "system: Answer with one word. | user: IMAGE Which colour is the box?",
        "red",
    ),
    Case("sidecar_txt", "imagefolder", {"train": 20}, "user: IMAGE What is in this image?", "A red box."),
    Case(
        "some_rows_without_images",
        "messages",
        {"train": 20},
        "user: IMAGE Which of these is farthest north?\nA. West\nB. East",
        "A",
    ),
    Case(
        "special_tokens",
        "messages",
        {"train": 24},
        "user: IMAGE Find the box. Answer <|box_start|>..<|box_end|>",
        "<|object_ref_start|>red box<|object_ref_end|><|box_start|>(0,2),(20,24)<|box_end|><|im_end|>",
    ),
    Case("split_at_end_of_name", "columns", {"train": 12, "val": 4, "test": 5}, "user: IMAGE Which pet?", "cat"),
    Case(
        "split_column_unnamed/all.csv",
        "columns",
        {"train": 12, "val": 4, "test": 4},
        "user: IMAGE How many boxes?",
        "0",
    ),
    Case("swift_query_response", "columns", {"train": 24}, "user: IMAGE Which colour is the box?", "red"),
    Case(
        "system_field",
        "messages",
        {"train": 24},
        "system: Answer with one word. | user: IMAGE Which colour is the box?",
        "red",
    ),
    Case("test_mark", "columns", {"train": 24, "test": 6}, "user: IMAGE Which colour is the box?", "red"),
    Case(
        "text_only_mark",
        "messages",
        {"train": 24},
        "user: IMAGE Which colour is the box?",
        "yellow",
        bad=(3, "Expected as many images as <image> marks, got "),
    ),
    Case("trl_prompt_completion", "messages", {"train": 20}, "user: IMAGE How many boxes?", "0"),
    Case(
        "vqav2",
        "columns",
        {"train": 24},
        "user: IMAGE Which colour is the box?",
        "red",
        references=("red", "red", "red", "red", "red", "red", "red", "red", "red", "red"),
    ),
    Case(
        "vqav2_answers_flat",
        "columns",
        {"train": 24},
        "user: IMAGE Which colour is the box?",
        "red",
        references=("red", "red", "red", "red", "red", "red", "red", "red", "red", "red"),
    ),
    Case(
        "vqav2_official",
        "columns",
        {"train": 12},
        "user: IMAGE Is it red?",
        "yes",
        references=("yes", "yes", "yes", "yes", "yes", "yes", "yes", "no", "no", "no"),
    ),
    Case("webdataset_tar/00000.tar", "imagefolder", {"train": 12}, "user: IMAGE What is in this image?", "a shade 0"),
)


def dataset_of(case: Case, root: Path = FIELD):  # type: ignore[no-untyped-def]
    target = f"vlmft.data.datasets.{case.kind}:{CLASSES[case.kind]}"
    config = DataConfig(name=case.kind, dataset=target, path=str(root / case.path), options=dict(case.options))
    return make_dataset(config)


def shown(sample: Sample) -> str:
    turns = (
        " ".join([f"{message.role}:", *(piece if isinstance(piece, str) else "IMAGE" for piece in message.content)])
        for message in sample.prompt.messages
    )
    return " | ".join(turns)


@pytest.fixture(autouse=True)
def own_library_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_case(case: Case, tmp_path: Path) -> None:
    root = FIELD
    if case.path == "excel_xlsx/train.xlsx":
        root = made(tmp_path, "excel_xlsx")
    dataset = dataset_of(case, root)
    if case.refused:
        with pytest.raises(ConfigError, match=case.refused):
            dataset.index()
        return
    index = dataset.index()
    assert {split: len(ids) for split, ids in index.items()} == case.rows
    good: list[Sample] = []
    bad: list[str] = []
    for row_id in (row_id for ids in index.values() for row_id in ids):
        try:
            sample = dataset.to_sample(dataset.read(row_id))
            for image in sample.prompt.images:
                image.load()
            good.append(sample)
        except BadRowError as error:
            assert "\n" not in str(error)
            bad.append(str(error))
    assert (len(bad), bad[0][: len(case.bad[1])] if bad else "") == case.bad
    if case.first:
        assert shown(good[0]) == case.first
        assert (good[0].answer, good[0].references) == (case.answer, tuple(case.references or [case.answer or ""]))
    assert good or not case.first


def made(folder: Path, name: str) -> Path:
    """The case with what its make.py makes, in a folder of ours."""
    shutil.copytree(FIELD / name, folder / name)
    for path in (folder / name, *(folder / name).rglob("*")):
        path.chmod(0o755)
    subprocess.run([sys.executable, str(folder / name / "make.py"), str(folder / name)], check=True)
    return folder


def test_every_folder_is_a_case_or_one_of_predictions() -> None:
    folders = {path.name for path in FIELD.iterdir() if path.is_dir()}
    seen = Counter(case.path.split("/")[0] for case in CASES)
    assert len(folders) >= 83 and sum(name.startswith("pred_") for name in folders) == 3
    assert {name for name in folders if not name.startswith("pred_")} == set(seen)


def test_how_many_are_read() -> None:
    read = [case for case in CASES if case.first]
    assert len(CASES) == 82 and len(read) >= 79
    assert [case.path for case in CASES if not case.first] == [
        "heic",
        "metadata_conversations_imagefolder",
        "same_image_two_marks",
    ]


@pytest.mark.parametrize("name", ["multi_image", "several_images_in_csv/a.csv"])
def test_images_that_tie_all_rows_leave_nothing_to_hold_back(name: str) -> None:
    from vlmft.config.schema import OnBadRow
    from vlmft.data.ledger import Ledger
    from vlmft.data.rows import Rows

    case = next(case for case in CASES if case.path == name)
    config = DataConfig(
        name="x", dataset=f"vlmft.data.datasets.{case.kind}:{CLASSES[case.kind]}", path=str(FIELD / case.path)
    )
    with pytest.raises(ConfigError, match=r"shared images.* tie \d+ rows into [12] groups.*data\.test_rows=0"):
        Rows(make_dataset(config), config, Ledger(None, OnBadRow.skip, 1.0), 0)
    config.val_rows = config.test_rows = 0
    assert len(Rows(make_dataset(config), config, Ledger(None, OnBadRow.skip, 1.0), 0).ids["train"]) > 10


MACHINE_PATHS = {
    "absolute": ("columns", lambda path: {"image": str(path), "question": "?", "answer": "a"}),
    "openai": (
        "messages",
        lambda path: {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": path.as_uri()}},
                        {"type": "text", "text": "?"},
                    ],
                },
                {"role": "assistant", "content": "a"},
            ]
        },
    ),
    "sharegpt": (
        "messages",
        lambda path: {
            "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a"}],
            "images": [path.as_uri()],
        },
    ),
}


@pytest.mark.parametrize("form", MACHINE_PATHS)
@pytest.mark.parametrize("inside", [True, False])
def test_paths_of_this_machine(tmp_path: Path, form: str, inside: bool) -> None:
    """Read below the data folder or data.options.images, and refused elsewhere with the setting that takes them."""
    import json

    import PIL.Image

    pictures = tmp_path / ("data/pictures and more" if inside else "elsewhere")
    pictures.mkdir(parents=True)
    (tmp_path / "data").mkdir(exist_ok=True)
    PIL.Image.new("RGB", (8, 6), (9, 80, 160)).save(pictures / "1.png")
    kind, row = MACHINE_PATHS[form]
    (tmp_path / "data" / "rows.jsonl").write_text(json.dumps(row(pictures / "1.png")) + "\n", encoding="utf-8")
    for options in ({}, {"images": str(pictures)}):
        dataset = dataset_of(Case("data/rows.jsonl", kind, options=options), tmp_path)
        (row_id,) = dataset.index()["train"]
        if inside or options:
            (image,) = dataset.to_sample(dataset.read(row_id)).prompt.images
            assert image.pixels[0, 0].tolist() == [9, 80, 160]
        else:
            with pytest.raises(BadRowError, match=r"below the data folder .*; set data\.options\.images"):
                dataset.to_sample(dataset.read(row_id))
