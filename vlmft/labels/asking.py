"""Many questions to one annotator, one after the other: what came back, how fast, and what it costs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.config.files import append_synced, whole_lines
from vlmft.config.secrets import redacted_text
from vlmft.config.tool_schema import ChatConfig
from vlmft.labels.chat_client import Annotator, GaveUpError, Reply, UnaskableError, jpeg
from vlmft.sample import BadRowError, Question

SECONDS_BETWEEN_LINES = 5.0
MOST_GIVEN_UP = 3
"""Questions in a row without an answer from the server, after which the others are not tried."""


class Journal:
    """A file of JSON lines that grows a line at a time, each on disk before the next; a torn last one is cut off."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError where the file is damaged or cannot be written."""
        self.path = path
        try:
            self.rows: list[dict[str, Any]] = [json.loads(line) for line in whole_lines(path)]
        except PermissionError as error:
            raise ConfigError(
                f"{path}: cannot be written ({error.strerror}); copy its folder to where it can"
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"{path}: Expected a JSON object a line, got {error}; correct the file or move it"
            ) from error
        if not all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in self.rows):
            raise ConfigError(f"{path}: Expected lines with an id, got others; correct the file or move it away")

    def append(self, row: Mapping[str, Any]) -> None:
        """Raises OSError, such as on a full disk; the file ends where it ended before."""
        append_synced(self.path, (json.dumps(row, ensure_ascii=False) + "\n").encode())
        self.rows.append(dict(row))


@dataclass
class Tally:
    """Progress and cost of asking."""

    asked: int
    """Questions that there are to ask."""
    config: ChatConfig
    answered: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Question -> why its reply is not an answer."""
    given_up: int = 0
    """Not answered by the server; to be asked again."""
    input_tokens: int = 0
    output_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, question_id: str, reply: Reply) -> None:
        self.input_tokens += reply.input_tokens
        self.output_tokens += reply.output_tokens
        if reply.problem is None:
            self.answered += 1
        else:
            self.failed[question_id] = reply.problem

    @property
    def cost(self) -> float | None:
        """In the currency of the prices; None unless both are known."""
        prices = (self.config.price_per_million_input_tokens, self.config.price_per_million_output_tokens)
        if prices[0] is None or prices[1] is None:
            return None
        return (self.input_tokens * prices[0] + self.output_tokens * prices[1]) / 1e6

    @property
    def spent(self) -> str:
        cost = "" if self.cost is None else f", cost {self.cost:.4f}"
        return f"{self.input_tokens} + {self.output_tokens} tokens{cost}"

    @property
    def line(self) -> str:
        """How far it is, how fast, and how long it will take."""
        done = self.answered + len(self.failed) + self.given_up
        seconds = time.monotonic() - self.started
        failed = f", {len(self.failed)} failed" if self.failed else ""
        left = f", {60 * done / seconds:.1f} a minute, {seconds / done * (self.asked - done) / 60:.1f} min left"
        return f"{done}/{self.asked}{failed}{left if done and seconds else ''}; {self.spent}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "answered": self.answered,
            "failed": self.failed,
            "given_up": self.given_up,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost": self.cost,
        }


def say(line: str) -> None:
    print(redacted_text(line), file=sys.stderr, flush=True)


def ask_all(
    questions: Sequence[Question],
    annotator: Annotator,
    config: ChatConfig,
    keep: Callable[[Question, Reply], None],
) -> Tally:
    """Asks each question and hands every reply to `keep` as it comes; progress goes to stderr.

    Raises:
        ConfigError: no question can be answered, or the server has left MOST_GIVEN_UP in a row unanswered.
    """
    tally, in_a_row, last = Tally(len(questions), config), 0, time.monotonic()
    for question in questions:
        try:
            reply, in_a_row = _asked(annotator, question), 0
        except (GaveUpError, UnaskableError) as error:
            is_refusal = isinstance(error, UnaskableError)
            if is_refusal and tally.answered:  # so the settings are right, and it is the question
                reply = Reply("", problem=str(error))
            else:
                say(f"{question.id}: {error}")
                tally.given_up += 1
                in_a_row += 1
                if in_a_row == (min(MOST_GIVEN_UP, len(questions)) if is_refusal else MOST_GIVEN_UP):
                    goes_on = f"; the same command goes on after the {tally.answered} that are answered"
                    raise ConfigError(f"{error}, for {in_a_row} questions in a row{goes_on}") from error
                continue
        keep(question, reply)
        tally.add(question.id, reply)
        if reply.problem is not None:
            say(f"{question.id}: {reply.problem}")
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(tally.line)
    return tally


def _asked(annotator: Annotator, question: Question) -> Reply:
    try:
        images = [jpeg(image) for image in question.prompt.images]
    except BadRowError as error:
        return Reply("", problem=str(error))
    return annotator(images, "\n".join(message.text for message in question.prompt.messages))
