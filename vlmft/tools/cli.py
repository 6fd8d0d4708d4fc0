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
from vlmft.config.check import ConfigError
from vlmft.config.entry import EXIT_FAILURE, run_entry
from vlmft.config.tools import compose_tool
from vlmft.models.locate import require_model
from vlmft.run.folder import read_run
from vlmft.run.start import found_data
from vlmft.tools.settings import config_of_files, given
from vlmft.tools.usage import help_of


@dataclass(frozen=True)
class Tool:
    """One command of `vlmft`."""

    summary: str
    schema_class: type[Any]
    """Its settings."""
    examples: tuple[str, str]
    run: Callable[[Any], None]
    """Gets the checked settings. Imports torch, if at all, after its own checks: it takes seconds to import."""
    files: str | None = None
    """The setting that arguments without a key are, where there is one."""


def _check(config: tool_schema.CheckConfig) -> None:
    from vlmft.tools.check import check

    check(config)


def _trace(config: tool_schema.TraceConfig) -> None:
    found_data(config.data)
    require_model(config.model)
    from vlmft.tools.trace import trace

    trace(config, colour=sys.stdout.isatty())


def _ask(config: tool_schema.AskConfig) -> None:
    if config.run is not None:
        read_run(config.run)
    elif config.model is not None:
        require_model(config.model)
    from vlmft.tools.ask import ask

    ask(config)


def _export(config: tool_schema.ExportConfig) -> None:
    read_run(config.run)
    from vlmft.tools.export import export

    export(config)


def _grade(config: tool_schema.GradeConfig) -> None:
    from vlmft.labels.grade import grade

    grade(config)


def _judge(config: tool_schema.JudgeConfig) -> None:
    from vlmft.labels.judge import judge

    judge(config)


def _annotate(config: tool_schema.AnnotateConfig) -> None:
    from vlmft.labels.annotate import annotate

    annotate(config)


def _score(config: tool_schema.ScoreConfig) -> None:
    from vlmft.predictions.score import score

    score(config)


def _compare(config: tool_schema.CompareConfig) -> None:
    from vlmft.predictions.compare import compare_files

    compare_files(config)


def _seeds(config: tool_schema.SeedsConfig) -> None:
    from vlmft.predictions.seeds import seeds

    seeds(config)


TOOLS: dict[str, Tool] = {
    "check": Tool(
        "what your files are read as, before anything is trained",
        tool_schema.CheckConfig,
        ("data=columns data.path=FOLDER", "data=columns data.path=FOLDER model=tiny"),
        _check,
    ),
    "trace": Tool(
        "one sample's whole way, each stage printed",
        tool_schema.TraceConfig,
        ("data=shapes model=tiny index=0", "data=columns data.path=FOLDER model=smolvlm256m split=val json=true"),
        _trace,
    ),
    "ask": Tool(
        "an answer about an image, or about each image of a folder",
        tool_schema.AskConfig,
        ("image=cat.jpg question='What is it?' run=RUN_FOLDER", "image=FOLDER question='How many?' model=smolvlm256m"),
        _ask,
    ),
    "export": Tool(
        "a tuned model to give away: merged weights or the adapter, with a model card",
        tool_schema.ExportConfig,
        ("run=RUN_FOLDER to=NEW_FOLDER dtype=float16", "run=RUN_FOLDER to=NEW_FOLDER form=adapter push=NAME/MODEL"),
        _export,
    ),
    "grade": Tool(
        "judge free-text answers on a page, without knowing whose they are",
        tool_schema.GradeConfig,
        ("run=RUN_FOLDER n=20", "run=RUN_FOLDER summary=true"),
        _grade,
    ),
    "judge": Tool(
        "judge free-text answers by a model behind a server, which does not know whose they are",
        tool_schema.JudgeConfig,
        (
            "run=RUN_FOLDER judge.model=NAME judge.base_url=http://localhost:8000/v1",
            "run=RUN_FOLDER judge.model=NAME judge.image=true n=50",
        ),
        _judge,
    ),
    "annotate": Tool(
        "captions for images without one: drafted by a model, accepted by a person on a page",
        tool_schema.AnnotateConfig,
        (
            "data=characters data.path=FOLDER annotator=openai chat.model=NAME",
            "data=characters data.path=FOLDER review=true",
        ),
        _annotate,
    ),
    "score": Tool(
        "what a file of predictions (CSV, TSV, JSON, JSON Lines, parquet, xlsx, txt) is worth, whatever tool wrote it",
        tool_schema.ScoreConfig,
        ("FILE metric=relaxed_accuracy", "FILE references=GOLD columns=prediction=output,id=question_id"),
        _score,
        files="file",
    ),
    "compare": Tool(
        "are the others better than the first, on the same rows? With p-value and verdict",
        tool_schema.CompareConfig,
        ("BEFORE AFTER", "BEFORE AFTER metric=exact_match by=split"),
        _compare,
        files="files",
    ),
    "seeds": Tool(
        "runs that differ in their seed alone, taken together",
        tool_schema.SeedsConfig,
        ("RUN_FOLDER RUN_FOLDER RUN_FOLDER", "RUN_FOLDER RUN_FOLDER json=true"),
        _seeds,
        files="runs",
    ),
}

PROGRAMS: dict[str, tuple[str, type[Any], tuple[str, str]]] = {
    "train": (
        "fine-tune a model and see whether it got better, on the same held-out rows",
        schema.TrainConfig,
        ("model=tiny data=shapes", "model=smolvlm256m data=chartqa data.path=FOLDER train.lr=1e-4"),
    ),
    "evaluate": (
        "evaluate a run again, or an untuned model",
        schema.EvaluateConfig,
        ("run=RUN_FOLDER", "model=tiny data=shapes"),
    ),
}
"""Hydra apps, with Hydra's own options (-m, --cfg, ...): what train.py and evaluate.py are in a clone."""


def usage() -> str:
    """What `vlmft --help` prints."""
    summaries = {name: summary for name, (summary, _, _) in PROGRAMS.items()}
    summaries |= {name: tool.summary for name, tool in TOOLS.items()}
    lines = [f"  {name:<9}{summary}" for name, summary in summaries.items()]
    head = "usage: vlmft COMMAND [key=value ...], where --key value is the same as key=value\n"
    tail = "vlmft COMMAND --help lists all settings of a command; vlmft --version.\n"
    return "\n".join([head, *lines, "", tail])


def run_tool(name: str, arguments: Sequence[str]) -> None:
    """Calls the tool with the settings of a command line.

    Raises:
        ConfigError: a setting that it does not take, and what the tool itself raises.
    """
    tool = TOOLS[name]
    if tool.files is not None:
        tool.run(config_of_files(tool.schema_class, tool.files, arguments))
    else:
        tool.run(compose_tool(name, tool.schema_class, given(arguments, tool.schema_class).overrides))


def run_program(name: str, arguments: Sequence[str]) -> None:
    """Runs vlmft/tools/<name>.py as the main module, so that a sweep or a second device can start it again."""
    sys.argv[1:] = given(arguments, PROGRAMS[name][1], hydra_options=True).overrides
    runpy.run_module(f"vlmft.tools.{name}", run_name="__main__", alter_sys=True)


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
    if name in ("-h", "--help", "help"):
        print(usage(), end="")
    elif name in ("-V", "--version", "version"):
        print(f"vlmft {metadata.version('vlmft')}")
    elif name in (*TOOLS, *PROGRAMS) and {"-h", "--help"} & {*arguments}:
        tool = TOOLS.get(name)
        about = (tool.summary, tool.schema_class, tool.examples) if tool is not None else PROGRAMS[name]
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(help_of(name, *about, files=tool.files if tool is not None else None, width=width), end="")
    elif name in PROGRAMS:
        run_program(name, arguments)
    else:
        run_entry(lambda: _run(name, arguments))


def _run(name: str, arguments: Sequence[str]) -> None:
    if name not in TOOLS:
        legal = ", ".join([*PROGRAMS, *TOOLS])
        raise ConfigError(f"Expected one of the commands {legal}, got {name!r}; see vlmft --help")
    run_tool(name, arguments)
