"""The commands as a user meets them: help, one line for a mistake, exit codes; nothing heavy imported, no litter."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from vlmft.config.entry import conf_dir, entry, explained, forced, register_schemas, run_entry
from vlmft.config.schema import EvaluateConfig, TrainConfig
from vlmft.sample import BadRowError

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "lightning", "transformers", "peft", "datasets", "wandb"}


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def expect_one_line(stderr: str) -> str:
    assert stderr.startswith("error: ") and stderr.endswith("\n") and stderr.count("\n") == 1, stderr
    return stderr


COMMANDS = {
    "train": [
        (["--help"], 0, "python train.py"),
        (["--cfg", "job"], 0, "rows_per_step: 8"),
        (["--cfg", "all", "--resolve"], 0, "rows_per_step: 8"),
        (["--cfg", "job", "--package", "train"], 0, "rows_per_step: 8"),
        (["--cfg", "hydra"], 0, "launcher:"),
        (["--cfg", "job", "trainer.precision=64-true"], 2, "trainer.precision: Expected auto, 32-true, bf16-mixed or"),
        (["--cfg", "all", "train.lr=-1"], 2, "train.lr: Expected a number > 0, got -1"),
        (["--cfg", "job", "+trainer.callback=[x]"], 2, "trainer.callback: no such setting; "),
        (["train.lrr=3"], 2, "train.lrr: no such setting; did you mean 'train.lr'?"),
        (["+train.lrr=3"], 2, "train.lrr: no such setting; did you mean 'train.lr'?"),
        (
            ["data.options.train_row=3"],
            2,
            "data.options.train_row: Shapes has no such option; did you mean",
        ),
        (["optim=adam"], 2, "optim: not known here; write train.optimizer=adamw"),
        (["data=chrtqa"], 2, "data=chrtqa: no such choice; did you mean 'chartqa'?"),
        (["train.lr=nan", "-m"], 2, "train.lr: Expected a number > 0, got nan"),
        (["--lr", "3"], 2, "lr: not known here; write train.lr=3"),
        (["--train.lr", "3e-4", "--cfg", "job"], 0, "lr: 0.0003"),
        (["--seedd", "3"], 2, "seedd: no such setting; did you mean 'seed'?"),
        (["--cfg", "jobb"], 2, "argument --cfg/-c: invalid choice: 'jobb'"),
        (["trainer=null"], 2, "trainer=null: Expected one of the group's choices, got null"),
    ],
    "evaluate": [
        (["--help"], 0, "python evaluate.py"),
        (["--cfg", "job", "model=tiny", "data=shapes"], 0, "split: test"),
        (["--cfg", "job"], 2, "run: Expected run=<run folder>, or model= and data="),
        ([], 2, "run: Expected run=<run folder>, or model= and data="),
        (["model=tiny", "data=shapes", "splt=val"], 2, "splt: no such setting; did you mean 'split'?"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, call_in_turn: Callable[..., list[Any]], tmp_path: Path) -> None:
    found = call_in_turn(f"{command}.py", [arguments for arguments, _, _ in COMMANDS[command]], tmp_path)
    for (arguments, code, said), called in zip(COMMANDS[command], found, strict=True):
        assert called.code == code, (arguments, called.stderr)
        if code == 0:
            assert said in called.stdout and called.stderr == "", arguments
        else:
            assert said in expect_one_line(called.stderr) and called.stdout == "", arguments
        assert "vlmft.config.entry" in called.modules
        assert not called.modules & HEAVY, arguments
        assert {*called.made} <= {"outputs"} if "-m" in arguments else not called.made, arguments


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_script_itself(command: str, tmp_path: Path) -> None:
    assert len((ROOT / f"{command}.py").read_text(encoding="utf-8").splitlines()) < 80
    assert f"python {command}.py" in run([str(ROOT / f"{command}.py"), "--help"], tmp_path).stdout
    done = run([str(ROOT / f"{command}.py"), "+seedd=1", "model=tiny", "data=shapes"], tmp_path)
    assert done.returncode == 2
    assert expect_one_line(done.stderr) == "error: seedd: no such setting; did you mean 'seed'?\n"


# From here on in this process, with a main function of the test's own.


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Hydra sets up logging, and we an environment variable."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    register_schemas()


def ended(main: Callable[[TrainConfig], None], *arguments: str) -> int:
    """The exit code of `python train.py ARGUMENTS` with this main."""
    sys.argv = ["train.py", *arguments]
    try:
        run_entry(entry("train", TrainConfig)(main))
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    return 0


def nothing(config: TrainConfig) -> None:
    pass


@pytest.fixture(autouse=True)
def own_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])


def test_main_gets_checked_dataclasses() -> None:
    seen: list[TrainConfig] = []
    assert ended(seen.append, "train.lr=1e-3", "data.options.train_rows=5", "name=mine") == 0
    assert [type(config) for config in seen] == [TrainConfig]
    assert (seen[0].train.lr, seen[0].data.options, seen[0].name) == (1e-3, {"train_rows": 5}, "mine")


def test_a_sweep_of_evaluations_gets_each_value(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EvaluateConfig] = []
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "-m", "model=tiny", "data=shapes", "model.lora.r=4,8"])
    run_entry(entry("evaluate", EvaluateConfig)(seen.append))
    assert [config.model.lora.r for config in seen if config.model is not None] == [4, 8]


def test_training_is_not_swept_in_this_process_with_the_test_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[TrainConfig] = []
    assert ended(seen.append, "-m", "hydra/launcher=basic", "model.lora.r=4,8", "test=true") == 2
    assert "test: Expected false in a sweep, got true; the winner alone" in expect_one_line(capsys.readouterr().err)
    assert seen == [] and [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_another_launcher_of_hydra(tmp_path: Path) -> None:
    seen: list[TrainConfig] = []
    assert ended(seen.append, "-m", "hydra/launcher=basic", "model.lora.r=4,8", "test=false") == 0
    assert [config.model.lora.r for config in seen] == [4, 8]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lr=3"], "lr: not known here; write train.lr=3"),
        (["seed=x"], "seed: Expected a whole number, got 'x'"),
        (["+seed.x=1"], "seed"),
        (["name=["], "name=[: Expected key=value"),
        (["~modell"], "modell"),
        (["experiment=nope"], "experiment=nope: no such choice; "),
        (["hydra/launcher=nope"], "hydra/launcher=nope: no such choice; "),
        (["logger=null"], "logger=null: Expected one of the group's choices, got null"),
        (["--lr=3"], "unrecognized arguments: --lr=3; settings are written without dashes"),
        (["--config-name", "nope"], "Cannot find primary config 'nope'"),
        (["--config-dir", "no/such"], "Additional config directory"),
        (["--shell-completion"], "Expecting one subcommand"),
        (["-m", "lora.r=4,8"], "lora.r: not known here; write model.lora.r=4,8"),
        (["-m", "name=a,b"], "name: Expected one name for a sweep, got name=a,b"),
        (["-m", "hydra.sweeper.max_batch_size=1", "seed=1,2"], "hydra.sweeper.max_batch_size: Expected null, got 1"),
        (["-m", "hydra.sweeper.paramss=x", "seed=1,2"], "hydra.sweeper.paramss: no such setting; a + before it"),
        (
            ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=x", "seed=1,2"],
            "error: hydra.sweeper.n_trials: Expected a whole number >= 1, got 'x'\n",
        ),
    ],
)
def test_mistake_on_the_command_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(nothing, *arguments) == 2
    assert said in expect_one_line(capsys.readouterr().err)


def test_broken_yaml_is_told_by_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/broken.yaml").write_text("# @package _global_\nseed: [3\n", encoding="utf-8")
    assert ended(nothing, "--config-dir", str(tmp_path), "experiment=broken") == 2
    line = expect_one_line(capsys.readouterr().err)
    assert f"{tmp_path / 'experiment/broken.yaml'}, line 3: expected" in line


def test_a_bad_row_is_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    def main(config: TrainConfig) -> None:
        raise BadRowError("shapes/train/000001: too long")

    assert ended(main) == 2
    assert expect_one_line(capsys.readouterr().err) == "error: shapes/train/000001: too long\n"


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    def main(config: TrainConfig) -> None:
        raise KeyboardInterrupt

    assert ended(main) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("error", [ValueError("ours"), RuntimeError("ours"), KeyError("ours")])
def test_a_defect_of_ours_is_no_mistake_of_the_user_s(error: Exception) -> None:
    def main(config: TrainConfig) -> None:
        raise error

    with pytest.raises(type(error), match="ours"):
        ended(main)


def test_no_pickle_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chirp = tmp_path / "chirp"

    class Canary:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
            return Path.touch, (chirp,)

    (tmp_path / "config.pickle").write_bytes(pickle.dumps(Canary()))
    assert ended(nothing, "--experimental-rerun", "config.pickle") == 2
    assert "reads a pickle" in expect_one_line(capsys.readouterr().err)
    assert not chirp.exists()


CALLBACK = """
from hydra.experimental.callback import Callback

class Noted(Callback):
    def __init__(self, place):
        self.place = place

    def on_job_start(self, config, **rest):
        open(self.place, "w").write(config.model.name)
"""


def test_hydra_s_section_is_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_callbacks.py").write_text(CALLBACK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[str | None] = []

    def main(config: TrainConfig) -> None:
        seen.append(os.environ.get("VLMFT_CANARY"))

    settings = ["+hydra.job.env_set={VLMFT_CANARY: sings}", "hydra.output_subdir=.hydra", "hydra/job_logging=default"]
    noted = f"{{_target_: own_callbacks.Noted, place: {tmp_path / 'noted'}}}"
    assert ended(main, f"+hydra.callbacks={{mine: {noted}}}", *settings, "hydra.job.name=mine") == 0
    assert seen == ["sings"] and "VLMFT_CANARY" not in os.environ
    assert (tmp_path / "noted").read_text(encoding="utf-8") == "tiny"
    assert (tmp_path / ".hydra/config.yaml").is_file() and (tmp_path / "mine.log").is_file()


def test_without_asking_hydra_writes_no_files(tmp_path: Path) -> None:
    assert ended(nothing) == 0
    assert list(tmp_path.iterdir()) == []


def test_dotenv_of_another_encoding_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".env").write_text("A_TOKEN=abc\n", encoding="utf-16")
    assert ended(nothing) == 2
    assert expect_one_line(capsys.readouterr().err).startswith("error: .env: Expected UTF-8 text")


def test_forced() -> None:
    assert forced("data.options.a=1") == "++data.options.a=1"
    assert forced("data.options={a: 1}") == "++data.options={a: 1}"
    assert forced("data_options.a=1") == "++data_options.a=1"
    for untouched in ("data.optionss.a=1", "data.path=x", "+data.options.a=1", "~data.options", "data=shapes"):
        assert forced(untouched) == untouched


@pytest.mark.parametrize(
    ("given", "to_hydra"),
    [
        ("data.path=/home/Jürgen/Bilder (1)", "data.path='/home/Jürgen/Bilder (1)'"),
        ("data.path=/данные/мои фото", "data.path='/данные/мои фото'"),
        ("data.options.answer=Ответ", "++data.options.answer='Ответ'"),
        ("data.options.allow_tokens=[a, б в]", "++data.options.allow_tokens=[a, 'б в']"),
        ("name=пять,six", "name='пять',six"),
        ("name='пять'", "name='пять'"),
    ],
)
def test_letters_beyond_ascii_get_quotes(given: str, to_hydra: str) -> None:
    assert forced(given) == to_hydra
    assert OverridesParser.create().parse_override(to_hydra).key_or_group == given.lstrip("+").partition("=")[0]


def test_explained_is_one_line_for_anything() -> None:
    assert explained(RuntimeError("one\n  two\nSee https://x.y\n")) == "one two"


def test_conf_dir_has_the_roots() -> None:
    assert {"train.yaml", "evaluate.yaml"} <= {path.name for path in conf_dir().glob("*.yaml")}


@pytest.mark.parametrize("target", ["canary_module.Canary", "hydra_plugins.vlmft.Nothing"])
def test_a_foreign_launcher_is_refused_in_one_line(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(nothing, "-m", f"hydra.launcher._target_={target}", "seed=1,2") == 2
    line = expect_one_line(capsys.readouterr().err)
    assert "plugin" in line and target in line
