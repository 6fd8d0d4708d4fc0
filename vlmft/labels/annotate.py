"""vlmft annotate: captions for images that have none. Drafted by a model, accepted by a person, then written down.

`annotation.drafts.jsonl` records all; the last line of an image counts: draft or failed, then accepted or rejected,
then stored. Nothing but `stored` is in the dataset.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from threading import Event
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.config.tool_schema import AnnotateConfig, AnnotatorName
from vlmft.data.dataset import Annotatable, Caption
from vlmft.data.images import decode_image
from vlmft.data.make import make_dataset
from vlmft.run.lock import locked
from vlmft.sample import BadRow, Image, Message, Prompt, Question
from vlmft.servers.asking import Journal, Seldom, Tally, ask_all, say, shown
from vlmft.servers.chat_client import Annotator, OpenAIChat, Patient, Reply

ORIGIN = ("text", "annotator", "model", "date")
UNREAD = "nobody: accept_all"


def asked(question: Question) -> str:
    """The question's text."""
    return "\n".join(message.text for message in question.prompt.messages)


class Drafts:
    """The dataset's images without captions, and the state of each."""

    def __init__(self, dataset: Annotatable) -> None:
        self.dataset, self.journal = dataset, Journal(dataset.drafts)
        self.missing = {question.id: question for question in dataset.missing()}
        for row in self.journal.rows:
            if row.get("status") in ("draft", "accepted") and not all(isinstance(row.get(key), str) for key in ORIGIN):
                raise ConfigError(
                    f"{dataset.drafts}: Expected {', '.join(ORIGIN)} in {row['id']}, got less; correct the line"
                )
        rows = {row["id"]: row for row in self.journal.rows if row["id"] in self.missing}
        now = {name: asked(self.missing[name]) for name in rows}
        other = [name for name, row in rows.items() if row.get("asked", now[name]) != now[name]]
        if other:
            say(f"{len(other)} drafts answer a question that is no longer asked of their image ({other[0]}); left out")
        rows = {name: row for name, row in rows.items() if name not in other}
        self.rows: dict[str, dict[str, Any]] = {key: row for key, row in rows.items() if row.get("status") != "stored"}
        """Last line of each image that has one. A stored one whose caption is gone starts again."""

    def put(self, question_id: str, status: str, content: Mapping[str, Any]) -> None:
        about = {"asked": asked(self.missing[question_id])}
        row = {"id": question_id, "status": status, **about, **content, "date": date.today().isoformat()}
        self.journal.append(row)
        self.rows[question_id] = row

    def of(self, *statuses: str) -> list[str]:
        return [name for name in self.missing if self.rows.get(name, {}).get("status") in statuses]

    def to_ask(self, again: bool) -> list[Question]:
        """Images without a draft; with `again` those, too, whose draft failed or was rejected."""
        done = {"draft", "accepted"} if again else {"draft", "accepted", "failed", "rejected"}
        return [q for name, q in self.missing.items() if self.rows.get(name, {}).get("status") not in done]

    def decide(self, question_id: str, status: str, text: str, by: str) -> None:
        """`status` accepted or rejected, of the draft's `text` as it stands now."""
        row = self.rows[question_id]
        content = {"text": text, "annotator": row["annotator"], "model": row["model"], "decided_by": by}
        self.put(question_id, status, content)

    def store(self) -> int:
        """Writes what is accepted into the dataset; returns how many captions."""
        accepted = {name: self.rows[name] for name in self.of("accepted")}
        captions = []
        for name, row in accepted.items():
            source = {**{key: row[key] for key in ORIGIN[1:]}, "accepted_by": str(row.get("decided_by", ""))}
            captions.append(Caption(name, row["text"], source))
        if captions:
            self.dataset.store(captions)
        for caption in captions:
            self.put(caption.id, "stored", {})
            del self.missing[caption.id], self.rows[caption.id]
        return len(captions)


def annotate(config: AnnotateConfig) -> None:
    """Drafts, has drafts accepted, or both; prints what it has done.

    Raises:
        ConfigError: a dataset that takes no captions, one that is incomplete, or an annotator that cannot be asked.
    """
    dataset = make_dataset(config.data)
    if not isinstance(dataset, Annotatable):
        raise ConfigError(f"data: Expected a dataset that takes captions, such as characters, got {config.data.name!r}")
    folder = dataset.drafts.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ConfigError(f"data.path: Expected a folder that can be written to, got {str(folder)!r}; copy or name it")
    with locked(folder, "then give the same command again"):
        drafts = Drafts(dataset)
        stored = drafts.store()  # what was accepted before the last process was killed
        tally, unread = None, list[str]()
        if config.annotator is not None:
            tally = _draft(drafts, config)
        if config.accept_all:
            unread = drafts.of("draft")
            for name in unread:
                drafts.decide(name, "accepted", drafts.rows[name]["text"], UNREAD)
        if config.review:
            from vlmft.labels.review import review  # its page is not needed before

            review(drafts, config.port, config.open_browser)
        stored += drafts.store()
        _print_result(drafts, stored, len(unread), tally, config.json)


def _draft(drafts: Drafts, config: AnnotateConfig) -> Tally:
    questions = drafts.to_ask(config.again)[: config.limit]
    assert config.annotator is not None
    name = config.annotator.name

    def keep(question: Question, reply: Reply) -> None:
        origin = {"annotator": name, "model": reply.model}
        if reply.problem is None:
            drafts.put(question.id, "draft", {"text": reply.text, **origin})
        else:
            drafts.put(question.id, "failed", {"reason": reply.problem, **origin})

    if not questions:
        return Tally(0, config.chat)
    say(f"{len(questions)} images to ask {name} about; drafts go to {drafts.journal.path}")
    stopping = Event()
    annotator = annotator_of(config, stopping)
    at_once = config.chat.at_once if config.annotator == AnnotatorName.openai else 1
    return ask_all(questions, shown, lambda one: annotator(*one), config.chat, keep, at_once, stopping)


def annotator_of(config: AnnotateConfig, stopping: Event) -> Annotator:
    """Who is asked, by a server until `stopping` is set; raises ConfigError as its maker."""
    if config.annotator == AnnotatorName.openai:
        return Patient(OpenAIChat(config.chat, "chat"), config.chat, Seldom(), stopping=stopping)
    if config.annotator == AnnotatorName.gigachat:
        from vlmft.labels.gigachat_client import GigaChat

        return Patient(GigaChat(config.chat), config.chat, Seldom(), stopping=stopping)
    return local_annotator(config)


def local_annotator(config: AnnotateConfig) -> Annotator:
    """A model of ours, one image at a time."""
    from vlmft.evaluation.predict import Answerer  # after all checks: torch takes seconds to import
    from vlmft.run.quiet import quiet_libraries
    from vlmft.run.weights import chosen_model

    quiet_libraries()
    loaded = chosen_model(config.run, config.model, config.trainer, mismatch=False)
    bad: list[BadRow] = []
    answerer = Answerer(loaded.family, loaded.base, 1, config.chat.max_new_tokens or 400, bad.append)
    model = config.run or (config.model.name if config.model is not None else "")

    def answer(images: Sequence[bytes], prompt: str) -> Reply:
        pictures = [Image(lambda data=data: decode_image(data, "image"), "image") for data in images]  # type: ignore[misc]
        question = Question("", Prompt((Message("user", (*pictures, prompt)),)))
        (batch,) = answerer.batches([question], skip=lambda ids: False)
        if not batch:
            return Reply("", model, problem=bad.pop().reason)
        answer = batch[""]
        problem = "an answer that was cut at max_new_tokens" if answer.finish == "length" else None
        problem = problem if answer.text.strip() else "an empty answer"
        return Reply(answer.text if problem is None else "", model, 0, answer.n_new_tokens, problem)

    return answer


def _print_result(drafts: Drafts, stored: int, unread: int, tally: Tally | None, as_json: bool) -> None:
    counts = Counter(drafts.rows.get(name, {}).get("status", "none") for name in drafts.missing)
    content: Mapping[str, Any] = {
        "drafts": str(drafts.journal.path),
        "stored": stored,
        "unread": unread,
        "waiting": counts["draft"],
        "failed": counts["failed"],
        "rejected": counts["rejected"],
        "without_draft": counts["none"],
        "asked": tally and tally.to_dict(),
    }
    if as_json:
        print(json.dumps(content, ensure_ascii=False, indent=2))
        return
    if tally is not None:
        again = f", {tally.given_up} not answered: the same command asks them again" if tally.given_up else ""
        print(f"{tally.answered} drafts made, {len(tally.failed)} failed{again}; {tally.spent}")
    if stored:
        unread_note = f", {unread} of them read by nobody (accept_all)" if unread else ""
        print(f"{stored} captions written into the dataset{unread_note}")
    print(
        f"{counts['draft']} drafts wait for review=true, {counts['failed']} failed and {counts['rejected']} were "
        f"rejected (again=true asks again), {counts['none']} images have no draft"
    )
