"""What the shipped tiny model learned from before anybody fine-tunes it: questions about scenes, and a few words.

It teaches to see and to read a question, and stays off the task of `shapes.py`: the palettes are those of
condition B, scenes come from another name space, no whole scene of more than six objects is ever counted, and the
task's own wording is never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from vlmft.data.dataset import Dataset, Record
from vlmft.data.datasets.scenes import (
    COLOURS,
    PALETTES,
    SHAPES,
    Condition,
    Draw,
    Look,
    Scene,
    draw_look,
    make_scene,
    place,
    render,
)
from vlmft.data.datasets.shapes import FIRST_SCENE, check_scene_options, find_row, list_rows
from vlmft.sample import Image, Message, Prompt, Sample, Split

KIND_PERCENT: Mapping[str, int] = {
    "map": 12,  # what stands in each of the 16 cells: what the tokens of an image say, one by one
    "count": 30,  # all objects, 1 to 6
    "part_count": 16,  # objects of one colour or one shape, 0 to 5
    "attribute": 10,  # colour of the one cube, shape of the one red thing
    "exists": 10,  # yes or no, half and half
    "caption": 6,  # 1 to 4 objects, from left to right
    "compare": 5,  # which of two images has more
    "few_shot": 7,  # a count after 1 to 4 solved ones
    "text": 4,  # no image, English and Russian; in train alone, since its few texts would stand in two splits
}
CONDITION: Condition = "B"
MOST_COUNTED = 6
MOST_PART_COUNTED = 5
GRID = 4
"""Cells along each side of the map; the tiny model has one image token per cell."""

COUNT_QUESTIONS = (
    "How many objects do you see?",
    "How many things are here?",
    "How many shapes are in the picture?",
    "How many objects are in this image?",
    "Count the things.",
    "Count the objects.",
    "Count all items.",
    "What is the number of shapes?",
    "What is the number of objects in the picture?",
    "Number of things?",
    "Сколько здесь предметов?",
    "Сколько предметов на картинке?",
)
MAP_QUESTION = "Read the grid."
CAPTION_QUESTION = "Describe the image."
COMPARE_QUESTION = "Which image has more objects, the first or the second?"


@dataclass(frozen=True)
class Turn:
    """One question with its images and its answer."""

    scenes: tuple[Scene, ...]
    question: str
    answer: str


class ShapesPretrain(Dataset):
    """Rows of the kinds in `KIND_PERCENT`; a row is a function of (seed, split, row number, image_size)."""

    name: ClassVar[str] = "shapes_pretrain"
    metric: ClassVar[str] = "exact_match"
    max_new_tokens: ClassVar[int] = 48
    disjoint_by_construction: ClassVar[bool] = True  # scenes are numbered, and each split has numbers of its own

    def __init__(
        self,
        *,
        seed: int = 0,
        image_size: int = 96,
        train_rows: int = 500_000,
        val_rows: int = 300,
        test_rows: int = 300,
    ) -> None:
        """Raises ValueError for options that no scene fits."""
        self.seed, self.image_size = seed, image_size
        self.rows: Mapping[Split, int] = {"train": train_rows, "val": val_rows, "test": test_rows}
        check_scene_options(seed, image_size, self.rows)

    def index(self) -> Mapping[Split, Sequence[str]]:
        """Split -> ids such as "shapes_pretrain/train/000012"."""
        return list_rows(self.name, self.rows)

    def read(self, row_id: str) -> Record:
        """{"id", "kind", "turns"}: earlier turns are solved examples, the last is the question.

        Raises:
            BadRowError: no such row.
        """
        split, row = find_row(row_id, self.name, self.rows)
        draw = Draw(self.name, self.seed, FIRST_SCENE[split] + row)
        kind = _draw_kind(draw)
        while kind == "text" and split != "train":
            kind = _draw_kind(draw)
        return {"id": row_id, "kind": kind, "turns": _MAKERS[kind](draw, self.image_size)}

    def to_sample(self, record: Record) -> Sample:
        """Earlier turns become user and assistant messages, each with its own image."""
        turns: Sequence[Turn] = record["turns"]
        messages: list[Message] = []
        for number, turn in enumerate(turns):
            images = tuple(
                Image(load=partial(render, scene), name=f"{record['id']}/{number}.{nth}")
                for nth, scene in enumerate(turn.scenes)
            )
            messages.append(Message("user", (*images, turn.question)))
            messages.append(Message("assistant", (turn.answer,)))
        answer = turns[-1].answer
        prompt = Prompt(tuple(messages[:-1]))
        return Sample(record["id"], prompt, answer, references=(answer,), tags={"kind": record["kind"]})


# ------------------------------------------------------------------------------------------------- kinds of rows


def _draw_kind(draw: Draw) -> str:
    rest = draw.below(sum(KIND_PERCENT.values()))
    for kind, percent in KIND_PERCENT.items():
        rest -= percent
        if rest < 0:
            return kind
    raise AssertionError("below(n) gave n or more")


def _scene(draw: Draw, image_size: int, most: int = MOST_COUNTED) -> Scene:
    return make_scene(draw, CONDITION, 1, most, image_size)


def _looks(scene: Scene) -> list[Look]:
    return [item.look for item in scene.objects]


def _map(draw: Draw, image_size: int) -> tuple[Turn, ...]:
    scene = _scene(draw, image_size, most=10)
    return (Turn((scene,), MAP_QUESTION, read_grid(scene)),)


def read_grid(scene: Scene) -> str:
    """The cells in reading order: colour and shape of the object whose centre lies in it, or "." where none does.

    Of several, the one nearest to the cell's centre is named.
    """
    cells = ["."] * GRID**2
    nearest = [scene.image_size**2] * GRID**2  # four times the squared distance, to stay among whole numbers
    for item in scene.objects:
        column, row = item.x * GRID // scene.image_size, item.y * GRID // scene.image_size
        side = scene.image_size // GRID
        distance = (2 * item.x - (2 * column + 1) * side) ** 2 + (2 * item.y - (2 * row + 1) * side) ** 2
        if distance < nearest[GRID * row + column]:
            nearest[GRID * row + column] = distance
            cells[GRID * row + column] = f"{item.look.colour} {item.look.shape}"
    return " ".join(cells)


def _count(draw: Draw, image_size: int) -> tuple[Turn, ...]:
    return (_counted(_scene(draw, image_size), draw.choice(COUNT_QUESTIONS)),)


def _counted(scene: Scene, question: str) -> Turn:
    return Turn((scene,), question, str(len(scene.objects)))


def _part_count(draw: Draw, image_size: int) -> tuple[Turn, ...]:
    part = _draw_part(draw)
    return (_part_counted(draw, image_size, part, _ask_part(draw, part), most=8),)


def _draw_part(draw: Draw) -> tuple[str, str]:
    """What to count: ("colour", "red") or ("shape", "cube")."""
    attribute = draw.choice(("colour", "shape"))
    return attribute, draw.choice(tuple(COLOURS) if attribute == "colour" else SHAPES)


def _ask_part(draw: Draw, part: tuple[str, str]) -> str:
    things = f"{part[1]} things" if part[0] == "colour" else f"{part[1]}s"
    return draw.choice((f"How many {things}?", f"How many {things} are there?", f"Count the {things}."))


def _part_counted(draw: Draw, image_size: int, part: tuple[str, str], question: str, most: int) -> Turn:
    """A scene whose answer is drawn first: counts of one colour in scenes drawn freely are nearly all 0 or 1."""
    n_objects = draw.between(1, most)
    answer = draw.between(0, min(MOST_PART_COUNTED, n_objects))
    looks = [_draw_look_where(draw, part, number < answer) for number in range(n_objects)]
    return Turn((place(draw, looks, image_size),), question, str(answer))


def _draw_look_where(draw: Draw, part: tuple[str, str], has: bool) -> Look:
    while True:
        look = draw_look(draw, CONDITION)
        if (getattr(look, part[0]) == part[1]) == has:
            return look


def _attribute(draw: Draw, image_size: int) -> tuple[Turn, ...]:
    """Asks for one attribute of an object that the other one names alone, with its size in half of the rows."""
    asked, known = draw.choice((("colour", "shape"), ("shape", "colour")))
    keys = draw.choice(((known,), ("size", known)))
    while True:
        scene = _scene(draw, image_size)
        names = [" ".join(getattr(look, key) for key in keys) for look in _looks(scene)]
        unique = [number for number, name in enumerate(names) if names.count(name) == 1]
        if unique:
            break
    number = draw.choice(unique)
    noun = names[number] if known == "shape" else f"{names[number]} thing"
    word = draw.choice(("color", "colour")) if asked == "colour" else "shape"
    return (Turn((scene,), f"What {word} is the {noun}?", getattr(scene.objects[number].look, asked)),)


def _exists(draw: Draw, image_size: int) -> tuple[Turn, ...]:
    """A "no" asks for something that could be there and shares its colour or its shape with something that is."""
    scene = _scene(draw, image_size)
    present = [(look.colour, look.shape) for look in _looks(scene)]
    colours, shapes = {colour for colour, _ in present}, {shape for _, shape in present}
    absent = [
        (colour, shape)
        for shape in SHAPES
        for colour in PALETTES[CONDITION][shape]
        if (colour, shape) not in present and (colour in colours or shape in shapes)
    ]
    answer = draw.choice(("yes", "no"))
    if answer == "no":  # shape first, as in a scene: spheres have the most colours and would mostly be absent
        wanted = draw.choice(sorted({shape for _, shape in absent}))
        absent = [pair for pair in absent if pair[1] == wanted]
    colour, shape = draw.choice(present if answer == "yes" else absent)
    return (Turn((scene,), f"Is there a {colour} {shape}?", answer),)


def _caption(draw: Draw, image_size: int) -> tuple[Turn, ...]:
    scene = _scene(draw, image_size, most=4)
    from_left = sorted(scene.objects, key=lambda item: (item.x, item.y))
    return (Turn((scene,), CAPTION_QUESTION, " and ".join(f"a {o.look.colour} {o.look.shape}" for o in from_left)),)


def _compare(draw: Draw, image_size: int) -> tuple[Turn, ...]:
    first = draw.between(1, MOST_COUNTED)
    second = draw.between(1, MOST_COUNTED - 1)
    second += second >= first
    scenes = tuple(make_scene(draw, CONDITION, n, n, image_size) for n in (first, second))
    return (Turn(scenes, COMPARE_QUESTION, "first" if first > second else "second"),)


def _few_shot(draw: Draw, image_size: int) -> tuple[Turn, ...]:
    n_turns = 1 + draw.between(1, 4)
    if draw.choice((True, False)):
        question = draw.choice(COUNT_QUESTIONS)
        return tuple(_counted(_scene(draw, image_size), question) for _ in range(n_turns))
    part = _draw_part(draw)
    question = _ask_part(draw, part)
    return tuple(_part_counted(draw, image_size, part, question, most=MOST_COUNTED) for _ in range(n_turns))


def _text(draw: Draw, image_size: int) -> tuple[Turn, ...]:
    form = draw.below(4)
    if form == 0:
        question, answer = draw.choice(GREETINGS)
    elif form == 1:
        a, b = draw.below(10), draw.below(10)
        plus = draw.choice(("What is {} plus {}?", "Сколько будет {} плюс {}?"))
        question, answer = plus.format(a, b), str(a + b)
    elif form == 2:
        answer = draw.choice(CHART_WORDS + COUNTRIES + RUSSIAN_WORDS + tuple(COLOURS))
        question = draw.choice(("Repeat: {}", "Повтори: {}")).format(answer)
    else:
        english, russian = draw.choice(tuple(RUSSIAN_COLOURS.items()))
        to_russian, to_english = (f"Как по-русски {english}?", russian), (f"Как по-английски {russian}?", english)
        question, answer = draw.choice((to_russian, to_english))
    return (Turn((), question, answer),)


_MAKERS: Mapping[str, Callable[[Draw, int], tuple[Turn, ...]]] = {
    "map": _map,
    "count": _count,
    "part_count": _part_count,
    "attribute": _attribute,
    "exists": _exists,
    "caption": _caption,
    "compare": _compare,
    "few_shot": _few_shot,
    "text": _text,
}

# ------------------------------------------------------------------------------------------------- words

GREETINGS = (
    ("hello", "hello"),
    ("Hi!", "hi"),
    ("Good morning!", "good morning"),
    ("How are you?", "good"),
    ("Thank you.", "you are welcome"),
    ("Bye!", "bye"),
    ("привет", "привет"),
    ("Здравствуйте!", "здравствуйте"),
    ("Доброе утро!", "доброе утро"),
    ("Как дела?", "хорошо"),
    ("Спасибо.", "пожалуйста"),
    ("Пока!", "пока"),
)
RUSSIAN_COLOURS: Mapping[str, str] = {
    "gray": "серый",
    "red": "красный",
    "blue": "синий",
    "green": "зелёный",
    "brown": "коричневый",
    "purple": "фиолетовый",
    "cyan": "голубой",
    "yellow": "жёлтый",
}
RUSSIAN_WORDS = tuple(
    (
        "куб шар цилиндр предмет картинка цвет форма число год процент значение страна график сколько какой где больше "
        "меньше первый второй один два три четыре пять шесть да нет линия столбец сумма разница среднее"
    ).split()
)
CHART_WORDS = tuple(
    (
        "year percent value total average median difference ratio sum highest lowest largest smallest most least chart "
        "graph bar line pie title label legend axis people population share rate number countries country between what "
        "which when who favorable unfavorable adults men women age million billion dollars more less than first second "
        "third last increase decrease point color segment table row column peak minimum maximum"
    ).split()
)
COUNTRIES = tuple(
    (
        "Argentina Australia Brazil Canada China France Germany India Indonesia Iran Israel Italy Japan Kenya Mexico "
        "Nigeria Norway Poland Russia Spain Sweden Turkey Ukraine Vietnam"
    ).split()
)
_CHART_QUESTIONS = (
    "What is the value of {country} in {year}?",
    "Which year has the highest {word} of {country}?",
    "What is the difference between {country} and the {word}?",
    "How many {word} in {country} in {year}?",
    "What percent of people in {country} say {word}?",
    "Is the {word} of {country} more than {number}%?",
    "What is the average of the {word} from {year}? {number}",
)


def tokenizer_texts() -> Iterator[str]:
    """The corpus of the tiny model's tokenizer: some thousand short texts, always the same ones.

    Questions and answers of this dataset, chart questions, both alphabets, digits and punctuation.
    """
    dataset = ShapesPretrain(train_rows=3000)
    for row_id in dataset.index()["train"]:
        for turn in dataset.read(row_id)["turns"]:
            yield turn.question
            yield turn.answer
    draw = Draw("tokenizer_texts")
    for _ in range(1000):
        yield draw.choice(_CHART_QUESTIONS).format(
            country=draw.choice(COUNTRIES),
            word=draw.choice(CHART_WORDS),
            year=draw.between(1990, 2025),
            number=f"{draw.below(100)}.{draw.below(10)}",
        )
    for greeting, reply in GREETINGS:
        yield from (greeting, reply)
    latin, cyrillic = "abcdefghijklmnopqrstuvwxyz", "абвгдеёжзийклмнопрстуфхцчшщъыьэюя"
    for alphabet in (latin, latin.upper(), cyrillic, cyrillic.upper(), "0123456789", ".,:;!?%$€()[]/+-*=<>'\"&#@_"):
        yield from (alphabet, " ".join(alphabet))
    for words in (CHART_WORDS, COUNTRIES, RUSSIAN_WORDS, tuple(RUSSIAN_COLOURS.values())):
        yield from (f"{word} {word.capitalize()}" for word in words for _ in range(5))
