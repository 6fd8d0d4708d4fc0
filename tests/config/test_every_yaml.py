"""Each file under conf/ composes alone and passes the check; what an experiment says wins over the defaults."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml

from vlmft.config import schema, tool_schema
from vlmft.config.check import checked
from vlmft.config.entry import conf_dir
from vlmft.config.tools import compose_tool

FILES = sorted(path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml"))
ROOTS: dict[str, tuple[Any, list[str]]] = {
    "train": (schema.TrainConfig, []),
    "evaluate": (schema.EvaluateConfig, ["model=tiny", "data=shapes"]),
    "trace": (tool_schema.TraceConfig, []),
    "cache": (tool_schema.CacheToolConfig, []),
    "check": (tool_schema.CheckConfig, ["data=shapes"]),
    "ask": (tool_schema.AskConfig, ["model=tiny", "image=x.png", "question=why?"]),
    "play": (tool_schema.PlayConfig, ["run=."]),
    "grade": (tool_schema.GradeConfig, ["run=."]),
    "annotate": (tool_schema.AnnotateConfig, ["review=true"]),
    "judge": (tool_schema.JudgeConfig, ["run=."]),
    "export": (tool_schema.ExportConfig, ["run=.", "to=no/such/folder"]),
}
"""Root file -> its schema, and what it needs to be said beside it."""
NEEDED = {"auto": ["model.path=folder"]}
"""Choice -> what it leaves to the user."""
CHOICES = [file for file in FILES if file.parent != Path()]


def test_every_file_is_found() -> None:
    seen = [name for _, _, names in os.walk(conf_dir()) for name in names]
    assert len(FILES) == len(seen) >= 10, "a file that does not end in .yaml is invisible to Hydra"
    assert {file.stem for file in FILES if file.parent == Path()} == set(ROOTS)
    assert {file.parts[0] for file in CHOICES} == {
        "model",
        "data",
        "trainer",
        "callbacks",
        "logger",
        "experiment",
        "debug",
    }
    assert all(len(file.parts) == 2 for file in CHOICES)


@pytest.mark.parametrize("root", ROOTS)
def test_root_composes(root: str, compose: Callable[..., Any]) -> None:
    schema_class, needed = ROOTS[root]
    assert isinstance(compose_tool(root, schema_class, needed), schema_class)


@pytest.mark.slow
@pytest.mark.parametrize("file", CHOICES, ids=str)
def test_choice_composes(file: Path, compose: Callable[..., Any]) -> None:
    config = compose(f"{file.parent}={file.stem}", *NEEDED.get(file.stem, []))
    own = yaml.safe_load((conf_dir() / file).read_text(encoding="utf-8"))
    group = config if file.parts[0] in ("experiment", "debug") else getattr(config, file.parts[0])
    if file == Path("callbacks/none.yaml"):
        assert own is None and group == {}
        return
    if file.parts[0] in ("model", "data"):
        assert group.name == file.stem
    said = {key: value for key, value in own.items() if key != "defaults" and value != "???"}
    assert said, f"{file} sets nothing"
    assert [*differing(said, group)] == []


def differing(said: dict[str, Any], group: Any) -> Iterator[str]:
    """Keys of a file whose values did not arrive; interpolations are left out."""
    for key, value in said.items():
        found = group[key] if isinstance(group, dict) else getattr(group, key)
        if isinstance(value, dict):
            yield from differing(value, found)
        elif isinstance(value, (str, int, float, bool)) and not str(value).startswith("${"):
            same = getattr(found, "name", found) == (float(value) if isinstance(found, float) else value)
            yield from () if same else (key,)


def test_every_file_begins_by_saying_what_it_is_for() -> None:
    heads = {file: (conf_dir() / file).read_text(encoding="utf-8").splitlines()[:2] for file in FILES}
    assert [
        file
        for file, lines in heads.items()
        if not any(line.startswith("# ") and not line.startswith("# @package") for line in lines)
    ] == []


def composed_from(folder: Path, *overrides: str) -> schema.TrainConfig:
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        return checked(hydra.compose("train", list(overrides)), schema.TrainConfig)


@pytest.fixture
def conf_with_seed(tmp_path: Path, compose: Callable[..., Any]) -> Path:
    """A copy of conf/ whose train.yaml says seed: 0 and whose experiment/mine.yaml says seed: 7."""
    folder = tmp_path / "conf"
    shutil.copytree(conf_dir(), folder)
    with (folder / "train.yaml").open("a", encoding="utf-8") as file:
        file.write("\nseed: 0\n")
    (folder / "experiment/mine.yaml").write_text("# @package _global_\nseed: 7\n", encoding="utf-8")
    return folder


def test_an_experiment_s_seed_wins_and_the_command_line_s_wins_over_it(conf_with_seed: Path) -> None:
    assert composed_from(conf_with_seed).seed == 0
    assert composed_from(conf_with_seed, "experiment=mine").seed == 7
    assert composed_from(conf_with_seed, "experiment=mine", "seed=0").seed == 0


def test_it_would_lose_with_self_last(conf_with_seed: Path) -> None:
    """The defect: the same file with `_self_` at the end of its defaults."""
    path = conf_with_seed / "train.yaml"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines.remove("  - _self_\n")
    lines.insert(lines.index("  - experiment: null\n") + 1, "  - _self_\n")
    path.write_text("".join(lines), encoding="utf-8")
    assert composed_from(conf_with_seed, "experiment=mine").seed == 0
