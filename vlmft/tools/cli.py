"""The `vlmft` command: small tools around a run. `vlmft trace data=shapes model=tiny index=0`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from vlmft.config.check import ConfigError
from vlmft.config.entry import EXIT_FAILURE, run_entry
from vlmft.config.tool_schema import (
    AnnotateConfig,
    AskConfig,
    CheckConfig,
    ExportConfig,
    GradeConfig,
    JudgeConfig,
    TraceConfig,
)
from vlmft.config.tools import compose_tool
from vlmft.models.locate import require_model
from vlmft.predictions.compare import run_compare
from vlmft.predictions.score import run_score
from vlmft.predictions.seeds import run_seeds
from vlmft.run.folder import read_run
from vlmft.run.start import found_data

USAGE = """usage: vlmft TOOL [arguments]

  check   what your files are read as, before anything is trained: vlmft check data=columns data.path=FOLDER
  trace   one sample's whole way, each stage printed: vlmft trace data=shapes model=tiny index=0
  ask     an answer about an image, or a folder of them: vlmft ask image=cat.jpg question="What is it?" run=RUN_FOLDER
  export  a tuned model to give away: vlmft export run=RUN_FOLDER to=NEW_FOLDER (form=adapter: the adapter alone;
          --push NAME/MODEL: to the Hub, too)
  grade   judge free-text answers blind, on a page: vlmft grade run=RUN_FOLDER n=20 (--summary: what came out)
  judge   the same by a model behind a server: vlmft judge run=RUN_FOLDER judge.model=NAME judge.base_url=ADDRESS
  annotate captions for images without one: vlmft annotate data=characters data.path=FOLDER annotator=openai
          chat.model=NAME, then the same with --review instead of annotator=: a page on which a person accepts them
  score   what a file of predictions is worth, whatever tool wrote it: vlmft score FILE --metric relaxed_accuracy
  compare are others better than the first, on the same rows, with p-value and verdict: vlmft compare A B
  seeds   runs that differ in their seed alone, taken together: vlmft seeds RUN RUN RUN

Every tool takes --json. Training and evaluation are train.py and evaluate.py.
"""


FLAGS = ("--json", "--summary", "--review")


def _settings(arguments: Sequence[str]) -> list[str]:
    """`--json` and its like, and `--push NAME/MODEL`, as the settings that they stand for."""
    found = [f"{argument[2:]}=true" if argument in FLAGS else argument for argument in arguments]
    if "--push" in found[:-1]:
        place = found.index("--push")
        found[place : place + 2] = [f"push={found[place + 1]}"]
    return found


def run_ask(arguments: Sequence[str]) -> None:
    config = compose_tool("ask", AskConfig, _settings(arguments))
    if config.run is not None:
        read_run(config.run)
    elif config.model is not None:
        require_model(config.model)
    from vlmft.tools.ask import ask  # after the checks: torch takes seconds to import

    ask(config)


def run_export(arguments: Sequence[str]) -> None:
    config = compose_tool("export", ExportConfig, _settings(arguments))
    read_run(config.run)
    from vlmft.tools.export import export

    export(config)


def run_grade(arguments: Sequence[str]) -> None:
    config = compose_tool("grade", GradeConfig, _settings(arguments))
    from vlmft.labels.grade import grade

    grade(config)


def run_judge(arguments: Sequence[str]) -> None:
    config = compose_tool("judge", JudgeConfig, _settings(arguments))
    from vlmft.labels.judge import judge

    judge(config)


def run_annotate(arguments: Sequence[str]) -> None:
    config = compose_tool("annotate", AnnotateConfig, _settings(arguments))
    from vlmft.labels.annotate import annotate

    annotate(config)


def run_check(arguments: Sequence[str]) -> None:
    config = compose_tool("check", CheckConfig, _settings(arguments))
    from vlmft.tools.check import check

    check(config)


def run_trace(arguments: Sequence[str]) -> None:
    config = compose_tool("trace", TraceConfig, _settings(arguments))
    found_data(config.data)
    require_model(config.model)
    from vlmft.tools.trace import trace

    trace(config, colour=sys.stdout.isatty())


TOOLS: dict[str, Callable[[Sequence[str]], None]] = {
    "check": run_check,
    "trace": run_trace,
    "ask": run_ask,
    "export": run_export,
    "grade": run_grade,
    "judge": run_judge,
    "annotate": run_annotate,
    "score": run_score,
    "compare": run_compare,
    "seeds": run_seeds,
}


@contextlib.contextmanager
def readers_may_leave() -> Iterator[None]:
    """A reader that has seen enough, such as `head`, ends the command without a word."""
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
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return

    def call() -> None:
        if arguments[0] not in TOOLS:
            raise ConfigError(f"Expected one of the tools {', '.join(TOOLS)}, got {arguments[0]!r}; see vlmft --help")
        TOOLS[arguments[0]](arguments[1:])

    run_entry(call)
