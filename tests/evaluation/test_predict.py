"""What is answered stays answered, an interrupted evaluation ends with the same bytes, and prompts hold no answer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import threading
import typing
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vlmft import sample as sample_file
from vlmft.config.check import ConfigError
from vlmft.evaluation.predict import Answerer, PredictionFile, padding_note, predict
from vlmft.sample import BadRow, BadRowError, EncodedRow, Message, Prompt, Question

END, PAD = 1, 0
KEY = {"arm": "tuned", "adapter_sha256": "abc", "generation": {"max_new_tokens": 4}}


class FakeBatch:
    images: tuple[Any, ...] = ()

    def __init__(self, rows: Sequence[EncodedRow]) -> None:
        self.rows = rows

    def to(self, device: Any) -> FakeBatch:
        return self


class FakeFamily:
    """Its answer to a row depends on every row of the batch, as rounding does; "bad" rows cannot be encoded."""

    end_id = END

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def encode_prompt(self, row_id: str, prompt: Prompt) -> EncodedRow:
        if "bad" in row_id:
            raise BadRowError("too long")
        ids = np.frombuffer(prompt.messages[0].text.encode(), np.uint8).astype(np.int64)
        return EncodedRow(row_id, ids, np.zeros(len(ids), bool), len(ids), {}, ())

    def prompt_tokens(self, prompt: Prompt) -> int:
        return len(prompt.messages[0].text.encode())

    def image_tokens(self, width: int, height: int) -> int:
        raise AssertionError("there are no images")

    def collate(self, rows: Sequence[EncodedRow], layout: str, model: Any) -> FakeBatch:
        assert layout == "left"
        self.asked.append([row.id for row in rows])
        return FakeBatch(rows)

    def image_features(self, model: Any, images: Any, *, grad: bool) -> list[Any]:
        assert not grad
        return []

    def generate(self, model: Any, batch: FakeBatch, features: Any, max_new_tokens: int) -> torch.Tensor:
        assert torch.is_inference_mode_enabled() and not model.training
        whole = b"".join(row.input_ids.tobytes() for row in batch.rows)
        found = []
        for position, _ in enumerate(batch.rows):
            ids = [2 + byte for byte in hashlib.sha256(whole + bytes([position])).digest()[:max_new_tokens]]
            if position % 2:  # every other row ends early, and is padded
                ids[1:] = [END, *[PAD] * (max_new_tokens - 2)]
            found.append(ids)
        return torch.tensor(found)

    def decode(self, ids: Sequence[int]) -> str:
        return "-".join(map(str, ids))


class FakeModel(torch.nn.Module):
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.tuned = torch.nn.Dropout(), torch.nn.Dropout()


def question(row_id: str) -> Question:
    return Question(row_id, Prompt((Message("user", (f"What is {row_id}?",)),)))


def questions(n: int = 10, bad: Sequence[int] = ()) -> list[Question]:
    return [question(f"{'bad' if i in bad else 'row'}/{i:02d}") for i in range(n)]


class Bench:
    def __init__(
        self,
        rows_per_batch: int = 4,
        poll: Callable[[], None] = lambda: None,
        workers: int = 0,
        tokens_per_batch: int | None = None,
    ) -> None:
        self.family, self.model, self.refused = FakeFamily(), FakeModel(), []  # type: ignore[var-annotated]
        self.answerer = Answerer(
            self.family,
            self.model,
            rows_per_batch,
            4,
            self.refused.append,
            workers=workers,
            poll=poll,  # type: ignore[arg-type]
            tokens_per_batch=tokens_per_batch,
        )

    def predict(self, path: Path, asked: Sequence[Question], key: Any = KEY) -> Any:
        return predict(asked, self.answerer, PredictionFile(path, key))


class ThreadRanks:
    """Ranks as threads of this process."""

    def __init__(self, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n, self.own = n, threading.local()
        self.values: list[Any] = [None] * n
        self.barrier = threading.Barrier(n, timeout=60)
        for name, function in {
            "rank": lambda: self.own.rank,
            "n_ranks": lambda: n,
            "gathered": self.gathered,
            "of_rank_0": lambda value: self.gathered(value)[0],
        }.items():
            monkeypatch.setattr(f"vlmft.evaluation.predict.{name}", function)

    def gathered(self, value: Any) -> list[Any]:
        self.values[self.own.rank] = pickle.dumps(value)  # as processes do: no rank sees another's objects
        self.barrier.wait()
        values = [pickle.loads(each) for each in self.values]
        self.barrier.wait()
        return values

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        def on_rank(rank: int) -> Any:
            self.own.rank = rank
            return work(rank)

        with ThreadPoolExecutor(self.n) as pool:
            return list(pool.map(on_rank, range(self.n)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_question_is_answered_in_order(tmp_path: Path) -> None:
    bench = Bench()
    found = bench.predict(tmp_path / "p.jsonl", questions())
    assert list(found.answers) == [row["id"] for row in lines(tmp_path / "p.jsonl")] == [q.id for q in questions()]
    assert found.generated == 10 and found.seconds > 0
    assert [len(batch) for batch in bench.family.asked] == [4, 4, 2]
    for row in lines(tmp_path / "p.jsonl"):
        assert KEY.items() <= row.items() and row["prompt_sha256"] == question(row["id"]).prompt.sha256
        assert found.answers[row["id"]].text == row["text"]


def of_lengths(*lengths: int) -> list[Question]:
    texts = {f"row/{number:02d}": "x" * length for number, length in enumerate(lengths)}
    return [Question(row_id, Prompt((Message("user", (text,)),))) for row_id, text in texts.items()]


def test_tokens_limit_a_batch_and_prompts_of_like_length_go_together(tmp_path: Path) -> None:
    """What counts are the tokens of the prompt and of its answer, here 4."""
    bench, asked = Bench(rows_per_batch=4, tokens_per_batch=60), of_lengths(50, 6, 6, 30, 6, 11, 6, 6, 80)
    found = bench.predict(tmp_path / "p.jsonl", asked)
    numbers = [[int(row_id[-2:]) for row_id in batch] for batch in bench.family.asked]
    assert numbers == [[1, 2, 4, 6], [7, 5], [3], [0], [8]]
    assert bench.answerer.padding.share == 5 / (24 + 22 + 30 + 50 + 80)
    assert list(found.answers) == [question.id for question in asked], "the rows' own order"
    plain = Bench(rows_per_batch=4)
    plain.predict(tmp_path / "plain.jsonl", asked)
    assert plain.answerer.padding.share > 0.37, "in their order, short prompts are padded to long ones"
    assert padding_note("tuned", bench.answerer) == ""
    note = padding_note("tuned", plain.answerer)
    assert note.startswith("tuned: 38.0 % of the tokens") and "evaluation.tokens_per_batch=auto" in note


@pytest.mark.parametrize("batches", [1, 3])
def test_batches_by_tokens_are_a_function_of_all_rows(batches: int, tmp_path: Path) -> None:
    """In whatever order they are asked, and also where an evaluation goes on."""
    asked = of_lengths(50, 6, 6, 30, 6, 11, 6, 6, 80)
    whole = Bench(tokens_per_batch=60).predict(tmp_path / "whole.jsonl", asked)
    assert Bench(tokens_per_batch=60).predict(tmp_path / "other.jsonl", asked[::-1]).answers == whole.answers
    calls = iter(range(batches))

    def poll() -> None:
        if next(calls, None) is None:
            raise StoppedError

    with pytest.raises(StoppedError):
        Bench(poll=poll, tokens_per_batch=60).predict(tmp_path / "p.jsonl", asked)
    Bench(tokens_per_batch=60).predict(tmp_path / "p.jsonl", asked)
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_limit_of_tokens_is_part_of_what_decides_an_answer() -> None:
    assert "tokens_per_batch" not in Bench().answerer.settings
    assert Bench(tokens_per_batch=60).answerer.settings["tokens_per_batch"] == 60


def test_answers_end_at_the_end_token() -> None:
    (answers,) = Bench().answerer.batches(questions(2), skip=lambda ids: False)
    cut, stopped = answers.values()
    assert (cut.finish, cut.n_new_tokens, cut.text.count("-")) == ("length", 4, 3)
    assert (stopped.finish, stopped.n_new_tokens) == ("stop", 1)  # neither the end token nor the padding counts
    assert stopped.text.isdecimal()


@pytest.mark.parametrize("ids", [[END], [END, PAD, PAD], [5, 6, END], [5, END, 7, END]])
def test_nothing_after_the_end_token_is_text(ids: list[int]) -> None:
    row = EncodedRow("r", np.array([1]), np.array([False]), 1, {}, ())
    answer = Bench().answerer._answer(ids, row)
    assert answer.finish == "stop"
    assert answer.text == "-".join(str(i) for i in ids[: ids.index(END)]) and answer.n_new_tokens == ids.index(END)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("bad", [(), (1, 5)])
@pytest.mark.parametrize("batches", [0, 1, 2])
def test_an_interrupted_evaluation_ends_with_the_same_bytes(batches: int, bad: Sequence[int], tmp_path: Path) -> None:
    asked = questions(bad=bad)
    Bench().predict(tmp_path / "whole.jsonl", asked)
    calls = 0

    def poll() -> None:
        nonlocal calls
        calls += 1
        if calls > batches:
            raise StoppedError

    with pytest.raises(StoppedError):
        Bench(poll=poll).predict(tmp_path / "p.jsonl", asked)
    assert len(lines(tmp_path / "p.jsonl") if batches else []) == sum("bad" not in q.id for q in asked[: 4 * batches])
    found = Bench().predict(tmp_path / "p.jsonl", asked)
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(found.answers) == 10 - len(bad)
    assert found.generated == len(found.answers) - sum("bad" not in q.id for q in asked[: 4 * batches])


@pytest.mark.parametrize("kept_bytes", [1, 150, 400, 401, 700, 1200])
def test_a_file_torn_anywhere_ends_with_the_same_bytes(kept_bytes: int, tmp_path: Path) -> None:
    Bench().predict(tmp_path / "whole.jsonl", questions())
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert len(whole) > 1200
    (tmp_path / "p.jsonl").write_bytes(whole[:kept_bytes])
    Bench().predict(tmp_path / "p.jsonl", questions())
    assert (tmp_path / "p.jsonl").read_bytes() == whole


def test_an_empty_file_and_a_last_line_without_its_end(tmp_path: Path) -> None:
    Bench().predict(tmp_path / "whole.jsonl", questions())
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for start in (b"", whole[:-1], whole[: whole.index(b"\n")]):
        (tmp_path / "p.jsonl").write_bytes(start)
        Bench().predict(tmp_path / "p.jsonl", questions())
        assert (tmp_path / "p.jsonl").read_bytes() == whole


def test_a_batch_with_a_missing_answer_is_asked_as_a_whole(tmp_path: Path) -> None:
    # Answers of a half-empty batch would differ in their last bits: FakeFamily makes that visible.
    Bench().predict(tmp_path / "p.jsonl", questions())
    whole = (tmp_path / "p.jsonl").read_bytes()
    (tmp_path / "p.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:6]))
    bench = Bench()
    found = bench.predict(tmp_path / "p.jsonl", questions())
    assert [len(batch) for batch in bench.family.asked] == [4, 2] and found.generated == 4
    assert (tmp_path / "p.jsonl").read_bytes() == whole


def test_the_defect_it_guards_against(tmp_path: Path) -> None:
    """Asking only what is missing makes other batches, and so other answers."""
    Bench().predict(tmp_path / "p.jsonl", questions())
    whole = lines(tmp_path / "p.jsonl")
    (batch, *_) = Bench().answerer.batches(questions()[6:], skip=lambda ids: False)
    assert batch["row/06"].text != whole[6]["text"]


def test_a_complete_file_is_not_asked_again(tmp_path: Path) -> None:
    Bench().predict(tmp_path / "p.jsonl", questions())
    bench = Bench()
    found = bench.predict(tmp_path / "p.jsonl", questions())
    assert bench.family.asked == [] and (found.generated, found.seconds) == (0, 0.0) and len(found.answers) == 10


def test_answers_of_rows_that_are_not_asked_are_not_returned(tmp_path: Path) -> None:
    Bench().predict(tmp_path / "p.jsonl", questions())
    assert list(Bench().predict(tmp_path / "p.jsonl", questions(4)).answers) == [q.id for q in questions(4)]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"arm": "untuned"}, "arm='untuned', got 'tuned'"),
        ({"adapter_sha256": "def"}, "adapter_sha256='def', got 'abc'"),
        ({"generation": {"max_new_tokens": 9}}, "generation={'max_new_tokens': 9}, got {'max_new_tokens': 4}"),
        ({"numerics": {"device": "cpu"}}, "numerics={'device': 'cpu'}, got None"),
    ],
)
def test_answers_of_another_key_are_refused_by_name(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    Bench().predict(tmp_path / "p.jsonl", questions())
    before = (tmp_path / "p.jsonl").read_bytes()
    with pytest.raises(ConfigError) as raised:
        Bench().predict(tmp_path / "p.jsonl", questions(), key={**KEY, **changed})
    assert named in str(raised.value) and "fresh=true" in str(raised.value)
    assert (tmp_path / "p.jsonl").read_bytes() == before


def test_a_changed_prompt_is_refused(tmp_path: Path) -> None:
    Bench().predict(tmp_path / "p.jsonl", questions())
    asked = questions()
    asked[3] = Question("row/03", Prompt((Message("user", ("What else?",)),)))
    with pytest.raises(ConfigError, match=r"row row/03 was asked another question; set fresh=true"):
        Bench().predict(tmp_path / "p.jsonl", asked)


@pytest.mark.parametrize("damage", [b"\x00" * 20 + b"\n", b"{}\n", b"[1]\n", b'{"id": \xff}\n'])
def test_a_damaged_line_is_told_and_not_guessed_at(damage: bytes, tmp_path: Path) -> None:
    Bench().predict(tmp_path / "p.jsonl", questions())
    whole = (tmp_path / "p.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "p.jsonl").write_bytes(whole[0] + damage + whole[2])
    with pytest.raises(ConfigError, match=r"p\.jsonl.*fresh=true"):
        Bench().predict(tmp_path / "p.jsonl", questions())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_is_refused_and_not_answered(workers: int, tmp_path: Path) -> None:
    bench = Bench(workers=workers)
    found = bench.predict(tmp_path / "p.jsonl", questions(bad=(1, 4, 5, 6, 7)))
    assert bench.refused == [BadRow(f"bad/{i:02d}", "too long") for i in (1, 4, 5, 6, 7)]
    assert list(found.answers) == ["row/00", "row/02", "row/03", "row/08", "row/09"]
    assert bench.family.asked == [["row/00", "row/02", "row/03"], ["row/08", "row/09"]]  # none moved up to fill a batch


def test_what_refuse_raises_stops_it(tmp_path: Path) -> None:
    bench = Bench()

    def refuse(row: BadRow) -> None:
        raise BadRowError(row.id)

    bench.answerer.refuse = refuse
    with pytest.raises(BadRowError, match="bad/05"):
        bench.predict(tmp_path / "p.jsonl", questions(bad=(5,)))
    assert len(lines(tmp_path / "p.jsonl")) == 4  # the batch before it is on disk


def test_asking_disturbs_neither_modes_nor_random_numbers() -> None:
    bench, state = Bench(), torch.get_rng_state()
    bench.model.train()
    bench.model.frozen.eval()
    assert len(list(bench.answerer.batches(questions(), skip=lambda ids: False))) == 3
    assert (bench.model.training, bench.model.frozen.training, bench.model.tuned.training) == (True, False, True)
    bench.model.training = False
    list(bench.answerer.batches(questions(1), skip=lambda ids: False))
    assert bench.model.tuned.training  # also where the whole is in eval mode and a part of it is not
    assert torch.equal(torch.get_rng_state(), state)


# --- out of memory, and a full disk


class SmallMemory(FakeFamily):
    """Memory for so many rows at once."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def generate(self, model: Any, batch: FakeBatch, features: Any, max_new_tokens: int) -> torch.Tensor:
        if len(batch.rows) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().generate(model, batch, features, max_new_tokens)


def small(rows: int, rows_per_batch: int = 8) -> Bench:
    bench = Bench(rows_per_batch)
    bench.family = bench.answerer.family = SmallMemory(rows)  # type: ignore[assignment]
    return bench


def test_a_batch_without_memory_is_answered_in_halves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = small(3)
    found = bench.predict(tmp_path / "p.jsonl", questions(11))
    assert list(found.answers) == [q.id for q in questions(11)]
    assert [len(batch) for batch in bench.family.asked] == [8, 4, 2, 2, 4, 2, 2, 3]  # the second batch fits as it is
    assert capsys.readouterr().err.count("prompts at once; they are answered in halves") == 3
    assert bench.model.training == FakeModel().training


@pytest.mark.slow
def test_halves_do_not_depend_on_where_an_evaluation_was_interrupted(tmp_path: Path) -> None:
    small(3).predict(tmp_path / "whole.jsonl", questions(20))
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for kept in (0, 3, 8, 13):
        (tmp_path / "p.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:kept]))
        small(3).predict(tmp_path / "p.jsonl", questions(20))
        assert (tmp_path / "p.jsonl").read_bytes() == whole


def test_no_memory_for_one_prompt_is_told_by_name(tmp_path: Path) -> None:
    bench = small(0)
    bench.model.train()
    with pytest.raises(ConfigError, match=r"row row/00: Expected memory to answer one row of 15 tokens") as raised:
        bench.predict(tmp_path / "p.jsonl", questions(4))
    assert "\n" not in str(raised.value)
    assert bench.model.training and bench.model.tuned.training  # modes come back after an error, too


def test_a_full_disk_leaves_whole_rows(tmp_path: Path, room_for: Callable[[int], AbstractContextManager[None]]) -> None:
    Bench().predict(tmp_path / "whole.jsonl", questions())
    whole = (tmp_path / "whole.jsonl").read_bytes()
    room = len(b"".join(whole.splitlines(keepends=True)[:6]))  # the second batch would end in the middle
    with room_for(room + 50), pytest.raises(OSError, match="File too large"):
        Bench().predict(tmp_path / "p.jsonl", questions())
    assert (tmp_path / "p.jsonl").read_bytes() == b"".join(whole.splitlines(keepends=True)[:4])
    Bench().predict(tmp_path / "p.jsonl", questions())
    assert (tmp_path / "p.jsonl").read_bytes() == whole


def test_a_question_is_stored_as_it_was_asked(tmp_path: Path) -> None:
    """Two of its three forms are too long here; with more room it is another question, and no stored answer serves."""
    bench = Bench()
    prompts = [Prompt((Message("user", ("x" * n,)),)) for n in (30, 20, 1)]
    question = Question("row/00", prompts[0], (prompts[1], prompts[2]))
    refuse, encode = 10, bench.family.encode_prompt

    def encoded(row_id: str, prompt: Prompt) -> EncodedRow:
        if len(prompt.messages[0].text) > refuse:
            raise BadRowError("too long")
        return encode(row_id, prompt)

    bench.family.encode_prompt = encoded  # type: ignore[method-assign]
    found = bench.predict(tmp_path / "p.jsonl", [question])
    assert found.answers["row/00"].shots_dropped == 2
    (stored,) = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert stored["prompt_sha256"] == prompts[2].sha256 and stored["shots_dropped"] == 2
    assert bench.predict(tmp_path / "p.jsonl", [question]).generated == 0
    other = Question("row/00", prompts[0], (prompts[1], prompts[0]))
    with pytest.raises(ConfigError, match="was asked another question"):
        bench.predict(tmp_path / "p.jsonl", [other])


# --- the types that generation is given


def fields_below(kind: Any, seen: dict[type, list[str]]) -> dict[type, list[str]]:
    """Dataclass -> field names, for every dataclass that a value of `kind` may hold."""
    candidates = [kind, *typing.get_args(kind)]
    for candidate in candidates:
        if dataclasses.is_dataclass(candidate) and isinstance(candidate, type) and candidate not in seen:
            seen[candidate] = [field.name for field in dataclasses.fields(candidate)]
            names = {**vars(sample_file), "PIL": SimpleNamespace(Image=SimpleNamespace(Image=object))}
            for hint in typing.get_type_hints(candidate, globalns=names).values():
                fields_below(hint, seen)
        elif candidate is not kind:
            fields_below(candidate, seen)
    return seen


def test_a_question_has_no_place_for_an_answer() -> None:
    found = fields_below(Question, {})
    assert {kind.__name__: names for kind, names in found.items()} == {
        "Question": ["id", "prompt", "shorter"],
        "Prompt": ["messages", "marks"],
        "Message": ["role", "content"],
        "Image": ["load", "name", "identity", "measure"],
    }
    assert "answer" in fields_below(sample_file.Sample, {})[sample_file.Sample]  # the sweep would see one


def test_nothing_here_is_given_a_sample() -> None:
    from vlmft.evaluation import predict as predict_file

    names = {name for name, value in vars(predict_file).items() if value is sample_file.Sample}
    assert names == set() and predict_file.Question is Question
    hints = typing.get_type_hints(predict_file.predict)
    assert hints["questions"] == Sequence[Question]


# --- with a real model


@pytest.mark.slow
def test_a_real_model_interrupted_at_each_batch(compose: Callable[..., Any], tmp_path: Path) -> None:
    from vlmft.run.build import build, resolved

    config = compose("model=tiny_qwen2vl", "data=shapes", "data.limit_test=10", "evaluation.rows_per_batch=4")
    config = resolved(config).config
    built = build(config.model, config.data, config.trainer, seed=0)
    asked = built.data.questions(built.data.ids["test"])

    def answer(path: Path, batches: int | None) -> None:
        calls = 0

        def poll() -> None:
            nonlocal calls
            calls += 1
            if batches is not None and calls > batches:
                raise StoppedError

        predict(asked, built.answerer(config.evaluation, poll), PredictionFile(path, KEY))

    answer(tmp_path / "whole.jsonl", None)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert whole.count(b"\n") == 10
    for batches in (0, 1, 2):
        with pytest.raises(StoppedError):
            answer(tmp_path / f"{batches}.jsonl", batches)
        answer(tmp_path / f"{batches}.jsonl", None)
        assert (tmp_path / f"{batches}.jsonl").read_bytes() == whole


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("tokens_per_batch", [None, 90])
def test_ranks_share_the_batches_and_have_all_answers(
    n: int, tokens_per_batch: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = questions(18, bad=(3, 17))
    alone = Bench(tokens_per_batch=tokens_per_batch)
    whole = alone.predict(tmp_path / "alone.jsonl", asked)
    assert len(whole.answers) == 16 and len(alone.family.asked) >= 4
    before = (tmp_path / "alone.jsonl").read_bytes().splitlines(keepends=True)
    benches = [Bench(tokens_per_batch=tokens_per_batch) for _ in range(n)]
    ranks = ThreadRanks(n, monkeypatch)
    for stored in (0, 5):  # anew, and after a kill that left five answers
        path = tmp_path / f"{stored}.jsonl"
        path.write_bytes(b"".join(before[:stored]))
        for bench in benches:
            bench.family.asked.clear()
            bench.refused.clear()
        found = ranks.run(lambda rank, to=path: benches[rank].predict(to, asked))  # type: ignore[misc]
        assert path.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
        assert [each.answers for each in found] == [whole.answers] * n
        assert all(bench.refused == alone.refused for bench in benches)
        shares = [batch for bench in benches for batch in bench.family.asked]
        if not stored:
            assert sorted(shares) == sorted(alone.family.asked)


def test_another_rank_reads_and_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = ThreadRanks(2, monkeypatch)
    ranks.run(lambda rank: Bench().predict(tmp_path / str(rank) / "p.jsonl", questions()))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0", "p.jsonl"]
