"""A config names classes, and classes are code: only ours, or the user's own vlmft_plugins, are ever imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException

from vlmft.config.check import ConfigError, import_allowed
from vlmft.config.entry import explained
from vlmft.data.datasets.shapes import Shapes

HOSTILE = [
    "data.dataset=os:system",
    "data.dataset=os.system",
    "data.dataset=torch:load",
    "data.dataset=torch.hub:load",
    "data.dataset=pandas:read_pickle",
    "data.dataset=joblib:load",
    "data.dataset=builtins:eval",
    "data.dataset=canary_module:Canary",
    "data.dataset=canary_package.inner:Canary",
    "data.dataset='canary_module:Canary#vlmft.data.datasets.shapes:Shapes'",
    "data.dataset=vlmftx.canary:Canary",
    "data.dataset=vlmft..canary_module:Canary",
    "data.dataset=vlmft.__main__:main",
    "data.dataset='vlmft.data.datasets.shapes:Shapes.__init__'",
    "data.dataset=vlmft.data.datamodule:L.Trainer",
    "data.dataset=vlmft.config.check:importlib",
    "data.dataset=vlmft.config.check:import_allowed",
    "data.dataset=vlmft.data.ledger:Path",
    "data.dataset=vlmft.config.check:DictConfig",
    "data.dataset=vlmft.config.check:ConfigError",
    "data.dataset=vlmft.data.dataset:Dataset",
    "data.dataset=vlmft.data.datasets.shapes:Nothing",
    "model.family=subprocess:Popen",
    "model.family=pathlib:Path.unlink",
    "model.family=canary_module:Canary",
    "+data._target_=canary_module.Canary",
    "+model._target_=canary_module.Canary",
    "+model.trust_remote_code=true",
    "++model.quantization.trust_remote_code=true",
    "+hydra.callbacks.x._target_=canary_module.Canary",
    "++hydra.callbacks.x={_target_: canary_module.Canary}",
    "++hydra.job_logging.handlers.x={'()': canary_module.Canary}",
    "++hydra.callbacks=${data}",
    "++hydra.callbacks={x: ${data.options}}",
    "++hydra.job_logging=${data.options}",
    "hydra.job.env_set={LD_PRELOAD: canary_module}",
    "+hydra.job.env_set.PATH=canary_module",
    "++hydra.job.env_set.PATH={}",
    "++hydra.job.env_set=${hydra.sweeper}",
    "++hydra.job.env_copy=[HOME]",
    "++hydra.launcher.x={_target_: canary_module.Canary}",
    "++hydra.sweeper.x={_target_: canary_module.Canary}",
    "+hydra.sweeper._args_=[{_target_: canary_module.Canary}]",
    "++hydra.sweeper.params={x: {_target_: canary_module.Canary}}",
]
"""Each tries to have code of somebody else's imported or called. The canaries would leave a file."""


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


@pytest.fixture(scope="module", autouse=True)
def good_config_first(compose: Callable[..., object]) -> None:
    """What a good config imports is there before anything is counted."""
    compose()


def test_the_canary_sings(canary: Path) -> None:
    importlib.import_module("canary_module")
    assert canary.exists()


@pytest.mark.parametrize("override", HOSTILE)
def test_refused_before_anything_foreign_is_imported(
    override: str, canary: Path, compose: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    really = importlib.import_module

    def recorded(name: str, package: str | None = None) -> Any:
        asked.append(name)
        return really(name, package)

    before = foreign_modules()
    monkeypatch.setattr(importlib, "import_module", recorded)
    with pytest.raises((ConfigError, HydraException)) as refused:
        compose(override)
    error = refused.value
    line = str(error) if isinstance(error, ConfigError) else explained(error)
    assert override.lstrip("+").split("=")[0] in line and "\n" not in line
    assert {name.split(".")[0] for name in asked} <= {"vlmft", "hydra"}  # Hydra looks for its own conf folder
    assert not canary.exists()
    assert foreign_modules() <= before


@pytest.mark.parametrize(
    "content",
    [
        "hydra: {callbacks: {x: {_target_: canary_module.Canary}}}",
        'hydra: {job_logging: {handlers: {x: {"()": canary_module.Canary}}}}',
        'hydra: {hydra_logging: {formatters: {x: {"()": canary_module.Canary}}}}',
        "hydra: {callbacks: '${data.options}'}\ndata: {options: {x: {_target_: canary_module.Canary}}}",
        "hydra: {callbacks: {x: '${data.options}'}}\ndata: {options: {_target_: canary_module.Canary}}",
        "hydra: {job: {env_set: {PATH: /evil}}}",
        "hydra: {job: {env_set: {PATH: {a: b}}}}",
        "hydra: {job: {env_set: '${hydra.sweeper}'}, sweeper: {PATH: /evil}}",
        "hydra: {job: {env_copy: [HOME]}}",
        "hydra: {job: {env_copy: {HOME: {}}}}",
        "data: {dataset: 'canary_module:Canary'}",
        "data: {_target_: canary_module.Canary}",
    ],
)
def test_an_experiment_file_from_elsewhere_runs_nothing(
    content: str, canary: Path, compose: Callable[..., object], tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/gift.yaml").write_text(f"# @package _global_\n{content}\n", encoding="utf-8")
    with pytest.raises((ConfigError, HydraException)):
        compose(f"hydra.searchpath=[file://{tmp_path}]", "experiment=gift")
    assert not canary.exists()


def test_a_class_imported_into_an_allowed_module_is_refused_by_its_origin() -> None:
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
    (tmp_path / "vlmft_plugins").mkdir()
    (tmp_path / "vlmft_plugins/mine.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("vlmft_plugins.mine", "vlmft_plugins"):
        sys.modules.pop(name, None)


def test_own_classes_come_from_vlmft_plugins(plugin: None, compose: Callable[..., Any]) -> None:
    config = compose("data.dataset=vlmft_plugins.mine:Mine", "data.options.words=[a,b]", "data.options.ratio=2")
    assert issubclass(import_allowed("data.dataset", config.data.dataset), Shapes)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.options.words=[a,1]", "data.options.words: Expected "),
        ("data.options.ratio=true", "data.options.ratio: Expected float, got True"),
        ("data.options.rest=1", "data.options.rest: Mine has no such option"),
        ("data.options.other=1", "data.options.other: Mine has no such option; expected one of ratio, words"),
        ("data.dataset=vlmft_plugins.mine:PurePath", "data.dataset: Expected .* got 'pathlib:PurePath'"),
        ("data.dataset=vlmft_plugins.mine:pathlib", "data.dataset: Expected a class, got .* a module"),
        ("data.dataset=vlmft_plugins.miner:Mine", "data.dataset: 'vlmft_plugins.miner:Mine' cannot be imported"),
    ],
)
def test_mistakes_about_own_classes(plugin: None, override: str, said: str, compose: Callable[..., object]) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        compose("data.dataset=vlmft_plugins.mine:Mine", override)
