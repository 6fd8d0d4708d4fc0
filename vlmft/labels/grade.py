"""vlmft grade: people judge the arms' answers on a page, without knowing whose they are. No torch."""

from __future__ import annotations

import getpass
import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.config.schema import DataConfig
from vlmft.config.tool_schema import GradeConfig
from vlmft.data.make import make_dataset
from vlmft.evaluation.grading import (
    GRADING_FOLDER,
    JUDGE,
    Answers,
    Grading,
    RaterResult,
    Verdict,
    VerdictFile,
    read_verdicts,
    summarise_grading,
    text_sha256,
)
from vlmft.evaluation.numbers import Unit, console, percent
from vlmft.pages import packaged
from vlmft.pages.local_page import Page, html_page, picture_bytes, serve
from vlmft.predictions.rows import Reading
from vlmft.predictions.rows import read_predictions as read_file
from vlmft.report import put_grading
from vlmft.report.graded import kappa_words
from vlmft.report.stored import REPORT_HTML
from vlmft.run.folder import CONFIG_FILE, SUMMARY_FILE, read_run, write_json
from vlmft.sample import BadRowError, Sample

GRADED = Unit(is_share=True, is_exact=True)
LATER_DRAW = re.compile(r"fewshot-([2-9]|[1-9]\d+)")
"""Other examples before the same questions: judged only where they are named."""
OTHER_PROMPT = re.compile(r"@|^(fewshot|blank|shuffled|textonly)")
"""Arms that are not asked the dataset's own prompt."""


@dataclass(frozen=True)
class Predictions:
    """The answers of a folder's arms."""

    folder: Path
    answers: Answers
    """All arms, the one that others are compared with first."""
    groups: Mapping[str, str]
    """Row id -> its images, as the first arm got them."""


@dataclass(frozen=True)
class Item:
    """One text to be judged."""

    row_id: str
    text: str
    arms: tuple[str, ...]


def grade(config: GradeConfig) -> None:
    """Serves the page until the rater has done; prints what came out, and puts it into the report.

    Raises:
        ConfigError: no predictions, no such arm, or data that are not those that were answered.
    """
    predictions = read_predictions(Path(config.run), config.arms)
    arms = config.arms or judged_arms(predictions)
    if not config.summary:
        rater = rater_of(config)
        rows = chosen_rows(predictions.answers, arms, config.n, config.seed)
        items = shuffled_items(predictions.answers, arms, rows, f"{config.seed}:{rater}")
        samples = read_samples(config, predictions.folder, rows)
        file = VerdictFile(predictions.folder / GRADING_FOLDER / f"{rater}.jsonl")
        print(f"{len(items)} answers to {len(rows)} questions, judged by {rater}", file=sys.stderr)
        serve(grading_page(items, samples, file, references=config.references), config.port, config.open_browser)
    store_and_print(predictions, arms, as_json=config.json)


def judged_arms(predictions: Predictions) -> list[str]:
    """All arms, of several draws of examples the first."""
    return [arm for arm in predictions.answers if not LATER_DRAW.fullmatch(arm)]


def rater_of(config: GradeConfig) -> str:
    """The rater's name, fit for a file."""
    try:
        name = getpass.getuser() if config.rater is None else config.rater
    except (OSError, KeyError) as error:
        raise ConfigError("rater: Expected a name, got none, for this computer's user has none; set it") from error
    if not re.fullmatch(r"\w[\w.+@-]*", name) or name.startswith(JUDGE):
        raise ConfigError(f"rater: Expected letters, digits and . _ - + @, not from {JUDGE!r} on, got {name!r}; set it")
    return name


def read_predictions(folder: Path, first: Sequence[str] = ()) -> Predictions:
    """All arms of a folder: those of `first` first, then untuned, then by name.

    Raises:
        ConfigError: there are none, one that is named is not there, or a file of them is damaged.
    """
    there = [path.stem for path in (folder / "predictions").glob("*.jsonl")]
    if not there:
        raise ConfigError(f"run: there are no predictions in {str(folder)!r}; give the folder of a finished run")
    if lost := [arm for arm in first if arm not in there]:
        raise ConfigError(f"arms: Expected some of {', '.join(sorted(there))}, got {', '.join(lost)}")
    order = [*first, *sorted(set(there) - set(first), key=lambda arm: (arm != "untuned", arm))]
    reading = Reading({"id": "id", "prediction": "text"})
    rows = {arm: read_file(folder / "predictions" / f"{arm}.jsonl", reading) for arm in order}
    answers = {arm: {row.id: row.prediction or "" for row in found.rows.values()} for arm, found in rows.items()}
    groups = {row_id: group for arm in reversed(order) for row_id, group in rows[arm].groups.items()}
    return Predictions(folder, answers, groups)


def chosen_rows(answers: Answers, arms: Sequence[str], n: int, seed: int) -> list[str]:
    """`n` ids that every arm has answered: the first ones in an order by hash, so that more rows keep these."""
    shared = set.intersection(*(set(answers[arm]) for arm in arms))
    if not shared:
        raise ConfigError(f"arms: Expected rows that all of {', '.join(arms)} have answered, got none; name fewer")
    return sorted(shared, key=lambda row_id: _by_hash(f"{seed}:{row_id}"))[:n]


def shuffled_items(answers: Answers, arms: Sequence[str], rows: Sequence[str], seed: str) -> list[Item]:
    """What is to be judged, over rows and arms in an order that gives away neither; equal texts of a row once."""
    items = []
    for row_id in rows:
        for text in dict.fromkeys(answers[arm][row_id] for arm in arms):
            items.append(Item(row_id, text, tuple(arm for arm in arms if answers[arm][row_id] == text)))
    return sorted(items, key=lambda item: _by_hash(f"{seed}:{item.row_id}:{item.text}"))


def _by_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def read_samples(config: GradeConfig, folder: Path, rows: Sequence[str]) -> dict[str, Sample]:
    """The questions as they were asked.

    Raises:
        ConfigError: the data cannot be read, or are not those that were answered.
    """
    dataset = make_dataset(data_of(config, folder))
    try:
        dataset.index()
        samples = {row_id: dataset.to_sample(dataset.read(row_id)) for row_id in rows}
        asked = _asked(folder)
        other = [row_id for row_id, sample in samples.items() if not _was_asked(sample, asked[row_id])]
    except (BadRowError, OSError) as error:
        raise ConfigError(
            f"run: the data no longer give the rows that were answered ({error}); restore them"
        ) from error
    if other:
        raise ConfigError(
            f"data_options: Expected the data that were answered, got other images or questions in {len(other)} rows "
            f"({', '.join(other[:5])}); give data_options= as evaluate.py got them, or restore the data"
        )
    return samples


def data_of(config: GradeConfig, folder: Path) -> DataConfig:
    """Of the run, of the run that an evaluation belongs to, or as named; with data_options."""
    data = config.data
    if data is None:
        places = [folder, folder.resolve().parent.parent]
        place = next((one for one in places if (one / CONFIG_FILE).is_file()), None)
        if place is None:
            raise ConfigError(f"data: Expected the data that were evaluated, for {folder} has no {CONFIG_FILE}; set it")
        data = read_run(str(place)).data
    data.options = {**data.options, **config.data_options}
    return data


def _asked(folder: Path) -> dict[str, list[Mapping[str, Any]]]:
    """Row id -> its lines in the predictions of all arms."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for path in (folder / "predictions").glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            lines.setdefault(row["id"], []).append(row)
    return lines


def _was_asked(sample: Sample, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some arm got this very prompt or, under another wording or after examples, its images."""
    images = [image.sha256 for image in sample.prompt.images]
    own = [line for line in lines if not OTHER_PROMPT.search(str(line.get("arm", "")))]
    if own:  # distinguishes several questions about one image
        return any(line.get("prompt_sha256") == sample.prompt.sha256 for line in own)
    return any(
        line.get("prompt_sha256") == sample.prompt.sha256
        or (images and line.get("image_sha256", [])[-len(images) :] == images)
        for line in lines
    )


def grading_page(items: Sequence[Item], samples: Mapping[str, Sample], file: VerdictFile, *, references: bool) -> Page:
    """The page. Neither an arm nor a row's id or file name reaches the browser: these may give away the answer."""

    def shown(number: int, item: Item) -> dict[str, Any]:
        sample, verdict = samples[item.row_id], file.verdicts.get((item.row_id, text_sha256(item.text)))
        *earlier, question = sample.prompt.messages
        return {
            "earlier": [{"role": turn.role, "text": turn.text} for turn in earlier if turn.text],
            "question": question.text,
            "references": [*sample.references] if references else [],
            "answer": item.text,
            "images": [f"{number}-{i}" for i in range(len(sample.prompt.images))],
            "verdict": verdict.verdict if verdict is not None else None,
            "note": verdict.note if verdict is not None else "",
        }

    def all_items(_: Any) -> dict[str, Any]:
        shown_items = [shown(number, item) for number, item in enumerate(items)]
        start = next((number for number, one in enumerate(shown_items) if one["verdict"] is None), len(shown_items))
        return {"items": shown_items, "start": start}

    def save(value: Mapping[str, Any]) -> None:
        if value["verdict"] not in ("accept", "reject"):
            raise ValueError(f"Expected accept or reject, got {value['verdict']!r}")
        item = items[value["item"]]
        file.append(Verdict(item.row_id, item.arms, text_sha256(item.text), value["verdict"], str(value["note"])))

    def image(name: str) -> bytes:
        number, i = pictures[name]
        return picture_bytes(samples[items[number].row_id].prompt.images[i].load())

    pictures = {
        f"{number}-{i}": (number, i)
        for number, item in enumerate(items)
        for i in range(len(samples[item.row_id].prompt.images))
    }
    actions: dict[str, Callable[[Any], Any]] = {"items": all_items, "grade": save}
    return Page(html_page("Judge the answers", packaged("grade.html"), packaged("grade.js")), actions, image)


def read_grading(predictions: Predictions, arms: Sequence[str]) -> Grading:
    """The verdicts of all raters of a folder so far."""
    files = sorted((predictions.folder / GRADING_FOLDER).glob("*.jsonl"))
    verdicts = {path.stem: read_verdicts(path) for path in files}
    return summarise_grading(predictions.answers, verdicts, predictions.groups, arms)


def store_and_print(predictions: Predictions, arms: Sequence[str], *, as_json: bool) -> None:
    """Prints the result, and puts it into grading/summary.json and into what the run or evaluation has written."""
    grading, folder = read_grading(predictions, arms), predictions.folder
    if not any(rater.n_texts for rater in grading.raters):
        print(
            json.dumps(grading.to_dict(), indent=2) if as_json else " | ".join(["no answer is judged", *grading.notes])
        )
        return
    write_json(folder / GRADING_FOLDER / SUMMARY_FILE, grading.to_dict())
    is_reported = _put(grading, folder)
    if as_json:
        print(json.dumps(grading.to_dict(), indent=2, ensure_ascii=False))
        return
    _print(grading)
    print(f"summary  {folder / GRADING_FOLDER / SUMMARY_FILE}")
    if is_reported:
        print(f"report   {folder / REPORT_HTML}#grading")


def keep_grading(folder: Path) -> None:
    """Puts grading into a report that was written again; a rater's broken file does not undo the evaluation."""
    try:
        grading_into_report(folder)
    except ConfigError as error:
        print(f"note: {error}", file=sys.stderr)


def grading_into_report(folder: Path) -> None:
    """Puts the verdicts so far into a report that was written again."""
    if any((folder / GRADING_FOLDER).glob("*.jsonl")):
        predictions = read_predictions(folder)
        _put(read_grading(predictions, judged_arms(predictions)), folder)


def _put(grading: Grading, folder: Path) -> bool:
    """Into report.json, report.html, report.md and the summary.json of the folder; False where there is no report."""
    if not any(rater.n_texts for rater in grading.raters) or not put_grading(folder, grading.to_dict()):
        return False
    path = folder / SUMMARY_FILE
    if path.is_file():
        write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "grading": grading.to_dict()})
    return True


def _print(grading: Grading) -> None:
    for rater in (one for one in grading.raters if not one.is_judge):
        _print_rater(rater)
    for arm, value in grading.mean_of_people.items():
        print(f"mean of people  {arm:<12} {console(GRADED.value(value)):>8}")
    for rater in (one for one in grading.raters if one.is_judge):
        _print_rater(rater)
        if all(one.is_judge for one in grading.raters):
            print("  not calibrated: no person has judged these answers")
    for kappa in grading.kappas:
        same = f", the same verdict on {percent(kappa.agreement)}" if kappa.agreement is not None else ""
        words = kappa_words(vars(kappa))
        print(f"{kappa.first} and {kappa.second}: Cohen's kappa {words} ({kappa.n} answers{same})")
    for note in grading.notes:
        print(f"note: {note}")


def _print_rater(rater: RaterResult) -> None:
    print(f"{rater.rater}{' (machine)' if rater.is_judge else ''}: {rater.n_texts} answers judged")
    for arm in rater.arms:
        value, interval = console(GRADED.value(arm.value)), console(GRADED.bounds(arm.interval))
        print(f"  {arm.arm:<12} {value:>8}  ({interval}, {arm.interval_method})  {arm.accepted} of {arm.n} accepted")
    for pair in rater.comparisons:
        print(f"  {pair.sentence(GRADED)}")
