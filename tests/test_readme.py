"""Every command in the README is composed here or run, and what it says of the code is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from vlmft.config.tool_schema import CheckConfig, TraceConfig
from vlmft.config.tools import compose_tool
from vlmft.tools.cli import COMMANDS as TOOLS

ROOT = Path(__file__).resolve().parent.parent
MAX_README_LINES = 150
OTHER_COMMANDS = {"pip", "pytest"}
PAGES: dict[str, int] = {
    "README.md": 20,
    "docs/architecture.md": 1,
    "docs/clusters.md": 9,
    "docs/data.md": 3,
    "docs/evaluation.md": 19,
    "docs/extending.md": 1,
    "docs/failures.md": 0,
    "docs/from_other_tools.md": 3,
    "docs/glossary.md": 0,
    "docs/models.md": 0,
    "docs/notebook.md": 0,
    "docs/quickstart.md": 8,
    "docs/security.md": 0,
    "docs/sweeps.md": 4,
    "docs/tracking.md": 4,
    "docs/training.md": 14,
}
"""Page -> how many commands it has at least."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str) -> list[list[str]]:
    """The command lines of all bash blocks, without comments, one list of words each."""
    blocks = re.findall(r"```bash\n(.*?)```", text_of(page), flags=re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.strip() and line[0] != "#"]
    parts = [part.strip() for line in lines for part in re.split(r"\s#\s", line)[0].split("&&")]
    inline = re.findall(r"`((?:python (?:train|evaluate)\.py|vlmft trace) [^`]*)`", text_of(page))
    return [without_starter(shlex.split(command)) for command in [*parts, *inline] if "<" not in command]


def without_starter(words: list[str]) -> list[str]:
    """What torchrun, srun or sbatch --wrap is asked to start."""
    if "--wrap" in words:
        return shlex.split(words[words.index("--wrap") + 1])
    if words[0] not in ("torchrun", "srun"):
        return words
    return ["python", *words[next(place for place, word in enumerate(words) if word.endswith(".py")) :]]


COMMANDS = {" ".join(words): words for page in PAGES for words in commands(page)}


def first_of_sweep(word: str) -> str:
    """`key=4,8` as `key=4`: what the first job of a sweep may get."""
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return word
    if override.is_interval_sweep():
        return f"{override.key_or_group}={override.value().start}"
    return f"{override.key_or_group}={next(override.sweep_string_iterator())}"


def test_commands_are_found() -> None:
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")} | {"README.md"} == PAGES.keys()
    assert {page: len(commands(page)) for page, least in PAGES.items() if len(commands(page)) < least} == {}
    assert [words[:2] for words in commands("README.md")[:2]] == [["pip", "install"], ["python", "train.py"]]


def test_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_command_composes(words: list[str], compose, compose_evaluate, tmp_path: Path) -> None:
    """A folder that stands for the reader's own is replaced by one that exists; `--cfg job` prints what is composed."""
    overrides = [
        re.sub(r"=[A-Z_]*(FOLDER|RUN)$", f"={tmp_path}", w)
        for w in words[2:]
        if w not in ("--cfg", "job", "-m", "--help")
    ]
    overrides = [first_of_sweep(w) for w in overrides if not w.startswith("hydra")] if "-m" in words else overrides
    if words[1:2] == ["train.py"]:
        assert compose(*overrides).model.name
    elif words[1:2] == ["evaluate.py"]:
        config = compose_evaluate(*overrides)
        assert config.run is not None or config.model is not None
    elif words[:2] == ["vlmft", "check"]:
        assert compose_tool("check", CheckConfig, overrides).data.name
    elif words[:2] == ["vlmft", "trace"]:
        assert compose_tool("trace", TraceConfig, overrides).data.name
    elif words[0] == "vlmft":
        assert words[1] in TOOLS
    else:
        assert words[0] in OTHER_COMMANDS


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    linked = re.findall(r"\]\(((?!https?:|#)[^)#]+)[^)]*\)", text_of(page))
    assert [path for path in linked if not (ROOT / page).parent.joinpath(path).exists()] == []


def test_tree_names_what_is_there() -> None:
    """Each file that the annotated tree names exists."""
    tree = text_of("docs/architecture.md").partition("```\n")[2].partition("```")[0]
    named = re.findall(r"\b(\w+\.py)\b", tree)
    assert len(named) >= 15
    there = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert not [name for name in named if name not in there]


def test_setup_lists_every_package() -> None:
    """setup.cfg names packages one by one, because conf/ becomes vlmft.conf; a new folder must not be forgotten."""
    listed = set(re.findall(r"^    (vlmft[\w.]*)$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), flags=re.M))
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "vlmft").rglob("__init__.py")}
    assert listed == found | {"vlmft.conf"}


DATA_PAGE = text_of("docs/data.md")


def test_every_form_of_the_data_page_names_a_command_and_a_test() -> None:
    table = DATA_PAGE.partition("<!-- forms:begin -->")[2].partition("<!-- forms:end -->")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ") and "tried by" not in line]
    rows = [row for row in rows if not row[0].startswith("|---")]
    assert len(rows) >= 13
    for form, command, tests in rows:
        (test,) = re.findall(r"`(tests/[\w/]+\.py)`", tests)
        source = (ROOT / test).read_text(encoding="utf-8")
        assert "def test_" in source, f"{form}: {test}"
        assert "all" in command or set(re.findall(r"data=(\w+)", command)) <= {
            "columns",
            "messages",
            "imagefolder",
            "extraction",
            "detection",
        }
