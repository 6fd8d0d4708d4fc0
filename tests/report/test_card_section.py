"""The card in the report: what it says, and that no text of the data becomes markup."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from vlmft.report import Report
from vlmft.report.card import binned, card_words
from vlmft.report.page import page_text

HOSTILE = "<script>alert(1)</script>"


def spread(**counts: int) -> dict[str, Any]:
    values = {int(key.removeprefix("v")): n for key, n in counts.items()}
    marks = {"mean": 1.0, "min": min(values), "median": min(values), "p95": max(values), "max": max(values)}
    return {"n": sum(values.values()), **marks, "counts": {str(value): n for value, n in values.items()}}


def split(rows: int, looked_at: int) -> dict[str, Any]:
    counts = {"rows": rows, "looked_at": looked_at, "bad": 2, "repeated": 0, "images": 7, "answers": 3, "classes": 0}
    spreads = {
        "answer_words": spread(v1=4, v2=1),
        "questions_per_image": spread(v2=6, v3=1),
        "visual_tokens": spread(v64=6, v80=1),
    }
    return {**counts, "top_answers": {HOSTILE: 0.5}, **spreads}


CARD: dict[str, Any] = {
    "data": HOSTILE,
    "model": "tiny",
    "divided": [],
    "source": {
        "splits": {"train": "pets_train.csv (CSV in UTF-8), by name"},
        "roles": {"answer": "'pet': the text as it stands"},
        "unread": {"photographer": "'<Anna>'"},
        "notes": [],
    },
    "splits": {"train": split(1200, 1200), "test": split(300, 200)},
    "answers": {HOSTILE: {"train": 0.5, "test": 0.25}},
    "rows_that_fit": {
        "limit_tokens": 1024,
        "looked_at": 400,
        "tokens": spread(v90=300, v140=97),
        "too_long": 2,
        "refused": 1,
        "first": {"row": HOSTILE, "reason": "1301 tokens"},
    },
    "near_duplicates": {
        "distance": 32,
        "largest_group": None,
        "between": [{"splits": ["train", "test"], "images": 2, "pairs": []}],
    },
    "sheet": "../../near_duplicates.html",
}


def card_section(card: dict[str, Any]) -> str:
    """The part of a report's page that is on the data."""
    page = page_text(Report("t", "s", (), (), (), (), {}, (), {}, {}, {}, "", card=card))
    return re.findall('<details id="data".*?</details>', page, re.DOTALL)[0]


class Read(HTMLParser):
    """Elements, links, and all text that a reader sees or hears."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.names.append(tag)
        self.links += [found["href"] or ""] if "href" in found else []
        self.text += f" {found.get('aria-label') or ''} "

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_it_says() -> None:
    page = Read(card_section(CARD))
    assert "script" not in page.names and HOSTILE in page.text and page.links == ["../../near_duplicates.html"]
    for told in (
        "1,200 rows, 7 different images, 3 different answers, 2 rows that cannot be read.",
        "300 rows, of which a seeded sample of 200 was looked at",
        "2 images of test look like one of train.",
        f"3 of 400 that were looked at do not, such as {HOSTILE}: 1301 tokens. The others take 90 tokens (median)",
        "train: 64 to 80, median 64",
        "Visual tokens. train: 64 85.7\u00a0%, 80 14.3\u00a0%; test: ",
    ):
        assert told in page.text
    assert page.names.count("figure") == 4


def test_what_there_is_not_is_not_shown() -> None:
    card = copy.deepcopy(CARD)
    card["sheet"], card["near_duplicates"]["between"] = None, []
    card["rows_that_fit"].update(too_long=0, refused=0, first=None)
    for values in card["splits"].values():
        values["visual_tokens"] = values["questions_per_image"] = {"n": 0, "counts": {}}
    page = Read(card_section(card))
    assert not page.links and "Overlap" not in page.text and page.names.count("figure") == 2
    assert "All 400 that were looked at. They take 90 tokens (median), 140 at most." in page.text
    card["near_duplicates"] = {**CARD["near_duplicates"], "largest_group": 12}
    assert "the largest group holds 12 images." in Read(card_section(card)).text


@pytest.mark.parametrize(
    ("counts", "names", "shares"),
    [
        ({"1": 3, "4": 1}, ["1", "4"], [0.75, 0.25]),
        ({str(n): 1 for n in range(1, 21)}, [f"{n}\u2013{n + 1}" for n in range(1, 21, 2)], [0.1] * 10),
        ({str(n): 1 for n in range(64, 1264, 60)}, None, None),
    ],
)
def test_columns(counts: dict[str, int], names: list[str] | None, shares: list[float] | None) -> None:
    found, parts = binned({"train": counts, "test": {"1": 1}} if names else {"train": counts})
    assert 2 <= len(found) <= 13 and len(found) == len(parts["train"])
    assert sum(parts["train"]) == pytest.approx(1)
    if names is not None and shares is not None:
        assert found == names and parts["train"] == pytest.approx(shares)
        assert parts["test"] == [1.0] + [0.0] * (len(names) - 1)
    else:
        assert found[:2] == ["0\u201399", "100\u2013199"] and parts["train"][:2] == pytest.approx([1 / 20, 2 / 20])


def test_what_the_source_was_read_as_is_told_and_escaped() -> None:
    words = card_words(CARD)
    assert list(words)[:3] == ["Read from", "Read as", "Not read"] and "Noted" not in words
    page = Read(str(card_section(CARD)))
    assert "train: pets_train.csv (CSV in UTF-8), by name." in page.text
    assert "photographer, such as '<Anna>'." in page.text
    assert "anna" not in page.names
