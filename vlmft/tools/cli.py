"""The `vlmft` command: training, evaluation, and the tools around them. `vlmft check data=columns data.path=FOLDER`."""

from __future__ import annotations

import contextlib
import os
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from vlmft.config import schema, tool_schema
from vlmft.config.check import ConfigError, imported
from vlmft.config.entry import EXIT_FAILURE, run_entry
from vlmft.config.tools import compose_tool
from vlmft.tools.settings import config_of_files, given
from vlmft.tools.usage import SHOWN, help_of

HELP = {"-h", "--help"}


@dataclass(frozen=True)
class Command:
    """One command of `vlmft`."""

    summary: str
    schema_class: type[Any]
    """Its settings."""
    examples: tuple[str, str]
    target: str | None = None
    """module.path:function, which gets the checked settings; imported when it is called, for torch takes seconds. None:
    a Hydra app with Hydra's own options (-m, --cfg, ...), vlmft/tools/<name>.py."""
    require: Callable[[Any], None] | None = None
    """Finds out before that import whether model, data and run are there."""
    files: str | None = None
    """The setting that arguments without a key are, where there is one."""


def _is_there(config: Any) -> None:
    from vlmft.models.locate import require_model
    from vlmft.run.folder import read_run
    from vlmft.run.start import found_data

    data, run, model = (getattr(config, name, None) for name in ("data", "run", "model"))
    if data is not None:
        found_data(data)
    if run is not None:
        read_run(run)
    elif model is not None:
        require_model(model)


COMMANDS: dict[str, Command] = {
    "train": Command(
        "fine-tune a model and see whether it got better, on the same held-out rows",
        schema.TrainConfig,
        ("model=smolvlm256m data=columns data.path=FOLDER", "-m model.lora.r=4,8,16 train.lr=1e-4,3e-4"),
    ),
    "evaluate": Command(
        "evaluate a run again, or an untuned model",
        schema.EvaluateConfig,
        ("run=RUN_FOLDER", "model=tiny data=shapes"),
    ),
    "check": Command(
        "what your files are read as, before anything is trained",
        tool_schema.CheckConfig,
        ("data=columns data.path=FOLDER", "data=columns data.path=FOLDER model=tiny"),
        "vlmft.tools.check:check",
    ),
    "trace": Command(
        "one sample's whole way, each stage printed",
        tool_schema.TraceConfig,
        ("data=shapes model=tiny index=0", "data=columns data.path=FOLDER model=smolvlm256m split=val json=true"),
        "vlmft.tools.trace:trace",
        _is_there,
    ),
    "ask": Command(
        "an answer about an image, or about each image of a folder",
        tool_schema.AskConfig,
        ("image=cat.jpg question='What is it?' run=RUN_FOLDER", "image=FOLDER question='How many?' model=smolvlm256m"),
        "vlmft.tools.ask:ask",
        _is_there,
    ),
    "play": Command(
        "a page to try a model on: untuned and tuned answers side by side, and test cases of them",
        tool_schema.PlayConfig,
        ("run=RUN_FOLDER", "model=smolvlm256m export=FOLDER"),
        "vlmft.tools.play:play",
        _is_there,
    ),
    "export": Command(
        "a tuned model to give away: merged weights or the adapter, with a model card",
        tool_schema.ExportConfig,
        ("run=RUN_FOLDER to=NEW_FOLDER dtype=float16", "run=RUN_FOLDER to=NEW_FOLDER form=adapter push=NAME/MODEL"),
        "vlmft.tools.export:export",
        _is_there,
    ),
    "grade": Command(
        "judge free-text answers on a page, without knowing whose they are",
        tool_schema.GradeConfig,
        ("run=RUN_FOLDER n=20", "run=RUN_FOLDER summary=true"),
        "vlmft.labels.grade:grade",
    ),
    "judge": Command(
        "judge free-text answers by a model behind a server, which does not know whose they are",
        tool_schema.JudgeConfig,
        (
            "run=RUN_FOLDER judge.model=NAME judge.base_url=http://localhost:8000/v1",
            "run=RUN_FOLDER judge.model=NAME judge.image=true n=50",
        ),
        "vlmft.labels.judge:judge",
    ),
    "annotate": Command(
        "captions for images without one: drafted by a model, accepted by a person on a page",
        tool_schema.AnnotateConfig,
        (
            "data=characters data.path=FOLDER annotator=openai chat.model=NAME",
            "data=characters data.path=FOLDER review=true",
        ),
        "vlmft.labels.annotate:annotate",
    ),
    "cache": Command(
        "the stored features of images: how many, how large, how old; or delete them",
        tool_schema.CacheToolConfig,
        ("folder=FOLDER", "clear=true"),
        "vlmft.tools.cache:cache",
    ),
    "score": Command(
        "what a file of predictions (CSV, TSV, JSON, JSON Lines, parquet, xlsx, txt) is worth, whatever tool wrote it",
        tool_schema.ScoreConfig,
        ("FILE metric=relaxed_accuracy", "FILE references=GOLD columns=prediction=output,id=question_id"),
        "vlmft.predictions.score:score",
        files="file",
    ),
    "compare": Command(
        "are the others better than the first, on the same rows? With p-value and verdict",
        tool_schema.CompareConfig,
        ("BEFORE AFTER", "BEFORE AFTER metric=exact_match by=split"),
        "vlmft.predictions.compare:compare_files",
        files="files",
    ),
    "seeds": Command(
        "runs that differ in their seed alone, taken together",
        tool_schema.SeedsConfig,
        ("RUN_FOLDER RUN_FOLDER RUN_FOLDER", "RUN_FOLDER RUN_FOLDER json=true"),
        "vlmft.predictions.seeds:seeds",
        files="runs",
    ),
}


def usage() -> str:
    """What `vlmft --help` prints."""
    lines = [f"  {name:<9}{command.summary}" for name, command in COMMANDS.items()]
    head = "usage: vlmft COMMAND [key=value ...], where --key value is the same as key=value\n"
    tail = "vlmft COMMAND --help lists all settings of a command; vlmft --version.\n"
    return "\n".join([head, *lines, "", tail])


def run_tool(name: str, arguments: Sequence[str]) -> None:
    """Calls the tool with the settings of a command line.

    Raises:
        ConfigError: no such tool, a setting that it does not take, and what the tool itself raises.
    """
    if name not in COMMANDS:
        raise ConfigError(f"Expected one of the commands {', '.join(COMMANDS)}, got {name!r}; see vlmft --help")
    command = COMMANDS[name]
    if command.files is not None:
        config = config_of_files(command.schema_class, command.files, arguments)
    else:
        config = compose_tool(name, command.schema_class, given(arguments, command.schema_class).overrides)
    if command.require is not None:
        command.require(config)
    assert command.target is not None
    imported(command.target)(config)


def start(name: str, main: Callable[[], None]) -> None:
    """Runs the Hydra app `main` of "train" or "evaluate" with `sys.argv`; --help shows the current values."""

    def run() -> None:
        command = COMMANDS[name]
        sys.argv[1:] = given(sys.argv[1:], command.schema_class, hydra_options=True).overrides
        if HELP & {*sys.argv[1:]}:
            _print_help(f"python {name}.py", name, sys.argv[1:], SHOWN[name].split())
        else:
            main()

    run_entry(run)


def _print_help(program: str, name: str, arguments: Sequence[str], keys: Sequence[str] = ()) -> None:
    command = COMMANDS[name]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    about = (command.summary, command.schema_class, command.examples)
    print(help_of(program, name, *about, arguments, keys=keys, files=command.files, width=width), end="")


@contextlib.contextmanager
def readers_may_leave() -> Iterator[None]:
    """A reader that has seen enough, such as `head`, ends the command without a message."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # the interpreter's own, at its end, would come too late to be caught
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still held must go somewhere
        sys.exit(EXIT_FAILURE)


@readers_may_leave()
def main() -> None:
    """Runs the command that `sys.argv` names."""
    name, *arguments = sys.argv[1:] or ["help"]
    command = COMMANDS.get(name)
    if name in (*HELP, "help"):
        print(usage(), end="")
    elif name in ("-V", "--version", "version"):
        print(f"vlmft {metadata.version('vlmft')}")
    elif command is not None and HELP & {*arguments}:
        run_entry(lambda: _print_help(f"vlmft {name}", name, arguments))
    elif command is not None and command.target is None:
        sys.argv[1:] = arguments  # as the main module, so that a sweep or a second device can start it again
        runpy.run_module(f"vlmft.tools.{name}", run_name="__main__", alter_sys=True)
    else:
        run_entry(lambda: run_tool(name, arguments))
