"""Many questions to one server, some at once: what came back, how fast, and what it costs."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from vlmft.config.chat_schema import ChatConfig
from vlmft.config.check import ConfigError
from vlmft.config.files import append_synced, whole_lines
from vlmft.config.secrets import redacted_text
from vlmft.sample import BadRowError, Question
from vlmft.servers.chat_client import GaveUpError, Reply, UnaskableError, jpeg

Prepared = TypeVar("Prepared")
Outcome = Reply | GaveUpError | UnaskableError
SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_POLLS = 5.0, 0.5
MOST_GIVEN_UP = 3
"""Questions in a row without an answer from the server, after which the others are not tried, if asked one by one."""


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


def cost_of(config: ChatConfig, input_tokens: int, output_tokens: int) -> float | None:
    """In the currency of the prices; None unless both are known."""
    prices = (config.price_per_million_input_tokens, config.price_per_million_output_tokens)
    if prices[0] is None or prices[1] is None:
        return None
    return (input_tokens * prices[0] + output_tokens * prices[1]) / 1e6


def spent(config: ChatConfig, input_tokens: int, output_tokens: int) -> str:
    cost = cost_of(config, input_tokens, output_tokens)
    return f"{input_tokens} + {output_tokens} tokens" + ("" if cost is None else f", cost {cost:.4f}")


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
        return cost_of(self.config, self.input_tokens, self.output_tokens)

    @property
    def spent(self) -> str:
        return spent(self.config, self.input_tokens, self.output_tokens)

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


class Seldom:
    """Says a line if none was said for some seconds: several questions at once meet the same fault."""

    def __init__(self) -> None:
        self.last = -math.inf

    def __call__(self, line: str) -> None:
        if time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            say(line)


@dataclass
class _Round:
    """Questions under way."""

    tally: Tally
    keep: Callable[[Question, Reply], None]
    most_given_up: int
    """In a row."""
    in_a_row: int = 0
    last: float = field(default_factory=time.monotonic)

    def take(self, question: Question, outcome: Outcome) -> None:
        """Keeps and counts what came of a question.

        Raises:
            ConfigError: the server has left `most_given_up` in a row unanswered.
        """
        tally = self.tally
        if isinstance(outcome, UnaskableError) and tally.answered:  # so the settings are right, and it is the question
            outcome = Reply("", problem=str(outcome), fault="refused")
        if not isinstance(outcome, Reply):
            say(f"{question.id}: {outcome}")
            tally.given_up += 1
            self.in_a_row += 1
            is_refusal = isinstance(outcome, UnaskableError)
            if self.in_a_row == (min(self.most_given_up, tally.asked) if is_refusal else self.most_given_up):
                goes_on = f"; the same command goes on after the {tally.answered} that are answered"
                raise ConfigError(f"{outcome}, for {self.in_a_row} questions in a row{goes_on}") from outcome
            return
        self.in_a_row = 0
        self.keep(question, outcome)
        tally.add(question.id, outcome)
        if outcome.problem is not None:
            say(f"{question.id}: {outcome.problem}")
        if time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            say(tally.line)


def ask_all(
    questions: Sequence[Question],
    prepare: Callable[[Question], Prepared],
    ask: Callable[[Prepared], Reply],
    config: ChatConfig,
    keep: Callable[[Question, Reply], None],
    at_once: int,
    stopping: Event,
    poll: Callable[[], None] = lambda: None,
) -> Tally:
    """Asks `at_once` questions at a time, and hands every reply to `keep` as it comes; progress goes to stderr.

    `prepare`, which raises BadRowError, and `keep` are called by this thread, `ask` by others. `poll` is called all the
    while, and may raise. What is under way then, or at Ctrl-C, is waited for and kept, for it may have been paid for;
    `stopping` is set, which tells `ask` not to try again.

    Raises:
        ConfigError: no question can be answered, or the server has left too many in a row unanswered.
    """
    tally, waiting = Tally(len(questions), config), iter(questions)
    # those that are under way at the same time meet one fault together
    under_way, pending = _Round(tally, keep, MOST_GIVEN_UP + at_once - 1), dict[Future[Outcome], Question]()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while True:
                poll()
                while len(pending) < at_once and (question := next(waiting, None)) is not None:
                    pending[pool.submit(_outcome, ask, _prepared(prepare, question))] = question
                if not pending:
                    return tally
                for done in wait(pending, SECONDS_BETWEEN_POLLS, FIRST_COMPLETED).done:
                    under_way.take(pending.pop(done), done.result())
        finally:
            stopping.set()
            if pending:
                say(f"waiting for {len(pending)} questions that are under way")
            for done, question in pending.items():
                with contextlib.suppress(ConfigError):
                    if isinstance(outcome := done.result(), Reply):
                        keep(question, outcome)


def _prepared(prepare: Callable[[Question], Prepared], question: Question) -> Prepared | Reply:
    try:
        return prepare(question)
    except BadRowError as error:
        return Reply("", problem=str(error))


def _outcome(ask: Callable[[Prepared], Reply], prepared: Prepared | Reply) -> Outcome:
    """What came of a question; raises ConfigError, after which no other is asked."""
    try:
        return prepared if isinstance(prepared, Reply) else ask(prepared)
    except (GaveUpError, UnaskableError) as error:
        return error


def shown(question: Question) -> tuple[list[bytes], str]:
    """Images and text of a question, as an annotator takes them."""
    return [jpeg(image) for image in question.prompt.images], "\n".join(m.text for m in question.prompt.messages)
