"""Verdicts on disk, acceptance, kappa by hand-counted examples, and the report's section."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from vlmft.config.check import ConfigError
from vlmft.evaluation.grading import (
    Grading,
    TextKey,
    Verdict,
    VerdictFile,
    cohens_kappa,
    read_verdicts,
    summarise_grading,
    text_sha256,
)
from vlmft.evaluation.intervals import wilson_interval
from vlmft.report import Report, put_grading, read_report, write_report_files
from vlmft.report.markdown import markdown_text

HOSTILE = "</main><script>alert(1)</script><!-- /section:grading -->"


def given(row_id: str, text: str, accept: bool, note: str = "") -> Verdict:
    return Verdict(row_id, ("a",), text_sha256(text), "accept" if accept else "reject", note)


def by_key(verdicts: Sequence[Verdict]) -> dict[TextKey, Verdict]:
    return {verdict.key: verdict for verdict in verdicts}


def rated(*verdicts: bool) -> dict[TextKey, Verdict]:
    return by_key([given(str(i), "text", verdict) for i, verdict in enumerate(verdicts)])


# --- kappa


def pair(both: int, first: int, second: int, neither: int) -> tuple[dict[TextKey, Verdict], dict[TextKey, Verdict]]:
    """Two raters by the four cells of their table."""
    cells = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    return rated(*(one for one, _ in cells)), rated(*(other for _, other in cells))


@pytest.mark.parametrize(
    ("cells", "agreement", "kappa"),
    [
        ((20, 5, 10, 15), 0.7, 0.4),  # expected 0.5 * 0.6 + 0.5 * 0.4 = 0.5
        ((45, 15, 25, 15), 0.6, 6 / 46),  # expected 0.6 * 0.7 + 0.4 * 0.3 = 0.54
        ((25, 35, 5, 35), 0.6, 14 / 54),  # the same agreement, expected 0.6 * 0.3 + 0.4 * 0.7 = 0.46
        ((5, 0, 0, 5), 1.0, 1.0),
        ((0, 5, 5, 0), 0.0, -1.0),
        ((8, 2, 0, 0), 0.8, 0.0),  # one accepts all: chance would agree as often
    ],
)
def test_kappa_by_hand(cells: tuple[int, int, int, int], agreement: float, kappa: float) -> None:
    found = cohens_kappa("x", pair(*cells)[0], "y", pair(*cells)[1])
    assert found.n == sum(cells)
    assert (found.agreement, found.kappa) == (pytest.approx(agreement), pytest.approx(kappa))


def test_kappa_is_that_of_the_disagreement_table() -> None:
    """1 - observed / expected disagreement, as sklearn.metrics.cohen_kappa_score computes it."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        table = generator.integers(1, 20, size=(2, 2))
        expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
        apart = 1 - np.eye(2)
        (both, first), (second, neither) = table.tolist()
        found = cohens_kappa("x", *_with_name(pair(both, first, second, neither)))
        assert found.kappa == pytest.approx(1 - (apart * table).sum() / (apart * expected).sum())


def _with_name(
    raters: tuple[Mapping[TextKey, Verdict], ...],
) -> tuple[Mapping[TextKey, Verdict], str, Mapping[TextKey, Verdict]]:
    return raters[0], "y", raters[1]


@pytest.mark.parametrize("accept", [True, False])
def test_kappa_is_undefined_where_both_say_one_thing_throughout(accept: bool) -> None:
    found = cohens_kappa("x", rated(*[accept] * 3), "y", rated(*[accept] * 3))
    assert (found.n, found.agreement, found.kappa) == (3, 1.0, None)


def test_kappa_looks_at_what_both_judged() -> None:
    found = cohens_kappa("x", rated(True, False, True, True), "y", rated(True, False))
    assert (found.n, found.kappa) == (2, 1.0)
    empty = cohens_kappa("x", rated(True), "y", {})
    assert (empty.n, empty.agreement, empty.kappa) == (0, None, None)


# --- acceptance

ROWS = [f"r{i}" for i in range(10)]
GROUPS = {row_id: row_id for row_id in ROWS}
ANSWERS = {
    "untuned": {row_id: "bad" if i else "same" for i, row_id in enumerate(ROWS)},
    "tuned": {row_id: "good" if i else "same" for i, row_id in enumerate(ROWS)},
}


def judged(good: int, bad: int, same: bool) -> dict[TextKey, Verdict]:
    """Of the nine rows in which the arms differ, the first `good` and `bad` answers are accepted."""
    verdicts = [given(row_id, "good", i <= good) for i, row_id in enumerate(ROWS) if i]
    verdicts += [given(row_id, "bad", i <= bad) for i, row_id in enumerate(ROWS) if i]
    return by_key([*verdicts, given(ROWS[0], "same", same)])


def test_rates_and_the_paired_comparison() -> None:
    found = summarise_grading(ANSWERS, {"anna": judged(8, 1, True)}, GROUPS, ["untuned", "tuned"])
    (anna,) = found.raters
    assert (anna.rater, anna.is_judge, anna.n_texts) == ("anna", False, 19)
    untuned, tuned = anna.arms
    assert (untuned.n, untuned.accepted, tuned.n, tuned.accepted) == (10, 2, 10, 9)
    assert untuned.interval == wilson_interval(2, 10) and untuned.interval_method == "Wilson"
    (compared,) = anna.comparisons
    assert (compared.comparison.only_first, compared.comparison.only_second) == (0, 7)
    assert compared.comparison.p_test == "exact McNemar" and compared.p_value == 2 / 2**7
    assert compared.verdict == "better" and found.notes == [] and found.kappas == [] and found.mean_of_people == {}


def test_raters_each_their_mean_and_judges_apart() -> None:
    verdicts = {"anna": judged(8, 1, True), "boris": judged(6, 1, True), "judge-gpt": judged(9, 9, True)}
    found = summarise_grading(ANSWERS, verdicts, GROUPS, ["untuned", "tuned"])
    assert [(one.rater, one.is_judge) for one in found.raters] == [
        ("anna", False),
        ("boris", False),
        ("judge-gpt", True),
    ]
    assert found.mean_of_people == {"untuned": pytest.approx(0.2), "tuned": pytest.approx(0.8)}
    pairs = [(one.first, one.second, one.n) for one in found.kappas]
    assert pairs == [("anna", "boris", 19), ("judge-gpt", "anna", 19), ("judge-gpt", "boris", 19)]
    assert found.kappas[0].agreement == pytest.approx(17 / 19) and found.kappas[1].kappa == 0.0
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_verdict_on_another_text_is_not_used_and_said() -> None:
    verdicts = {**judged(8, 1, True), **by_key([given("r1", "an older answer", True), given("gone", "good", True)])}
    found = summarise_grading(ANSWERS, {"anna": verdicts}, GROUPS, ["untuned", "tuned"])
    assert found.raters[0].n_texts == 19
    assert found.notes == ["anna: 2 of 21 verdicts are on answers that are no longer there; not used"]


def test_an_arm_that_comes_later_finds_its_texts_judged() -> None:
    answers = {**ANSWERS, "later": ANSWERS["tuned"]}
    found = summarise_grading(answers, {"anna": judged(8, 1, True)}, GROUPS, ["later"])
    assert [(one.arm, one.accepted) for one in found.raters[0].arms] == [("later", 9)]
    assert found.raters[0].comparisons == []


def test_rows_of_one_image_widen_the_interval() -> None:
    groups = {row_id: str(i // 2) for i, row_id in enumerate(ROWS)}
    found = summarise_grading(ANSWERS, {"anna": judged(4, 1, True)}, groups, ["untuned", "tuned"])
    assert {one.interval_method for one in found.raters[0].arms} == {"Wilson by group"}


# --- on disk


def test_a_last_line_without_its_end_counts_if_it_is_whole(tmp_path: Path) -> None:
    """An editor may have left it so."""
    path = tmp_path / "anna.jsonl"
    rows = [{"id": i, "arms": ["a"], "text_sha256": "0", "verdict": "accept", "note": ""} for i in "xy"]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [verdict.id for verdict in read_verdicts(path).values()] == ["x", "y"]
    VerdictFile(path).append(Verdict("z", ("a",), "0", "reject", ""))
    assert [verdict.id for verdict in read_verdicts(path).values()] == ["x", "y", "z"]


def test_the_last_line_holds_and_a_torn_one_is_cut(tmp_path: Path) -> None:
    file = VerdictFile(tmp_path / "grading" / "anna.jsonl")
    file.append(given("1", "text", True))
    file.append(given("1", "text", False, note="не то\nсовсем"))
    assert file.path.read_bytes().count(b"\n") == 2
    with file.path.open("ab") as stream:
        stream.write(b'{"id": "2", "arms": ["a"], "te')
    assert [one.verdict for one in read_verdicts(file.path).values()] == ["reject"]
    again = VerdictFile(file.path)
    again.append(given("2", "text", True))
    found = read_verdicts(file.path)
    assert [(one.id, one.verdict, one.note) for one in found.values()] == [
        ("1", "reject", "не то\nсовсем"),
        ("2", "accept", ""),
    ]
    assert list(json.loads(file.path.read_text().splitlines()[0])) == ["id", "arms", "text_sha256", "verdict", "note"]


def test_a_full_disk_takes_nothing_and_says_so(
    tmp_path: Path, room_for: Callable[[int], AbstractContextManager[None]]
) -> None:
    file = VerdictFile(tmp_path / "anna.jsonl")
    file.append(given("1", "text", True))
    before = file.path.read_bytes()
    with room_for(len(before) + 20), pytest.raises(OSError, match="File too large"):
        file.append(given("2", "text", True))
    assert file.path.read_bytes() == before and len(file.verdicts) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "line 1: Expected a verdict, got b'nonsense'"),
        ('{"id": "1"}', "line 1: Expected a verdict"),
        ("[]", "line 1: Expected a verdict"),
        (
            '{"id": "1", "arms": [], "text_sha256": "x", "verdict": "maybe", "note": ""}',
            "line 1: Expected accept or reject, got 'maybe'",
        ),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "anna.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=said):
        read_verdicts(tmp_path / "anna.jsonl")


def test_a_judge_s_own_keys_do_no_harm(tmp_path: Path) -> None:
    line = {"id": "1", "arms": ["a"], "text_sha256": "x", "verdict": "accept", "note": None, "model": "gpt"}
    (tmp_path / "judge-gpt.jsonl").write_text(json.dumps(line) + "\n")
    assert read_verdicts(tmp_path / "judge-gpt.jsonl")["1", "x"].note == ""


# --- in the report


class Balanced(HTMLParser):
    """Elements closed in order; their ids, the links, and the texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.scripts = 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [str(found["id"])] if "id" in found else []
        self.links += [str(found["href"])] if tag == "a" else []
        self.scripts += tag == "script"
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A report with hostile texts."""
    write_report_files(Report("t", HOSTILE, (), (), (HOSTILE,), (), {"test": 3}, (), {}, {}, {}, ""), tmp_path)
    return tmp_path


def test_a_report_is_made_again_with_what_was_graded(folder: Path) -> None:
    before = Balanced((folder / "report.html").read_text())
    for n_accepted in (2, 8):
        found = summarise_grading(ANSWERS, {"anna": judged(n_accepted, 1, True)}, GROUPS, ["untuned", "tuned"])
        assert put_grading(folder, found.to_dict())
        pages = [(folder / name).read_text().replace("\u00a0", " ") for name in ("report.html", "report.md")]
        assert all(f"{10 * (n_accepted + 1)}.0 %" in text for text in pages)
        page = Balanced(pages[0])
        assert page.ids.count("grading") == 1 and page.scripts == before.scripts
        assert page.links.count("#grading") == before.links.count("#grading") + 1 == 1
        assert "## Graded by people" in pages[1] and HOSTILE not in pages[1]
    assert read_report(folder) == dataclasses.replace(
        Report("t", HOSTILE, (), (), (HOSTILE,), (), {"test": 3}, (), {}, {}, {}, ""),
        grading=json.loads(json.dumps(found.to_dict())),
    )


def test_what_is_no_report_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>mine</p>")
    assert not put_grading(tmp_path, {})
    for wrong in ("{", "[]", '{"titel": "mine"}'):
        (tmp_path / "report.json").write_text(wrong)
        with pytest.raises(ConfigError, match=r"report\.json: Expected the content of a report, got another one"):
            put_grading(tmp_path, {})
    assert (tmp_path / "report.html").read_text() == "<p>mine</p>"


def test_the_section_says_what_was_found(folder: Path) -> None:
    verdicts = {"anna": judged(8, 1, True), HOSTILE: judged(6, 1, True), "judge-gpt": judged(9, 9, True)}
    put_grading(folder, summarise_grading(ANSWERS, verdicts, GROUPS, ["untuned", "tuned"]).to_dict())
    text = (folder / "report.html").read_text()
    assert Balanced(text).scripts == 2
    for words in (
        "90.0\u00a0%",
        "mean of people",
        "untuned \u2192 tuned",
        "better",
        "Machine judges",
        "p\u00a0=\u00a00.016",
    ):
        assert words in text, words
    assert text.index("Accepted by people") < text.index("Machine judges") < text.index("judge-gpt")
    assert "Not calibrated" not in text


def graded_text(grading: Grading) -> str:
    """The section in Markdown."""
    return markdown_text(Report("t", "s", (), (), (), (), {}, (), {}, {}, {}, "", grading=grading.to_dict()))


def test_a_judge_without_people_is_not_calibrated_and_kappa_may_be_undefined() -> None:
    alone = graded_text(summarise_grading(ANSWERS, {"judge-gpt": judged(9, 9, True)}, GROUPS, ["tuned"]))
    assert "Not calibrated" in alone
    both = {"anna": judged(9, 9, True), "boris": judged(9, 9, True), "carl": {}}
    text = graded_text(summarise_grading(ANSWERS, both, GROUPS, ["untuned", "tuned"]))
    assert text.count("undefined: both gave one and the same verdict throughout") == 1
    assert text.count("no answer in common") == 2
