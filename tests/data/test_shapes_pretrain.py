"""What the tiny model is pretrained on: true answers, and nothing of the task it is later tested on."""

from __future__ import annotations

import pickle
import re
from collections import Counter

import pytest

from benchmarks.tiny.shapes_pretrain import (
    COMPARE_QUESTION,
    COUNT_QUESTIONS,
    KIND_PERCENT,
    ShapesPretrain,
    Turn,
    read_grid,
    tokenizer_texts,
)
from vlmft.data.datasets.scenes import COLOURS, PALETTES, Look, Scene, SceneObject
from vlmft.data.datasets.shapes import QUESTION, Shapes
from vlmft.sample import BadRowError

N_ROWS = 3000
DATASET = ShapesPretrain(train_rows=N_ROWS)


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, tuple[Turn, ...]]]:
    """(kind, turns) of each row."""
    records = [DATASET.read(row_id) for row_id in DATASET.index()["train"]]
    return [(record["kind"], record["turns"]) for record in records]


def of_kind(rows: list[tuple[str, tuple[Turn, ...]]], kind: str, at_least: int) -> list[tuple[Turn, ...]]:
    found = [turns for name, turns in rows if name == kind]
    assert len(found) >= at_least, f"found {len(found)} rows of kind {kind}"
    return found


def looks(turn: Turn) -> list[Look]:
    (scene,) = turn.scenes
    return [item.look for item in scene.objects]


def recount(turn: Turn) -> int:
    """The answer to any counting question, worked out from the words of the question."""
    words = set(re.findall(r"[a-z]+", turn.question.lower()))
    for colour in COLOURS:
        if colour in words:
            return sum(look.colour == colour for look in looks(turn))
    for shape in ("cube", "sphere", "cylinder"):
        if f"{shape}s" in words:
            return sum(look.shape == shape for look in looks(turn))
    assert turn.question in COUNT_QUESTIONS
    return len(looks(turn))


# -------------------------------------------------------------------------- nothing of the task is trained on


def test_the_task_wording_never_occurs(rows: list[tuple[str, tuple[Turn, ...]]]) -> None:
    def plain(text: str) -> str:
        return re.sub(r"\W+", " ", text.lower()).strip()

    assert plain(QUESTION) not in {plain(question) for question in COUNT_QUESTIONS}
    texts = [turn.question for _, turns in rows for turn in turns]
    assert len(texts) >= N_ROWS
    assert not [text for text in texts if plain(QUESTION) in plain(text)]


def test_no_scene_of_more_than_six_is_counted(rows: list[tuple[str, tuple[Turn, ...]]]) -> None:
    counted = [turn for _, turns in rows for turn in turns if turn.question in COUNT_QUESTIONS]
    assert {turn.answer for turn in counted} == set("123456")
    crowded = [kind for kind, turns in rows for turn in turns for scene in turn.scenes if len(scene.objects) > 6]
    assert set(crowded) == {"map", "part_count"}
    part_answers = {turns[-1].answer for turns in of_kind(rows, "part_count", 200)}
    assert part_answers == set("012345")


def test_palettes_are_those_of_condition_b(rows: list[tuple[str, tuple[Turn, ...]]]) -> None:
    scenes = [scene for _, turns in rows for turn in turns for scene in turn.scenes]
    found = {(item.look.shape, item.look.colour) for scene in scenes for item in scene.objects}
    assert found == {(shape, colour) for shape, colours in PALETTES["B"].items() for colour in colours}


def test_scenes_are_not_the_task_s_of_condition_b() -> None:
    task = Shapes(condition="B", min_objects=1, train_rows=300)
    theirs = {task.to_sample(task.read(row_id)).group for row_id in task.index()["train"]}
    ours = {DATASET.to_sample(DATASET.read(row_id)).group for row_id in DATASET.index()["train"][:300]}
    assert len(theirs) == 300 and len(ours) > 280
    assert not theirs & ours


# ------------------------------------------------------------------------------------------ answers are true


def test_counts_are_true(rows: list[tuple[str, tuple[Turn, ...]]]) -> None:
    kinds = ("count", "part_count", "few_shot")
    turns = [turn for kind in kinds for found in of_kind(rows, kind, 80) for turn in found]
    assert all(turn.answer == str(recount(turn)) for turn in turns)


def test_attributes_are_true_and_name_one_object(rows: list[tuple[str, tuple[Turn, ...]]]) -> None:
    for (turn,) in of_kind(rows, "attribute", 200):
        asked, name = re.fullmatch(r"What (colou?r|shape) is the (.+)\?", turn.question).groups()  # type: ignore[union-attr]
        words = set(name.removesuffix(" thing").split())
        meant = [look for look in looks(turn) if words <= {look.size, look.colour, look.shape}]
        assert len(meant) == 1
        assert turn.answer == (meant[0].shape if asked == "shape" else meant[0].colour)


def test_existence_is_true_balanced_and_hard(rows: list[tuple[str, tuple[Turn, ...]]]) -> None:
    found = of_kind(rows, "exists", 150)
    for (turn,) in found:
        colour, shape = re.fullmatch(r"Is there a (\w+) (\w+)\?", turn.question).groups()  # type: ignore[union-attr]
        pairs = {(look.colour, look.shape) for look in looks(turn)}
        assert turn.answer == ("yes" if (colour, shape) in pairs else "no")
        assert any(colour == c or shape == s for c, s in pairs)
        assert colour in PALETTES["B"][shape], "a question that the palette alone answers"
    assert 0.38 < Counter(turns[0].answer for turns in found)["yes"] / len(found) < 0.62


def test_captions_go_from_left_to_right(rows: list[tuple[str, tuple[Turn, ...]]]) -> None:
    for (turn,) in of_kind(rows, "caption", 80):
        items = sorted(turn.scenes[0].objects, key=lambda item: (item.x, item.y))
        assert turn.answer.split(" and ") == [f"a {item.look.colour} {item.look.shape}" for item in items]
        assert 1 <= len(items) <= 4


def test_two_images_are_never_equal(rows: list[tuple[str, tuple[Turn, ...]]]) -> None:
    found = of_kind(rows, "compare", 60)
    for (turn,) in found:
        first, second = (len(scene.objects) for scene in turn.scenes)
        assert first != second and turn.question == COMPARE_QUESTION
        assert turn.answer == ("first" if first > second else "second")
    assert 0.3 < Counter(turns[0].answer for turns in found)["first"] / len(found) < 0.7


def test_grid_names_the_object_nearest_to_a_cell_s_centre() -> None:
    def item(colour: str, shape: str, x: int, y: int) -> SceneObject:
        return SceneObject(Look(colour, shape, "small", "rubber", 0), x, y)

    crowd = (item("blue", "cube", 4, 4), item("red", "sphere", 13, 11), item("gray", "cylinder", 2, 12))
    scene = Scene((*crowd, item("cyan", "cube", 24, 23), item("brown", "sphere", 95, 95)), 96, (200, 200, 200, 0, 0))
    assert read_grid(scene) == "red sphere cyan cube" + " ." * 13 + " brown sphere"


def test_maps_name_every_cell(rows: list[tuple[str, tuple[Turn, ...]]]) -> None:
    for (turn,) in of_kind(rows, "map", 300):
        cells = re.findall(r"\.|[a-z]+ [a-z]+", turn.answer)
        taken = {(item.x // 24, item.y // 24) for item in turn.scenes[0].objects}
        assert len(cells) == 16 and " ".join(cells) == turn.answer
        assert 16 - cells.count(".") == len(taken)


# ------------------------------------------------------------------------------------------ form


def test_shares_are_those_of_the_table(rows: list[tuple[str, tuple[Turn, ...]]]) -> None:
    assert sum(KIND_PERCENT.values()) == 100
    counts = Counter(kind for kind, _ in rows)
    for kind, percent in KIND_PERCENT.items():
        expected = N_ROWS * percent / 100
        assert abs(counts[kind] - expected) < 4 * expected**0.5, kind


def test_few_shot_rows_are_solved_turns_of_one_question(rows: list[tuple[str, tuple[Turn, ...]]]) -> None:
    found = of_kind(rows, "few_shot", 80)
    assert {len(turns) - 1 for turns in found} == {1, 2, 3, 4}
    for turns in found:
        sample = DATASET.to_sample({"id": "row", "kind": "few_shot", "turns": turns})
        roles = [message.role for message in sample.prompt.messages]
        assert roles == ["user", "assistant"] * (len(turns) - 1) + ["user"]
        users, assistants = sample.prompt.messages[::2], sample.prompt.messages[1::2]
        assert {message.text for message in users} == {turns[0].question}
        assert all(len(message.content) == 2 for message in users)
        assert [message.text for message in assistants] == [turn.answer for turn in turns[:-1]]
        assert sample.answer == turns[-1].answer
        assert all(1 <= len(turn.scenes[0].objects) <= 6 for turn in turns)


def test_samples_hold_the_images_of_their_turns() -> None:
    n_images: Counter[tuple[str, int]] = Counter()
    for row_id in DATASET.index()["train"][:400]:
        sample = DATASET.to_sample(DATASET.read(row_id))
        assert sample.tags["kind"] in KIND_PERCENT and sample.references == (sample.answer,)
        assert len({image.name for image in sample.prompt.images}) == len(sample.prompt.images)
        n_images[sample.tags["kind"], len(sample.prompt.images)] += 1
    assert n_images["compare", 2] > 0 and n_images["text", 0] > 0 and n_images["map", 1] > 0
    assert not [key for key in n_images if key[0] not in ("few_shot", "text", "compare") and key[1] != 1]


def test_splits_share_no_group() -> None:
    dataset = ShapesPretrain(train_rows=400, val_rows=200, test_rows=200)
    groups = {
        split: {dataset.to_sample(dataset.read(row_id)).group for row_id in row_ids}
        for split, row_ids in dataset.index().items()
    }
    assert all(len(found) > 190 for found in groups.values())
    assert not groups["train"] & groups["val"] and not groups["train"] & groups["test"]
    assert not groups["val"] & groups["test"]


def test_text_rows_stand_in_train_alone() -> None:
    dataset = ShapesPretrain(train_rows=300, val_rows=300, test_rows=300)
    n_text = {
        split: sum(dataset.read(row_id)["kind"] == "text" for row_id in row_ids)
        for split, row_ids in dataset.index().items()
    }
    assert n_text["train"] > 0 and n_text["val"] == n_text["test"] == 0


def test_a_row_is_a_function_of_seed_and_number() -> None:
    few, many = ShapesPretrain(train_rows=10), ShapesPretrain(train_rows=90, val_rows=1)
    assert few.read("shapes_pretrain/train/000007") == many.read("shapes_pretrain/train/000007")
    assert few.read("shapes_pretrain/train/000007") != ShapesPretrain(seed=1).read("shapes_pretrain/train/000007")


def test_index_and_bad_rows() -> None:
    index = ShapesPretrain().index()
    assert {split: len(row_ids) for split, row_ids in index.items()} == {"train": 500_000, "val": 300, "test": 300}
    with pytest.raises(BadRowError, match="Expected a row id such as 'shapes_pretrain/train/000000', got"):
        ShapesPretrain().read("shapes_pretrain/val/000300")


def test_pickles() -> None:
    assert len(pickle.dumps(ShapesPretrain())) < 1000
    row_id = DATASET.index()["train"][0]
    sample = DATASET.to_sample(DATASET.read(row_id))
    copy = pickle.loads(pickle.dumps(sample))
    assert copy.prompt.sha256 == sample.prompt.sha256 and copy.answer == sample.answer


def test_tokenizer_texts_hold_what_the_project_asks() -> None:
    texts = list(tokenizer_texts())
    assert 3000 <= len(texts) <= 20_000
    assert texts == list(tokenizer_texts())
    joined = " ".join(texts)
    for word in ("How", "cylinder", "Сколько", "красный", "percent", "Germany", "2", "1990", "."):
        assert word in joined
    letters = "abcdefghijklmnopqrstuvwxyzабвгдеёжзийклмнопрстуфхцчшщъыьэюя"
    assert set(letters + letters.upper() + "0123456789") <= set(joined)
