"""A run folder may be somebody else's: its config names classes of vlmft and vlmft_plugins, or none is imported.

The command line and conf/ are the user's, and name any class.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmft.config import contradictions
from vlmft.config.check import ConfigError, import_allowed
from vlmft.data.datasets.shapes import Shapes
from vlmft.data.make import make_dataset
from vlmft.run.folder import plain, read_run

PARTS = {"parts": {"x": {"dataset": "canary_module:Canary"}}}
HOSTILE: list[dict[str, Any]] = [
    {"data": {"dataset": "os:system"}},
    {"data": {"dataset": "os.system"}},
    {"data": {"dataset": "torch:load"}},
    {"data": {"dataset": "torch.hub:load"}},
    {"data": {"dataset": "pandas:read_pickle"}},
    {"data": {"dataset": "joblib:load"}},
    {"data": {"dataset": "builtins:eval"}},
    {"data": {"dataset": "canary_module:Canary"}},
    {"data": {"dataset": "canary_package.inner:Canary"}},
    {"data": {"dataset": "canary_module:Canary#vlmft.data.datasets.shapes:Shapes"}},
    {"data": {"dataset": "vlmftx.canary:Canary"}},
    {"data": {"dataset": "vlmft..canary_module:Canary"}},
    {"data": {"dataset": "vlmft.__main__:main"}},
    {"data": {"dataset": "vlmft.data.datasets.shapes:Shapes.__init__"}},
    {"data": {"dataset": "vlmft.data.datamodule:L.Trainer"}},
    {"data": {"dataset": "vlmft.config.check:importlib"}},
    {"data": {"dataset": "vlmft.config.check:import_allowed"}},
    {"data": {"dataset": "vlmft.data.ledger:Path"}},
    {"data": {"dataset": "vlmft.config.check:DictConfig"}},
    {"data": {"dataset": "vlmft.config.check:ConfigError"}},
    {"data": {"dataset": "vlmft.data.dataset:Dataset"}},
    {"data": {"dataset": "vlmft.data.datasets.shapes:Nothing"}},
    {"data": {"dataset": "${data.revision}", "revision": "canary_module:Canary"}},
    {"model": {"family": "subprocess:Popen"}},
    {"model": {"family": "pathlib:Path.unlink"}},
    {"model": {"family": "canary_module:Canary"}},
    {"data": {"_target_": "canary_module.Canary"}},
    {"data": {"dataset": "vlmft.data.mixture:Mixture", "options": PARTS}},
    {"model": {"_target_": "canary_module.Canary"}},
    {"model": {"trust_remote_code": True}},
    {"model": {"quantization": {"trust_remote_code": True}}},
    {"hydra": {"callbacks": {"x": {"_target_": "canary_module.Canary"}}}},
]
"""What each changes in a stored config, to have code of somebody else's imported. The canaries would leave a file."""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Importable modules that leave a file when they are imported."""
    chirp = tmp_path / "chirp"
    for name in ("canary_module", "canary_package/inner", "vlmftx/canary"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(chirp)!r}, 'w')\nclass Canary: pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield chirp
    for name in ("canary_module", "canary_package.inner", "canary_package", "vlmftx.canary", "vlmftx"):
        sys.modules.pop(name, None)


def foreign_modules() -> set[str]:
    return {name for name in sys.modules if name.split(".")[0] != "vlmft"}


@pytest.fixture(scope="module")
def settings(compose: Callable[..., Any]) -> dict[str, Any]:
    """Of a run. Not to be changed."""
    return dict(plain(compose("logger=none")))


@pytest.fixture
def stored(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The folder of a run with this in its config.yaml, met by a command that has named no class itself."""
    config = copy.deepcopy(settings)
    monkeypatch.setattr(contradictions, "NAMED_BY_USER", set())
    monkeypatch.setattr("vlmft.config.check.NAMED_BY_USER", contradictions.NAMED_BY_USER)

    def written(changes: dict[str, Any]) -> str:
        for group, values in changes.items():
            config.setdefault(group, {}).update(values)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return str(tmp_path)

    return written


def test_the_canary_sings(canary: Path) -> None:
    importlib.import_module("canary_module")
    assert canary.exists()


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
def test_refused_before_anything_foreign_is_imported(
    changes: dict[str, Any], canary: Path, stored: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    really = importlib.import_module

    def recorded(name: str, package: str | None = None) -> Any:
        asked.append(name)
        return really(name, package)

    folder, before = stored(changes), foreign_modules()
    monkeypatch.setattr(importlib, "import_module", recorded)
    with pytest.raises(ConfigError) as refused:
        make_dataset(read_run(folder).data)
    assert str(refused.value).startswith(next(iter(changes))) and "\n" not in str(refused.value)
    assert {name.split(".")[0] for name in asked} <= {"vlmft"}
    assert not canary.exists()
    assert foreign_modules() <= before


def test_the_same_run_with_classes_of_ours_is_read(stored: Callable[..., str]) -> None:
    assert isinstance(make_dataset(read_run(stored({})).data), Shapes)


def test_a_class_imported_into_an_allowed_module_is_refused_by_its_origin(stored: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"^data\.dataset: Expected .* got 'pathlib:Path'"):
        import_allowed("data.dataset", "vlmft.data.ledger:Path")


PLUGIN = """
import pathlib
from pathlib import PurePath
from vlmft.data.datasets.shapes import Shapes

class Mine(Shapes):
    def __init__(self, *, words: list[str] | None = None, ratio: float = 1.0, **rest: int) -> None:
        super().__init__()
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for package in ("vlmft_plugins", "birdwatch"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "mine.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("vlmft_plugins.mine", "vlmft_plugins", "birdwatch.mine", "birdwatch"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("package", ["vlmft_plugins", "birdwatch"])
def test_own_classes_come_from_any_package(plugin: None, package: str, compose: Callable[..., Any]) -> None:
    config = compose(f"data.dataset={package}.mine:Mine", "data.options.words=[a,b]", "data.options.ratio=2")
    assert issubclass(import_allowed("data.dataset", config.data.dataset), Shapes)


def test_a_stored_class_of_one_s_own(
    plugin: None, stored: Callable[..., str], compose: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of vlmft_plugins always; of another package once its owner says so, or names it again (as resume=true does)."""
    assert read_run(stored({"data": {"dataset": "vlmft_plugins.mine:Mine"}})).data.dataset == "vlmft_plugins.mine:Mine"
    folder = stored({"data": {"dataset": "birdwatch.mine:Mine"}})
    with pytest.raises(ConfigError, match=r"^data\.dataset: .*; if it is yours, set VLMFT_PLUGINS=birdwatch in the e"):
        read_run(folder)
    assert "birdwatch.mine" not in sys.modules
    with monkeypatch.context() as environment:
        environment.setenv("VLMFT_PLUGINS", "other,birdwatch")
        assert read_run(folder).data.dataset == "birdwatch.mine:Mine"
    with pytest.raises(ConfigError, match="VLMFT_PLUGINS"):
        read_run(folder)
    compose("data.dataset=birdwatch.mine:Mine")
    assert read_run(folder).data.dataset == "birdwatch.mine:Mine"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.options.words=[a,1]", "data.options.words: Expected "),
        ("data.options.ratio=true", "data.options.ratio: Expected float, got True"),
        ("data.options.rest=1", "data.options.rest: Mine has no such option"),
        ("data.options.other=1", "data.options.other: Mine has no such option; expected one of ratio, words"),
        ("data.dataset=vlmft_plugins.mine:PurePath", "data.dataset: Expected a class with index, read and to_sample"),
        ("data.dataset=vlmft_plugins.mine:pathlib", "data.dataset: Expected a class, got .* a module"),
        ("data.dataset=vlmft_plugins.miner:Mine", "data.dataset: 'vlmft_plugins.miner:Mine' cannot be imported"),
        ("data.dataset=os:system", "data.dataset: Expected a class, got 'os:system', a builtin"),
        ("data.dataset=birds.Birds", "data.dataset: Expected module.path:ClassName, got 'birds.Birds'"),
    ],
)
def test_mistakes_about_own_classes(plugin: None, override: str, said: str, compose: Callable[..., object]) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        compose("data.dataset=vlmft_plugins.mine:Mine", override)
