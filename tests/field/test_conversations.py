"""Conversations in the forms of the Hub, LLaVA, ShareGPT, OpenAI, Gemini, TRL, ms-swift, Alpaca and others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Check = Callable[..., None]
IMAGES = {"a.png": 1, "b.png": 2}


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def model(content: Any = "A", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def turns(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def asked(*parts: Any, **more: Any) -> dict[str, Any]:
    return turns(user(list(parts)), model(), **more)


TEXT = {"type": "text", "text": "q"}
GPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "A"}]
SECOND = "user: q / assistant: A1 / user: r => A2"
READ: dict[str, tuple[dict[str, Any], str | list[str]]] = {
    **{
        f"field {name}": ({name: [user("q"), model()]}, "q => A")
        for name in "messages Messages CHAT turns dialogs".split()
    },
    "ShareGPT": ({"conversations": GPT}, "q => A"),
    "mixed keys": ({"conversations": [{"from": "user", "value": "q"}, {"role": "gpt", "content": "A"}]}, "q => A"),
    "capitals": (turns({"role": "User", "content": "q"}, {"role": "ASSISTANT", "content": "A"}), "q => A"),
    "developer": (turns({"role": "developer", "content": "S"}, user("q"), model()), "system: S / user: q => A"),
    "OpenAI": (asked(TEXT, {"type": "image_url", "image_url": {"url": "a.png"}}), "q [1] => A"),
    "responses": (
        asked({"type": "input_image", "image_url": "a.png"}, {"type": "input_text", "text": "q"}),
        "[1] q => A",
    ),
    "Qwen": (asked({"image": "a.png"}, {"text": "q"}), "[1] q => A"),
    "null keys": (asked({"type": "image", "image": "a.png", "text": None}, {**TEXT, "image": None}), "[1] q => A"),
    "null types": (asked({"type": None, "image": "a.png"}, {"type": None, "text": "q"}), "[1] q => A"),
    "part and list": (asked({"type": "image"}, TEXT, images=["a.png"]), "[1] q => A"),
    "the same in both": (asked({"type": "image", "image": "a.png"}, TEXT, images=["a.png"]), "[1] q => A"),
    "texts as parts": (asked("<image>", "q", images=["a.png"]), "[1] q => A"),
    "object as content": (turns(user(TEXT), model([TEXT])), "q => q"),
    "Gemini": (
        {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "A"}]}]},
        "q => A",
    ),
    "Ollama": (turns(user("q", images=["a.png"]), model()), "[1] q => A"),
    "Ollama, mark": (turns(user("q <image>", images=["a.png"]), model()), "q [1] => A"),
    "message's image": (turns(user("q", image="a.png"), model()), "[1] q => A"),
    "Qwen-VL": (turns(user("<img>a.png</img>\nq"), model()), "[1] \nq => A"),
    "JSON text": ({"messages": json.dumps([user("q"), model()])}, "q => A"),
    "printed": ({"messages": str([user("q"), model()])}, "q => A"),
    "parts as text": (turns(user(json.dumps([TEXT])), model()), "q => A"),
    "the_cauldron": (
        {"images": ["a.png"], "texts": [{"user": "q", "assistant": "A"}, {"user": "r", "assistant": "B"}]},
        ["[1] q => A", "user: [1] q / assistant: A / user: r => B"],
    ),
    "system": (turns(user("q"), model(), system="S"), "system: S / user: q => A"),
    "System": (turns(user("q"), model(), System="S"), "system: S / user: q => A"),
    "system_message": (turns(user("q"), model(), system_message="S"), "system: S / user: q => A"),
    "system list": (turns(user("q"), model(), system=["S"]), "system: S / user: q => A"),
    "system null": (turns(user("q"), model(), system=None), "q => A"),
    "system twice": (
        turns({"role": "system", "content": "S"}, user("q"), model(), system="S"),
        "system: S / user: q => A",
    ),
    "system with image": (
        turns({"role": "system", "content": "S <image>"}, user("q"), model(), images=["a.png"]),
        "system: S [1] / user: q => A",
    ),
    **{
        f"{key} {value!r}": (turns(user("q"), model("A1", **{key: value}), user("r"), model("A2")), SECOND)
        for key in ("weight", "loss", "train", "train_on_turn")
        for value in (0, "0", False)
    },
    "weight null": (turns(user("q"), model(weight=None)), "q => A"),
    "two users": (turns(user("q"), user("r"), model()), "q \n r => A"),
    "model first": (turns(model("hi"), user("q"), model()), "assistant: hi / user: q => A"),
    "numbers": (turns(user(5), model(7)), "5 => 7"),
    "object as answer": (turns(user("q"), model({"x": 1})), 'q => {"x": 1}'),
    "list as answer": (turns(user("q"), model(["x", "y"])), 'q => ["x", "y"]'),
    "no mark": (
        turns(user("q"), model(), user("r"), model("B"), images=["a.png"]),
        ["[1] q => A", "user: [1] q / assistant: A / user: r => B"],
    ),
    "marks in turns": (
        turns(user("<image><image>q"), model(), user("<image>r"), model("B"), images=["a.png", "b.png", "a.png"]),
        ["[1] [2] q => A", "user: [1] [2] q / assistant: A / user: [1] r => B"],
    ),
    "mark in the second": (
        turns(user("q"), model(), user("<image>r"), model("B"), images=["a.png"]),
        ["q => A", "user: q / assistant: A / user: [1] r => B"],
    ),
    "mark in the answer": (turns(user("<image>q"), model("see <image>"), images=["a.png"]), "[1] q => see <image>"),
    "null beside": (turns(user("<image>q"), model(), image=None, images=["a.png"]), "[1] q => A"),
    "objects of images": (turns(user("<image>q"), model(), images=[{"path": "a.png"}]), "[1] q => A"),
    "no video": (turns(user("q"), model(tool_calls=[]), videos=[], audio=None), "q => A"),
    "HTML": (turns(user("what is <img src='x'>?"), model("<img src='x'>")), "what is <img src='x'>? => <img src='x'>"),
    "TRL": ({"prompt": "q", "completion": "A"}, "q => A"),
    "TRL lists": (
        {"prompt": [user([{"type": "image"}, TEXT])], "completion": [model()], "images": ["a.png"]},
        "[1] q => A",
    ),
    "Alpaca": ({"instruction": "i", "input": "n", "output": "A", "system": "S"}, "system: S / user: i\nn => A"),
    "Alpaca, list": ({"instruction": "i", "output": ["x", "y"]}, 'i => ["x", "y"]'),
    "Alpaca, mark": ({"instruction": "i", "input": "<image>", "output": "A", "images": ["a.png"]}, "i [1] => A"),
    "ms-swift": ({"query": "<image>q", "response": "A", "images": ["a.png"]}, "[1] q => A"),
    "input": ({"input": "q", "output": "A"}, "q => A"),
    "pair": ({"user": "q", "assistant": "A"}, "q => A"),
    **{
        f"history {number}": (
            {"query": "q", "response": "A", "history": history},
            ["x => y", "user: x / assistant: y / user: q => A"],
        )
        for number, history in enumerate(([["x", "y"]], '[["x", "y"]]', [user("x"), model("y")]))
    },
}


@pytest.mark.parametrize("case", READ)
def test_read(check: Check, case: str) -> None:
    row, expected = READ[case]
    found = [expected] if isinstance(expected, str) else expected
    check([f"train: {line}" for line in found], "messages", {"t.jsonl": [row], **IMAGES}, "t.jsonl")


def test_pictures_in_the_parts(check: Check, encoded: Callable[..., str]) -> None:
    anthropic = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded(3)}}
    openai = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(4)}", "detail": "low"}}
    gemini = {"inline_data": {"mime_type": "image/png", "data": encoded(5)}}
    rows = [asked(part, TEXT) for part in (anthropic, openai, gemini)]
    check([f"train: [{red}] q => A" for red in (3, 4, 5)], "messages", {"t.jsonl": rows}, "t.jsonl")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "more images": (turns(user("<image>q"), model(), images=["a.png", "b.png"]), "got 2 and 1"),
    "more marks": (turns(user("<image><image>q"), model(), images=["a.png"]), "got 1 and 2"),
    "no image": (turns(user("<image>q"), model()), "got 0 and 1"),
    "part alone": (asked({"type": "image"}, TEXT), "got 0 and 1"),
    "two places": (asked({"type": "image", "image": "a.png"}, TEXT, images=["b.png"]), "in the turns or in a list"),
    "two fields": (
        turns(user("<image>q"), model(), image="a.png", images=["b.png"]),
        "different ones in image and images",
    ),
    "message's own": (turns(user("<image><image>q", images=["a.png"]), model()), "got 1 and 2"),
    "image as answer": (turns(user("q"), model([{"type": "image", "image": "a.png"}])), "an answer of text"),
    "address": (asked({"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}, TEXT), "download it"),
    "mark of others": (turns(user("<image_1>q"), model(), images=["a.png"]), "got '<image_1>' in a question"),
    "MiniCPM": ({"image": {"<image_00>": "a.png"}, "conversations": [user("<image_00>q"), model()]}, "'<image_00>'"),
    "video": (turns(user("<video>q"), model(), videos=["x.mp4"]), "got none; check the path"),
    "video's mark": (turns(user("<video>q"), model()), "got 0 and 1; add the video"),
    "audio": (turns(user("q"), model(), audios=["x.wav"]), "got audios"),
    "tool": (turns(user("q"), model(None, tool_calls=[{"id": 1}])), "tool calls"),
    "function": (turns(user("q"), model(None, function_call={"name": "f"})), "tool calls"),
    "role": (turns(user("q"), {"role": "tool", "content": "x"}, model()), "got 'tool'"),
    "no role": (turns({"content": "q"}, model()), "got None"),
    "preference": ({"prompt": "q", "chosen": "A", "rejected": "B"}, "chosen and rejected"),
    "two systems": (turns({"role": "system", "content": "S"}, user("q"), model(), system="T"), "one system text"),
    "history beside": (turns(user("q"), model(), history=[["x", "y"]]), "got a separate history"),
    "weight 0": (turns(user("q"), model(weight=0)), "Expected an answer to learn"),
    "weight 0.5": (turns(user("q"), model(weight=0.5)), "Expected 0 or 1 as weight"),
    "two answers": (turns(user("q"), model(), model("B")), "turns of user, assistant, assistant"),
    "no answer": (turns(user("q")), "turns of user"),
    "no question": (turns(model()), "turns of assistant"),
    "no turns": (turns(), "turns of none"),
    "no field": ({"foo": 1}, "got fields foo"),
    "empty question": (turns(user(""), model()), "Expected a text or an image"),
    "empty answer": (turns(user("q"), model(" ")), "Expected a text as answer"),
    "null answer": (turns(user("q"), model(None)), "Expected a text or an image"),
    "broken JSON": ({"messages": '[{"role": "user"'}, "turns in JSON"),
    "half a surrogate pair": (turns(user("q\ud800"), model()), "lone surrogate"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(read: Callable[..., list[str]], case: str) -> None:
    row, words = REFUSED[case]
    good = turns(user("q"), model())
    found = read("messages", {"t.jsonl": [good, row], **IMAGES}, "t.jsonl")
    assert found[0] == "train: q => A" and found[1].startswith("train: BAD Expected") and words in found[1]


def test_fields_that_are_not_read_are_listed(read: Callable[..., list[str]]) -> None:
    row = turns(user("q", name="bob"), model(reasoning_content="so"), score=3, rejected_response="B", image_path=None)
    assert read("messages", {"t.jsonl": [row, row]}, "t.jsonl")[-1] == (
        "unread: score, rejected_response, messages: name, messages: reasoning_content"
    )


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("more", [{}, {"images": [{"path": "a.png"}]}, {"tools": [{"name": "f"}]}])
def test_one_conversation_alone(check: Check, indent: int | None, more: dict[str, Any]) -> None:
    row = turns(user("q"), model(), **more)
    expected = "train: [1] q => A" if "images" in more else "train: q => A"
    check(expected, "messages", {"t.json": json.dumps(row, indent=indent), **IMAGES}, "t.json")


def test_conversations_for_columns(check: Check) -> None:
    check("REFUSED data: ...set data=messages", "columns", {"t.jsonl": [turns(user("q"), model())]}, "t.jsonl")
