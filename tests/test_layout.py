"""The shape of the code base, read from its source: which way imports go, how long things are, what is not done.

Every rule is seen to fail on a small tree that breaks it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vlmft"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

ARROWS: dict[str, set[str]] = {
    "__init__": {"run", "training", "evaluation", "data", "config"},
    "__main__": {"tools"},
    "tools": {
        "labels",
        "predictions",
        "run",
        "training",
        "evaluation",
        "models",
        "data",
        "metrics",
        "config",
        "sample",
    },
    "sweep": {"run", "report", "pages", "training", "evaluation", "config", "sample"},
    "labels": {"servers", "predictions", "run", "report", "pages", "evaluation", "data", "metrics", "config", "sample"},
    "predictions": {"run", "evaluation", "data", "metrics", "config", "sample"},
    "run": {"servers", "report", "training", "evaluation", "models", "data", "metrics", "config", "sample"},
    "report": {"pages", "evaluation", "metrics", "config", "sample"},
    "pages": {"config"},
    "training": {"models", "metrics", "config", "sample"},
    "evaluation": {"servers", "models", "metrics", "config", "sample"},
    "servers": {"config", "sample"},
    "models": {"config", "sample"},
    "data": {"metrics", "config", "sample"},
    "metrics": {"sample"},
    "config": {"sample"},
    "sample": set(),
}
"""Room -> the rooms that it may import, beside itself."""

HEAVY = {"torch", "lightning", "torchmetrics", "transformers", "peft", "bitsandbytes", "datasets", "wandb"}
LIGHT_ROOMS = ("metrics", "config")
LIGHT_FILES = tuple(f"evaluation/{name}.py" for name in ("score", "compare", "intervals", "gains", "grading"))
HEAVY_ALL_THE_SAME = ("metrics/mean_score.py",)

BANNED_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}
CATCHES_ALL = ("training/tracking.py",)
"""A tracker must not be able to stop a run."""
IMPORTS_BY_NAME = ("config/check.py",)
TAKES_KEYWORDS = {
    ("training/module.py", "state_dict"): "Lightning's signature",
    ("training/tracking.py", "log_hyperparams"): "Lightning's signature",
    ("models/compiled.py", "_either"): "any decoder layer's signature",
    ("models/families/moondream2/architecture.py", "__post_init__"): "transformers' signature of configs",
    ("models/placeholders.py", "process_images"): "transformers' signature of processors",
    ("models/processor.py", "__init__"): "transformers' signature of processors",
    ("models/processor.py", "_get_arguments_from_pretrained"): "transformers' signature of processors",
}

Problems = Iterator[str]


class Source:
    """One file of the package."""

    def __init__(self, root: Path, path: Path) -> None:
        self.name = path.relative_to(root).as_posix()
        self.room = self.name.split("/")[0].removesuffix(".py")
        self.text = path.read_text(encoding="utf-8")
        self.nodes = list(ast.walk(ast.parse(self.text)))

    def imported(self) -> Iterator[str]:
        """Dotted names, those under TYPE_CHECKING and inside functions too; relative ones with their dots."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                yield from (f"{module}.{alias.name}" for alias in node.names) if module == "vlmft" else [module]

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        yield from (node for node in self.nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def sources(root: Path) -> list[Source]:
    return [Source(root, path) for path in sorted(root.rglob("*.py"))]


OURS = functools.cache(lambda: sources(PACKAGE))
"""Read once."""


def wrong_arrows(source: Source) -> Problems:
    if source.room not in ARROWS:
        yield f"{source.room} is no room of the layout"
        return
    for name in source.imported():
        if name.startswith("."):
            yield f"relative import {name}"
        if name.split(".")[0] == "benchmarks":
            yield f"{name} is not in the wheel"
        if name.split(".")[0] == "vlmft":
            room = name.split(".")[1]
            if room != source.room and room not in ARROWS[source.room]:
                yield f"{source.room} imports {name}"


def heavy_imports(source: Source) -> Problems:
    light = source.room in LIGHT_ROOMS or source.name in LIGHT_FILES
    if light and source.name not in HEAVY_ALL_THE_SAME:
        yield from (f"imports {name}" for name in source.imported() if name.split(".")[0] in HEAVY)


def too_long(source: Source) -> Problems:
    lines = len(source.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{lines} lines, more than {MAX_FILE_LINES}"
    for function in source.functions():
        assert function.end_lineno is not None
        length = function.end_lineno - function.lineno + 1
        first = function.body[0]
        if ast.get_docstring(function) is not None:
            assert first.end_lineno is not None
            length -= first.end_lineno - first.lineno + 1
        if length > MAX_FUNCTION_LINES:
            yield f"{function.name} has {length} lines, more than {MAX_FUNCTION_LINES}"


def banned_names(source: Source) -> Problems:
    yield from (f"named {part}" for part in source.name.removesuffix(".py").split("/") if part in BANNED_NAMES)


def catches_everything(source: Source) -> Problems:
    for node in source.nodes:
        if isinstance(node, ast.ExceptHandler) and source.name not in CATCHES_ALL:
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {ast.unparse(name) if name is not None else "" for name in caught}
            if names & {"", "Exception", "BaseException"}:
                yield f"line {node.lineno} catches everything"


def open_signatures(source: Source) -> Problems:
    for function in source.functions():
        if function.args.kwarg is not None and (source.name, function.name) not in TAKES_KEYWORDS:
            yield f"{function.name} takes **{function.args.kwarg.arg}"


def runs_foreign_code(source: Source) -> Problems:
    """No `eval`, no import by name outside the one checked place, no `trust_remote_code`."""
    for node in source.nodes:
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            by_name = called in ("importlib.import_module", "import_module") and source.name not in IMPORTS_BY_NAME
            if by_name or called in ("eval", "exec", "__import__", "os.system", "pickle.load", "pickle.loads"):
                yield f"line {node.lineno} calls {called}"
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False":
                    yield f"line {node.lineno} passes trust_remote_code"


RULES: list[Callable[[Source], Problems]] = [
    wrong_arrows,
    heavy_imports,
    too_long,
    banned_names,
    catches_everything,
    open_signatures,
    runs_foreign_code,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Callable[[Source], Problems]) -> None:
    found = OURS()
    assert len(found) >= 25
    assert {source.room for source in found} == set(ARROWS)
    assert [f"{source.name}: {problem}" for source in found for problem in rule(source)] == []


def test_arrows_have_no_circle() -> None:
    def below(room: str, seen: tuple[str, ...] = ()) -> None:
        assert room not in seen, f"{' -> '.join(seen)} -> {room}"
        for lower in ARROWS[room]:
            below(lower, (*seen, room))

    for room in ARROWS:
        below(room)
    assert not {"data", "run", "training", "evaluation"} & ARROWS["models"]
    assert not {"models", "run", "training", "evaluation"} & ARROWS["data"]


def test_exceptions_are_still_needed() -> None:
    functions = {(source.name, function.name) for source in OURS() for function in source.functions()}
    assert set(TAKES_KEYWORDS) <= functions
    for name in (*CATCHES_ALL, *IMPORTS_BY_NAME, *LIGHT_FILES, *HEAVY_ALL_THE_SAME):
        assert (PACKAGE / name).is_file()


LONG_FUNCTION = "def long() -> None:\n" + "    pass\n" * MAX_FUNCTION_LINES
LONG_DOCSTRING = 'def documented() -> None:\n    """Title.\n' + "    more\n" * 80 + '    """\n'

BROKEN: list[tuple[Callable[[Source], Problems], str, str, str]] = [
    (wrong_arrows, "data/a.py", "from vlmft.models.load import load_model", "data imports vlmft.models.load"),
    (wrong_arrows, "models/a.py", "import vlmft.data.datamodule", "models imports vlmft.data.datamodule"),
    (wrong_arrows, "models/a.py", "def f():\n    from vlmft import data", "models imports vlmft.data"),
    (wrong_arrows, "training/a.py", "from vlmft.data.datamodule import X", "training imports vlmft.data.datamodule"),
    (wrong_arrows, "training/a.py", "from vlmft.evaluation import predict", "training imports vlmft.evaluation"),
    (wrong_arrows, "evaluation/a.py", "from vlmft.training import loss", "evaluation imports vlmft.training"),
    (wrong_arrows, "report/a.py", "from vlmft.run import train", "report imports vlmft.run"),
    (wrong_arrows, "metrics/a.py", "from vlmft.config import schema", "metrics imports vlmft.config"),
    (wrong_arrows, "config/a.py", "from vlmft.data import base", "config imports vlmft.data"),
    (
        wrong_arrows,
        "sample.py",
        "if TYPE_CHECKING:\n    from vlmft.config import schema",
        "sample imports vlmft.config",
    ),
    (wrong_arrows, "models/a.py", "from . import load", "relative import ."),
    (wrong_arrows, "run/a.py", "from benchmarks.smoke import rows", "benchmarks.smoke is not in the wheel"),
    (wrong_arrows, "extras/a.py", "", "extras is no room of the layout"),
    (heavy_imports, "metrics/a.py", "def f():\n    import torch.nn", "imports torch.nn"),
    (heavy_imports, "evaluation/score.py", "from torchmetrics import Metric", "imports torchmetrics"),
    (heavy_imports, "config/a.py", "from transformers import AutoConfig", "imports transformers"),
    (too_long, "data/a.py", "\n" * (MAX_FILE_LINES + 1), "401 lines, more than 400"),
    (too_long, "data/a.py", LONG_FUNCTION, "long has 61 lines, more than 60"),
    (banned_names, "data/utils.py", "", "named utils"),
    (banned_names, "data/helpers/a.py", "", "named helpers"),
    (catches_everything, "run/a.py", "try:\n    f()\nexcept Exception:\n    pass", "line 3 catches everything"),
    (catches_everything, "run/a.py", "try:\n    f()\nexcept:\n    pass", "line 3 catches everything"),
    (
        catches_everything,
        "run/a.py",
        "try:\n    f()\nexcept (OSError, Exception):\n    pass",
        "line 3 catches everything",
    ),
    (open_signatures, "run/a.py", "class A:\n    def f(self, **kwargs): ...", "f takes **kwargs"),
    (
        runs_foreign_code,
        "run/a.py",
        "import importlib\nimportlib.import_module('x')",
        "line 2 calls importlib.import_module",
    ),
    (runs_foreign_code, "run/a.py", "eval('1')", "line 1 calls eval"),
    (runs_foreign_code, "run/a.py", "pickle.load(file)", "line 1 calls pickle.load"),
    (runs_foreign_code, "models/a.py", "load(x, trust_remote_code=yes)", "line 1 passes trust_remote_code"),
]


@pytest.mark.parametrize(("rule", "name", "text", "problem"), BROKEN)
def test_rule_fails_on_a_tree_that_breaks_it(
    rule: Callable[[Source], Problems], name: str, text: str, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    (found,) = sources(tmp_path)
    assert list(rule(found)) == [problem]


FINE = [
    (wrong_arrows, "run/a.py", "from vlmft.data.datamodule import X\nimport vlmft.models.load\nimport torch"),
    (wrong_arrows, "data/a.py", "from vlmft.data.datamodule import X\nfrom vlmft.sample import Sample"),
    (heavy_imports, "metrics/mean_score.py", "import torch"),
    (heavy_imports, "evaluation/predict.py", "import torch"),
    (too_long, "data/a.py", LONG_DOCSTRING),
    (catches_everything, "training/tracking.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (runs_foreign_code, "models/a.py", "model.eval()\nload(x, trust_remote_code=False)"),
]


@pytest.mark.parametrize(("rule", "name", "text"), FINE)
def test_rule_lets_what_is_fine(rule: Callable[[Source], Problems], name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    (found,) = sources(tmp_path)
    assert list(rule(found)) == []
