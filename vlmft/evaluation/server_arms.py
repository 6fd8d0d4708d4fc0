"""Arms behind an OpenAI-compatible server: the same rows and prompts, and answers on disk as those of every other arm.

Nothing here knows which weights, prompt template or image size answered. What can be known stands with each answer: the
server's host, the name that it gives its model, and the date.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image

from vlmft.config.chat_schema import ServerConfig
from vlmft.config.check import ConfigError
from vlmft.evaluation.canaries import SENTINEL, CanaryResult, leak_canary
from vlmft.evaluation.predict import PredictionFile
from vlmft.evaluation.rows import EvaluationRows
from vlmft.evaluation.score import NOTABLE_SHARE
from vlmft.models.coordinates import THOUSAND, marked_size
from vlmft.sample import Answer, BadRowError, Image, Prompt, Question, Sample
from vlmft.servers.asking import Seldom, ask_all, cost_of, say, spent
from vlmft.servers.chat_client import OpenAIChat, PassingError, Patient, Reply, picture

Messages = list[dict[str, Any]]


def decoded(prompt: Prompt) -> list[PIL.Image.Image]:
    """Its images, in reading order; raises BadRowError."""
    return [image.load() for image in prompt.images]


def messages_of(prompt: Prompt, images: Sequence[PIL.Image.Image], max_side_pixels: int | None) -> Messages:
    """The prompt in the protocol's form, texts and its decoded `images` in their order; boxes and points are asked for
    in JSON, 0 to 1000, whoever answers."""
    found, shown = Messages(), iter(images)
    prompt = THOUSAND.prompt(prompt) if prompt.marks else prompt
    for message in prompt.messages:
        if any(isinstance(piece, Image) for piece in message.content):
            parts = [
                picture(png(next(shown), max_side_pixels), "png")
                if isinstance(piece, Image)
                else {"type": "text", "text": piece}
                for piece in message.content
            ]
            found.append({"role": message.role, "content": parts})
        else:
            found.append({"role": message.role, "content": message.text})
    return found


def png(image: PIL.Image.Image, max_side_pixels: int | None) -> bytes:
    """The pixels that a model of ours gets before its own scaling, without loss."""
    if max_side_pixels is not None:
        image.thumbnail((max_side_pixels, max_side_pixels))
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # of 3 megapixels 0.5 s and 3.3 MB; as usual 2.2 s and 2.8 MB
    return buffer.getvalue()


@dataclass
class Served:
    """One server's answers, and what is known of where they come from."""

    arm: str
    config: ServerConfig
    rows: Sequence[Mapping[str, Any]]
    """Of its file, those of the questions that were asked."""
    answers: dict[str, Answer]
    """Of every question; "" where the server had none."""
    unanswered: Sequence[str]
    """Ids to be asked again by the same command."""
    seconds: float
    """0 where some were stored already."""
    stored: int
    """Answers that were not asked for this time."""
    canary: CanaryResult | None = None

    @property
    def origins(self) -> Counter[str]:
        """Such as "qwen at api.example.org" -> rows."""
        unnamed = "a model that it does not name"
        rows = [row for row in self.rows if row["answered_as"] or not row.get("problem")]
        return Counter(f"{row['answered_as'] or unnamed} at {row['server']}" for row in rows)

    @property
    def dates(self) -> str:
        days = sorted({row["date"][:10] for row in self.rows})
        return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else ""

    @property
    def label(self) -> str:
        """For the table: who answered, and when."""
        return f"{', '.join(self.origins)}, {self.dates}"

    @property
    def tokens(self) -> tuple[int, int]:
        """(read, written), as the server counts them."""
        return sum(row["input_tokens"] for row in self.rows), sum(row["n_new_tokens"] for row in self.rows)

    @property
    def cost(self) -> float | None:
        """In the currency of the prices; None unless both are known."""
        return cost_of(self.config, *self.tokens)

    @property
    def note(self) -> str:
        before = f", {self.stored} of them stored already" if self.stored else ""
        return (
            f"{self.arm}: {len(self.rows)} answers of {' and '.join(self.origins)}, asked for {self.config.model!r} "
            f"({self.dates}{before}; {spent(self.config, *self.tokens)}); which weights, prompt template "
            "and image size answered cannot be checked from here"
        )

    @property
    def cautions(self) -> list[str]:
        """What must be known before its value is read."""
        found, n = [], len(self.answers)
        if len(self.origins) > 1:
            rows = ", ".join(f"{count} rows by {origin}" for origin, count in self.origins.items())
            found.append(f"{self.arm}: answered by more than one model ({rows}): its value is of a mixture")
        if self.unanswered:
            found.append(
                f"{self.arm}: {len(self.unanswered)} of {n} rows were not answered by the server and count as wrong "
                f"(first: {self.unanswered[0]}); the same command asks for them again"
            )
        if thinking := sum(row["text"].startswith("<think>") for row in self.rows):
            found.append(
                f"{self.arm}: {thinking} of {n} answers begin with <think>, and are scored with it; a reasoning parser "
                "of the server takes it away, options={chat_template_kwargs: {enable_thinking: false}} saves it"
            )
        if problems := [row for row in self.rows if row.get("problem")]:
            first = problems[0]
            found.append(
                f"{self.arm}: {len(problems)} of {n} rows got no answer and count as it ({first['id']}: "
                f"{first['problem']})"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "asked_for": self.config.model,
            "rows_by_origin": dict(self.origins),
            "dates": self.dates,
            "tokens": list(self.tokens),
            "cost": self.cost,
            "unanswered": list(self.unanswered),
            "leak_canary": self.canary.to_dict() if self.canary is not None else None,
        }


def ask_server(
    name: str,
    chat: OpenAIChat,
    config: ServerConfig,
    questions: Sequence[Question],
    split: str,
    folder: Path,
    poll: Callable[[], None],
    fresh: bool = False,
) -> Served:
    """Every question answered and on disk; what is stored here, or in this run's other folders, is not asked again,
    unless `fresh`.

    Raises:
        ConfigError: the server cannot be asked, or has left more than NOTABLE_SHARE of the questions unanswered; what
            it has answered is stored.
    """
    decides = {
        "server_model": config.model,
        "generation": {
            "max_new_tokens": chat.config.max_new_tokens,
            "temperature": config.temperature,
            "options": config.options,
            "max_side_pixels": config.max_side_pixels,
        },
    }
    path = folder / "predictions" / f"{name}.jsonl"
    file = PredictionFile(path, {"arm": name, "split": split, **decides}, fresh=fresh)
    prompts = {question.id: question.prompt.sha256 for question in questions}
    for row_id, row in file.rows.items():
        if prompts.get(row_id, row["prompt_sha256"]) != row["prompt_sha256"]:
            raise ConfigError(f"{file.path}: row {row_id} was asked another question; set fresh=true to start anew")
    _take_over(file, decides, prompts, config.answers, None if fresh else folder)
    left = [question for question in questions if question.id not in file.rows]
    started = time.perf_counter()
    if left:
        say(f"{name}: {len(left)} of {len(questions)} rows to ask {config.model} at {chat.host}")
        _ask(chat, config, left, file, poll)
    rows = [file.rows[row_id] for row_id in prompts if row_id in file.rows]
    unanswered = [row_id for row_id in prompts if row_id not in file.rows]
    if len(unanswered) > NOTABLE_SHARE * len(questions):
        raise ConfigError(f"{len(unanswered)} of {len(questions)} rows were not answered by {chat.host}")
    asked = {question.id: question.prompt for question in questions}
    answers = {row["id"]: _answer(row, asked[row["id"]]) for row in rows}
    answers = {row_id: answers.get(row_id, Answer("", "stop", 0)) for row_id in prompts}
    seconds = time.perf_counter() - started if len(left) == len(questions) else 0.0
    return Served(name, config, rows, answers, unanswered, seconds, len(questions) - len(left))


def _answer(row: Mapping[str, Any], prompt: Prompt) -> Answer:
    """What a row of the file says; in pixels, where that is boxes or points."""
    text, size = row["text"], marked_size(prompt)
    if size is None:
        return Answer(text, row["finish"], row["n_new_tokens"])
    return Answer(THOUSAND.pixels(text, size), row["finish"], row["n_new_tokens"], raw=text)


def _take_over(
    file: PredictionFile,
    decides: Mapping[str, Any],
    prompts: Mapping[str, str],
    answers: str | None,
    folder: Path | None,
) -> None:
    """Copies answers to the same prompts: of the file `answers`, and of the run that `folder` belongs to."""
    others, paths = [], list[Path]()
    if answers is not None:
        others.append(PredictionFile(Path(answers).expanduser(), decides))
    if folder is not None:
        run = folder.parent.parent if folder.parent.name == "evaluations" else folder
        paths = [run / "predictions", *sorted(run.glob("evaluations/*/predictions"))]
    for path in (there / file.path.name for there in paths):
        if path.is_file() and path != file.path:
            with contextlib.suppress(ConfigError):  # answers of another kind, under the same name
                others.append(PredictionFile(path, decides))
    for other in others:
        same = [row for row_id, row in other.rows.items() if prompts.get(row_id) == row["prompt_sha256"]]
        file.append([row for row in same if row["id"] not in file.rows])


def _ask(
    chat: OpenAIChat, config: ServerConfig, left: Sequence[Question], file: PredictionFile, poll: Callable[[], None]
) -> None:
    patient = Patient(chat, config, Seldom())

    def ask(prepared: tuple[Prompt, list[PIL.Image.Image]]) -> Reply:
        messages = messages_of(*prepared, config.max_side_pixels)  # encoded here, where several are at once
        return patient.tried(lambda: attempt(messages))

    def attempt(messages: Messages) -> Reply:
        reply = chat.answer(messages)
        if reply.fault == "junk":  # such as the page of a proxy: not what the model says
            raise PassingError(str(reply.problem))
        return dataclasses.replace(reply, problem=None) if reply.fault in ("cut", "empty") else reply  # answers, too

    def keep(question: Question, reply: Reply) -> None:
        problem = {"problem": reply.problem} if reply.problem is not None else {}
        row = {
            "id": question.id,
            "image_sha256": [image.sha256 for image in question.prompt.images],
            "prompt_sha256": question.prompt.sha256,
            "text": reply.text,
            "finish": "length" if reply.fault == "cut" else "stop",
            "n_new_tokens": reply.output_tokens,
            "input_tokens": reply.input_tokens,
            "server": chat.host,
            "answered_as": reply.model,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        file.append([{**row, **problem}])

    ask_all(
        left,
        lambda question: (question.prompt, decoded(question.prompt)),
        ask,
        config,
        keep,
        config.at_once,
        patient.stopping,
        poll,
    )


def canary_on_requests(
    rows: EvaluationRows,
    samples: Sequence[Sample],
    n_rows: int,
    asked: Callable[[Sequence[Sample]], list[Question]],
    config: ServerConfig,
) -> CanaryResult | None:
    """The leak canary on what is sent: a request that does not change with the gold answer cannot tell it. Asks nobody:
    the answers to two equal requests would be paid twice, and may differ all the same."""
    first = set(rows.ids[:n_rows])
    samples = [sample for sample in samples if sample.id in first]
    if not samples:
        return None

    def show(shown: Sequence[Sample]) -> Mapping[str, str]:
        requests = {}
        for question in asked(shown):
            with contextlib.suppress(BadRowError):
                asks = messages_of(question.prompt, decoded(question.prompt), config.max_side_pixels)
                requests[question.id] = repr(asks)
        return requests

    pairs = [rows.with_answer(sample.id, SENTINEL) for sample in samples]
    censored, in_source = [censored for censored, _ in pairs], sum(replaced for _, replaced in pairs)
    return dataclasses.replace(leak_canary(samples, censored, lambda _: {}, show, in_source), asked=False)
