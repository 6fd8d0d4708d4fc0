"""One way for every command of `vlmft`: key=value or --key value, and --help with every setting."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import vlmft
from vlmft.config.check import ConfigError, imported
from vlmft.config.entry import conf_dir
from vlmft.config.setting_types import all_settings
from vlmft.config.tool_schema import AskConfig, CompareConfig, ScoreConfig
from vlmft.config.tools import compose_tool
from vlmft.tools import cli
from vlmft.tools.settings import config_of_files, given, settings_of
from vlmft.tools.usage import SHOWN, help_of

COMMANDS = {name: command.schema_class for name, command in cli.COMMANDS.items()}


def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["vlmft", *arguments])
    cli.main()
    return capsys.readouterr().out


def test_every_command_is_there() -> None:
    assert {path.stem for path in conf_dir().glob("*.yaml")} <= set(COMMANDS) and len(COMMANDS) == 14


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_setting(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = called(monkeypatch, capsys, command, "--help")
    assert shown == called(monkeypatch, capsys, command, "-h")
    lines = shown.splitlines()
    keys = [*all_settings(COMMANDS[command])]
    groups = [key for key in keys if any(other.startswith(f"{key}.") for other in keys)]
    for key in keys:
        (line, *_) = [line for line in lines if re.split(r"[ (:=]", line.strip())[0] == key]
        assert key in groups or "(" in line, "the type"
    assert lines[0].startswith(f"vlmft {command}: ")
    assert sum(line.startswith(f"  vlmft {command} ") for line in lines) == 2, "examples"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_has_a_line_of_doc(command: str) -> None:
    assert [setting.key for setting in settings_of(COMMANDS[command]) if not setting.doc.strip(" .")] == []


def test_a_setting_without_doc_is_seen() -> None:
    bare = dataclasses.make_dataclass("Bare", [("n", int, 0)])
    bare.__doc__ = None
    root = dataclasses.make_dataclass("Root", [("bare", bare, dataclasses.field(default_factory=bare))])
    with pytest.raises((OSError, TypeError)):  # made without a source that could hold a doc
        [*settings_of(root)]


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_overview_has_twenty_settings_with_present_values(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [f"{command}.py", *arguments])
        cli.start(command, lambda: pytest.fail("nothing runs"))
        return capsys.readouterr().out.splitlines()

    lines = shown("--help")
    keys = SHOWN[command].split()
    assert len(keys) == len({*keys}) == 20 and {*keys} <= {*all_settings(COMMANDS[command])}
    for key in keys:
        (line,) = [line for line in lines if line.startswith(f"  {key}=")]
        assert re.fullmatch(r"  \S+ \(.+\)  \S.*", line)
    assert sum(line.startswith(f"  python {command}.py ") for line in lines) == 2
    assert "  data=null (" in "\n".join(lines) or "  data=shapes (" in "\n".join(lines)
    changed = shown("-h", "model=qwen2vl", "data=columns", "--data.limit_test", "5", "evaluation.arms=[untuned]")
    assert any(line.startswith("  model=qwen2vl (auto|") for line in changed)
    assert any(line.startswith("  evaluation.arms=[untuned] (") for line in changed)
    assert any(line.startswith(f"vlmft {command} --help lists all ") for line in changed)


def test_the_overview_of_a_mistake_is_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--help", "model=tinny"])
    with pytest.raises(SystemExit) as stopped:
        cli.start("train", lambda: None)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: model=tinny: no such choice; did you mean 'tiny'?")


def test_every_target_is_there() -> None:
    tools = {name: command for name, command in cli.COMMANDS.items() if command.target is not None}
    assert len(tools) == len(COMMANDS) - 2
    for command in tools.values():
        first, *_ = typing.get_type_hints(imported(command.target)).values()
        assert first is command.schema_class


def test_a_line_of_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = called(monkeypatch, capsys, "ask", "--help").splitlines()
    assert "  max_new_tokens=64 (a whole number >= 1)  Longest answer in tokens." in lines
    assert any(line.startswith("  trainer=auto (auto|cpu|ddp|fsdp|gpu)  Every argument of") for line in lines)
    lines = called(monkeypatch, capsys, "ask", "--help", "model=qwen2vl", "max_new_tokens=8").splitlines()
    assert "  model.init=pretrained (pretrained|random)" in [line.split("  `")[0] for line in lines]
    assert any(line.startswith("  model=qwen2vl (auto|") for line in lines)
    assert "  max_new_tokens=8 (a whole number >= 1)  Longest answer in tokens." in lines
    assert "  image (str, required)  An image file, or a folder whose images are all asked about." in lines
    assert "  files=[] (list of str), or without a key  The files" in called(monkeypatch, capsys, "compare", "--help")


def test_help_is_folded_for_a_terminal() -> None:
    tool = cli.COMMANDS["score"]
    whole, folded = (
        help_of("vlmft score", "score", tool.summary, ScoreConfig, tool.examples, width=width).split("\n")
        for width in (None, 60)
    )
    assert max(map(len, folded)) <= 60 < max(map(len, whole))
    assert " ".join(" ".join(folded).split()) == " ".join(" ".join(whole).split())


def test_the_examples_are_settings() -> None:
    for name, tool in cli.COMMANDS.items():
        for example in tool.examples:
            words = [word for word in example.replace("'", "").split() if "=" in word]
            legal = {*all_settings(tool.schema_class)}
            assert {word.split("=")[0] for word in words} <= legal, name


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(monkeypatch, capsys, "--version") == f"vlmft {vlmft.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["--question", "What's it, then?"], [r"question='What\'s it, then?'"]),
        (["--question=a, b"], ["question='a, b'"]),
        (["--image", "ein Bär.png"], ["image='ein Bär.png'"]),
        (["--json", "--run", "a/b"], ["json=true", "run=a/b"]),
        (["--json", "false"], ["json=false"]),
        (["--max-new-tokens", "8"], ["max_new_tokens=8"]),
        (["--trainer.memory_gib", "2"], ["trainer.memory_gib=2"]),
        (["--model", "tiny", "model.lora.r=4"], ["model=tiny", "model.lora.r=4"]),
    ],
)
def test_both_habits(arguments: list[str], overrides: list[str]) -> None:
    assert given(arguments, AskConfig).overrides == overrides


@pytest.mark.parametrize("text", ["What's it?", "a, b", "C:\\", "\\'", "größer (a.b) = [1]", "", "x\\\\'y"])
def test_a_text_stays_what_it_is(text: str) -> None:
    arguments = ["--question", text, "--image", "x.png", "--model", "tiny"]
    config = compose_tool("ask", AskConfig, given(arguments, AskConfig).overrides)
    assert config.question == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--question"], "question: Expected a value after --question, got none"),
        (["--run", "--json"], "run: Expected a value after --run, got none"),
        (["cat.jpg"], "cat.jpg: Expected key=value, or --key value; --help lists the settings"),
    ],
)
def test_a_value_that_is_not_there(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        given(arguments, AskConfig)
    assert str(refused.value) == message


def test_files_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=1.csv").touch()
    arguments = [
        "lr=1.csv",
        "runs/lr=2/a.csv",
        "columns=prediction=Fine-tuned, all",
        "--columns",
        "id=x",
        "by_order=true",
    ]
    config = config_of_files(CompareConfig, "files", arguments)
    assert config.files == ["lr=1.csv", "runs/lr=2/a.csv"] and config.by_order
    assert config.columns == ["prediction=Fine-tuned, all", "id=x"]
    with pytest.raises(ConfigError, match=r"mtric: no such setting; did you mean 'metric'"):
        config_of_files(ScoreConfig, "file", ["a.csv", "mtric=bleu"])
    with pytest.raises(ConfigError, match=r"file: Expected one, got 'a.csv' and 'b.csv'"):
        config_of_files(ScoreConfig, "file", ["a.csv", "b.csv"])
    with pytest.raises(ConfigError, match=r"file: Expected a value, got none; set it"):
        config_of_files(ScoreConfig, "file", ["--json"])


def test_types_and_docs_are_the_schema_s() -> None:
    found = {setting.key: setting for setting in settings_of(AskConfig)}
    assert [*found] == [*all_settings(AskConfig)]
    assert (found["rows_per_batch"].type_name, found["run"].type_name) == ("a whole number >= 1", "str or null")
    assert found["json"].doc == "Print the answers as JSON lines."


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_training_and_evaluation_without_a_clone(command: str, tmp_path: Path) -> None:
    start = [sys.executable, "-m", "vlmft", command]
    composed = subprocess.run(
        [*start, "model=tiny", "--data", "shapes", "--cfg", "job"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "name: shapes" in composed.stdout
    wrong = subprocess.run(
        [*start, "model=tiny", "dta=shapes"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: dta: ") and wrong.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_sweep_without_a_clone(tmp_path: Path) -> None:
    small = ["data.options.train_rows=8", "data.options.val_rows=4", "trainer.max_steps=1", "logger=none"]
    command = [sys.executable, "-m", "vlmft", "train", "-m", "train.lr=1e-3,2e-3", *small, f"output_root={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the winner on the test split:\n  vlmft evaluate run=" in done.stdout
