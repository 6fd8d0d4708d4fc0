"""Canary secrets, planted where people have them, are in nothing that a run leaves behind or prints."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CANARIES = {
    "WANDB_API_KEY": "c0ffee0123456789c0ffee0123456789c0ffee01",
    "HF_TOKEN": "hf_CanaryCanaryCanaryCanary0123456789",
    "GIGACHAT_CREDENTIALS": "canary credentials of no known form",
    "PROXY_PASSWORD": "canary-from-dotenv",
}
"""The last one comes from `.env`, the others from the environment."""
IN_YAML = {"a known form": "sk-CanaryCanaryCanaryCanary0123", "W&B's form": "badc0de0123456789badc0de0123456789badc0d"}
SETTINGS = (
    "model=tiny_qwen2vl", "data=shapes", "experiment=mine", "data.limit_train=8", "data.limit_val=4",
    "data.limit_test=4", "train.rows_per_step=4", "trainer.max_epochs=1", "evaluation.canary_rows=2",
    "trainer.accelerator=cpu", "name=run", "logger.log_adapter=true",
)  # fmt: skip

pytestmark = pytest.mark.slow


def hits(folder: Path, printed: str = "", but: tuple[Path, ...] = ()) -> tuple[int, list[str]]:
    """Number of files below a folder, and each place of a canary in them or in what was printed."""
    found, n_files = [f"printed: {name}" for name, canary in all_canaries() if canary in printed], 0
    for path in folder.rglob("*"):
        if path.is_file() and path not in but:
            n_files += 1
            content = path.read_bytes()
            found += [
                f"{path.relative_to(folder)}: {name}" for name, canary in all_canaries() if canary.encode() in content
            ]
    return n_files, found


def all_canaries() -> list[tuple[str, str]]:
    return [*CANARIES.items(), *IN_YAML.items()]


@dataclasses.dataclass
class Planted:
    """A folder to run in, with an experiment of one's own and a `.env` in it."""

    folder: Path

    def __post_init__(self) -> None:
        values = [*IN_YAML.values(), *CANARIES.values(), "fine"]
        self.experiment = self.folder / "conf" / "experiment" / "mine.yaml"
        self.experiment.parent.mkdir(parents=True)
        text = yaml.safe_dump({"logger": {"tags": values, "project": CANARIES["HF_TOKEN"]}})
        self.experiment.write_text("# @package _global_\n" + text)
        self.dotenv = self.folder / ".env"
        self.dotenv.write_text(f"PROXY_PASSWORD={CANARIES['PROXY_PASSWORD']}\n")
        (self.folder / "home").mkdir()

    def call(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: CANARIES[name] for name in CANARIES if name != "PROXY_PASSWORD"}
        environment |= {"HOME": str(self.folder / "home"), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
        # WANDB_SERVICE: set where an earlier test has run W&B in this process; then a child starts none of its own
        inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        command = [sys.executable, str(ROOT / script), "--config-dir", str(self.folder / "conf"), *arguments]
        return subprocess.run(
            command, env={**inherited, **environment}, cwd=self.folder, capture_output=True, text=True, timeout=900
        )

    def hits(self, printed: str) -> tuple[int, list[str]]:
        return hits(self.folder, printed, but=(self.experiment, self.dotenv))


def test_no_canary_anywhere(tmp_path: Path) -> None:
    planted = Planted(tmp_path)
    trained = planted.call("train.py", *SETTINGS)
    assert trained.returncode == 0, trained.stderr
    run = tmp_path / "outputs" / "tiny_qwen2vl-shapes" / "run"
    tags = yaml.safe_load((run / "config.yaml").read_text())["logger"]["tags"]
    assert tags == ["<redacted>"] * (len(CANARIES) + len(IN_YAML)) + ["fine"]
    assert list(run.rglob("*.wandb")) and (run / "report.html").is_file()
    evaluated = planted.call("evaluate.py", f"run={run}", "logger=wandb")
    assert evaluated.returncode == 0, evaluated.stderr
    n_files, found = planted.hits(trained.stdout + trained.stderr + evaluated.stdout + evaluated.stderr)
    assert n_files > 30
    assert found == []


def test_a_run_that_fails_says_none_either(tmp_path: Path) -> None:
    planted = Planted(tmp_path)
    said = ""
    for mistake in (
        f"logger.mode={CANARIES['GIGACHAT_CREDENTIALS']!r}",
        f"data.options.hf_token={CANARIES['HF_TOKEN']}",
        f"logger.tags=[{IN_YAML['a known form']}]",
        "name=${oc.env:PROXY_PASSWORD}",
    ):
        found = planted.call("train.py", *SETTINGS, mistake)
        assert found.returncode == 2 and found.stderr.startswith("error: ")
        said += found.stdout + found.stderr
    assert planted.hits(said) == (0, [])


def test_a_traceback_says_none_either(tmp_path: Path) -> None:
    code = (
        "import os\nfrom vlmft.config.entry import run_entry\n"
        "def main() -> None:\n    raise OSError('cannot log in with ' + os.environ['GIGACHAT_CREDENTIALS'])\n"
        "run_entry(main)\n"
    )
    environment = {**os.environ, **CANARIES, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1 and "OSError: cannot log in with <redacted>" in found.stderr
    assert hits(tmp_path, found.stdout + found.stderr) == (0, [])


def test_the_search_finds_what_is_planted(tmp_path: Path) -> None:
    """The defect: a file with each canary, bytes of no text around it."""
    for number, (_, canary) in enumerate(all_canaries()):
        (tmp_path / f"{number}.bin").write_bytes(b"\x00\xff" + canary.encode() + b"\x00")
    n_files, found = hits(tmp_path, CANARIES["HF_TOKEN"])
    assert n_files == len(all_canaries()) and len(found) == n_files + 1
