"""What Weights & Biases got of a run, read from the offline run's own file; and what a run gets of a W&B that fails."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.schema import TrainConfig
from vlmft.run.train import train
from vlmft.training.metrics_file import read_metrics
from vlmft.training.module import VLMModule
from vlmft.training.tracking import WANDB_FILE

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "cache.answers=false",
    "model=tiny_qwen2vl", "data=shapes", "data.limit_train=24", "data.limit_val=8", "data.limit_test=8",
    "train.rows_per_step=4", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
    "evaluation.canary_rows=0", "evaluation.rows_per_batch=8", "preflight=false", "name=run",
)  # fmt: skip
FIRST, WHOLE, LAST = 2, 1, 4
"""Kinds of a piece of a record: its first one, the only one, its last one."""
KEY = "0123456789abcdef0123456789abcdef01234567"

pytestmark = pytest.mark.slow


def records(folder: Path) -> Iterator[Any]:
    """Of an offline run's log: after a header of 7 bytes, blocks of 32 KiB with pieces of records in them."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("run-*.wandb")
    content, at, record = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        piece = content[at + 7 : at + 7 + length]
        record, at = (piece if kind in (FIRST, WHOLE) else record + piece), at + 7 + length
        if kind in (WHOLE, LAST):
            yield wandb_internal_pb2.Record.FromString(record)


def of_kind(folder: Path, kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records(folder) if record.WhichOneof("record_type") == kind]


def values(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def history(folder: Path) -> list[dict[str, Any]]:
    """Logged rows without W&B's own columns and the table of sample answers."""
    rows = [values(row.item) for row in of_kind(folder, "history")]
    return [{key: value for key, value in row.items() if not key.startswith(("_", "val/samples"))} for row in rows]


def offline_part(run: Path) -> Path:
    """The one offline run in a run folder, when W&B's own process has written it to its end."""
    (found,) = (run / "wandb").glob("offline-run-*")
    until = time.monotonic() + 30
    while not of_kind(found, "exit") and time.monotonic() < until:
        time.sleep(0.1)
    return found


def table(part: Path) -> dict[str, Any]:
    (path,) = part.glob("files/media/table/test/*.table.json")
    return dict(json.loads(path.read_text()))


def kept(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl as W&B ought to have them."""
    lines = read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="module")
def tracked(compose: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        own = ("logger.log_adapter=true", "logger.table_rows=5", "logger.tags=[one,two]")
        return train(compose(*SETTINGS, *own, f"output_root={root}"))


def test_the_run_is_named_grouped_and_has_its_config(tracked: Path) -> None:
    (run,) = of_kind(offline_part(tracked), "run")
    name = "tiny_qwen2vl-shapes-run"
    assert (run.display_name, run.run_group, run.job_type, list(run.tags)) == (name, name, "train", ["one", "two"])
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["data"]["limit_train"] == 24 and config["train"]["lr"] == 1.5e-3 and config["seed"] == 0
    assert json.loads((tracked / WANDB_FILE).read_text())["id"] == run.run_id
    (end,) = of_kind(offline_part(tracked), "exit")
    assert end.exit_code == 0


def test_every_row_of_the_metrics_file_is_there_and_what_was_promised_is_in_it(tracked: Path) -> None:
    rows = history(offline_part(tracked))
    expected = kept(tracked)
    assert rows[: len(expected)] == expected and len(expected) == 14  # twelve windows, two validations
    promised = "loss lr gradient_norm rows_per_second tokens_per_second supervised_tokens_per_second data_wait_share"
    assert {f"train/{name}" for name in (*promised.split(), "host_memory_bytes")} <= rows[0].keys()
    assert rows[0]["train/tokens_per_second"] > rows[0]["train/supervised_tokens_per_second"] > 0
    assert rows[0]["train/host_memory_bytes"] > 1e8
    validated = [row for row in rows if "val/loss" in row]
    assert [row["val/shapes/n"] for row in validated] == [8.0, 8.0]
    assert {"val/shapes/count_accuracy", "step"} <= validated[0].keys()


def test_the_best_value_is_what_the_summary_shows(tracked: Path) -> None:
    part = offline_part(tracked)
    defined = {metric.name or metric.glob_name: metric for metric in of_kind(part, "metric")}
    assert {metric.step_metric for metric in defined.values()} == {"step"}
    assert defined["val/shapes/count_accuracy"].summary.max
    assert defined["val/loss"].summary.min and defined["train/loss"].summary.min and "*" in defined
    shown: dict[str, Any] = {}
    for summary in of_kind(part, "summary"):
        shown |= values(summary.update)
    losses = [row["val/loss"] for row in kept(tracked) if "val/loss" in row]
    assert shown["val/loss"] == {"min": min(losses)}
    accuracies = [row["val/shapes/count_accuracy"] for row in kept(tracked) if "val/loss" in row]
    assert shown["val/shapes/count_accuracy"] == {"max": max(accuracies)} and shown["val/best"] == max(accuracies)
    assert {"test/shapes/count_accuracy/untuned", "test/difference/untuned-tuned"} <= shown.keys()


def test_two_sample_answers_after_each_validation(tracked: Path) -> None:
    part = offline_part(tracked)
    found = [json.loads(path.read_text()) for path in sorted(part.glob("files/media/table/val/samples*.table.json"))]
    assert len(found) == 2 and all(len(samples["data"]) == 2 for samples in found)
    assert found[0]["columns"] == ["id", "question", "references", "answer"]
    assert all(row[1] == "How many items are there in the image?" for samples in found for row in samples["data"])


def test_the_table_holds_the_first_rows_with_small_pictures(tracked: Path) -> None:
    part = offline_part(tracked)
    columns, rows = table(part)["columns"], table(part)["data"]
    assert columns[:4] == ["id", "image 1", "question", "references"]
    arms = ("untuned", "fewshot", "tuned")
    assert columns[4:] == [f"{arm} {what}" for arm in arms for what in ("answer", "score")]
    answers = {arm: (tracked / "predictions" / f"{arm}.jsonl").read_text().splitlines() for arm in ("untuned", "tuned")}
    texts = {arm: {line["id"]: line for line in map(json.loads, lines)} for arm, lines in answers.items()}
    assert len({row[0] for row in rows}) == 5
    assert [row[4] for row in rows] == [texts["untuned"][row[0]]["text"] for row in rows]
    assert [row[8] for row in rows] == [texts["tuned"][row[0]]["text"] for row in rows]
    (stored,) = [
        artifact
        for artifact in of_kind(part, "artifact")
        if artifact.type == "run_table" and "samples" not in artifact.name
    ]
    pictures = [Path(item.local_path) for item in stored.manifest.contents if item.path.endswith(".jpg")]
    assert 1 <= len(pictures) <= 5
    for picture in pictures:
        assert picture.is_relative_to(tracked)  # and not in the home folder, where it would be lost to `wandb sync`
        assert max(PIL.Image.open(picture).size) <= 256


def test_the_adapter_is_an_artifact(tracked: Path) -> None:
    (adapter,) = [artifact for artifact in of_kind(offline_part(tracked), "artifact") if artifact.type == "model"]
    files = {item.path: Path(item.local_path) for item in adapter.manifest.contents}
    assert {"adapter_model.safetensors", "adapter_config.json", "fingerprint.json"} <= files.keys()
    assert files["adapter_model.safetensors"].samefile(tracked / "adapter" / "adapter_model.safetensors")


def test_an_evaluation_is_linked_to_its_training_run(tracked: Path, evaluate_small: Any) -> None:
    quiet = evaluate_small(f"run={tracked}", "split=val")
    assert not (quiet.folder / "wandb").exists()  # only where it is asked for
    facts = json.loads((quiet.folder / "report.json").read_text())["run"]
    assert "W&B" not in facts and str(offline_part(tracked).name) in facts["W&B of the training"]
    found = evaluate_small(f"run={tracked}", "logger=wandb")
    (run,) = of_kind(offline_part(found.folder), "run")
    (trained,) = of_kind(offline_part(tracked), "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["training_run"] == trained.run_id != run.run_id
    assert (run.job_type, run.run_group) == ("evaluate", trained.run_group)
    (_, numbers) = history(offline_part(found.folder))
    assert "test/shapes/count_accuracy/tuned" in numbers
    rows = [[row[0] for row in table(offline_part(folder))["data"]] for folder in (tracked, found.folder)]
    assert rows[0] == rows[1][:5]  # the same rows each time
    assert str(offline_part(found.folder)) in found.output


def test_a_run_that_goes_on_has_one_whole_history(compose: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = (*SETTINGS, "test=false", "logger=[wandb,csv]", f"output_root={tmp_path}")
    before = VLMModule.on_train_batch_start

    def signalling(self: VLMModule, batch: object, batch_idx: int) -> None:
        before(self, batch, batch_idx)
        if self.trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VLMModule, "on_train_batch_start", signalling)
        with pytest.raises(SystemExit):
            train(compose(*config))
    run = tmp_path / "tiny_qwen2vl-shapes" / "run"
    first = offline_part(run)
    (end,) = of_kind(first, "exit")
    assert end.exit_code == 143
    assert len(history(first)) == 10  # nine windows and a validation
    train(compose(*config, "resume=true"))
    second = offline_part(run)
    assert second.name != first.name and (run / "wandb" / "replaced" / first.name).is_dir()
    rows, expected = history(second), kept(run)
    assert rows[: len(expected)] == expected and len(expected) == 14
    windows = [row["step"] for row in rows if "train/loss" in row]
    assert windows == list(range(12))  # none twice, none left out
    lines = (run / "csv" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 14


def test_a_defect_would_show(tracked: Path) -> None:
    """The reader sees a row that is there twice."""
    rows = history(offline_part(tracked))
    assert [row["step"] for row in [*rows, rows[3]] if "train/loss" in row] != list(range(12))


# --- a W&B that cannot be reached, or hangs


def command(root: Path, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *SETTINGS, "test=false", f"output_root={root}", *overrides]


def adapter(root: Path) -> str:
    path = root / "tiny_qwen2vl-shapes" / "run" / "adapter" / "adapter_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir()
    # WANDB_SERVICE: the address of this process's own service, which a child would use instead of starting one
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return {**inherited, "HF_HUB_OFFLINE": "1", "HOME": str(home)}


def test_unreachable(tracked: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    environment |= {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    own = command(tmp_path, "logger.init_timeout_seconds=5")
    found = subprocess.run(own, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    assert "logging offline" in found.stderr
    assert "s spent waiting for it)" in found.stdout
    assert adapter(tmp_path) == adapter(tracked.parents[1])
    run = tmp_path / "tiny_qwen2vl-shapes" / "run"
    assert history(offline_part(run))[:14] == kept(run)
    assert KEY not in found.stdout + found.stderr


def test_hung(tracked: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """Its service process is stopped, so that it never answers again: W&B's own hook at exit would wait for ever."""
    log = tmp_path / "log"
    with log.open("w") as output:
        own = command(tmp_path, "logger.finish_timeout_seconds=1")
        run = subprocess.Popen(own, env=environment, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT)
        try:
            while "  wandb  " not in log.read_text():
                assert run.poll() is None, log.read_text()
                time.sleep(0.05)
            (service,) = services_of(run.pid)
            os.kill(service, signal.SIGSTOP)
            assert run.wait(timeout=600) == 0
        finally:
            run.kill()
    assert "wandb: no answer in 31 s; going on with metrics.jsonl alone" in log.read_text()
    assert services_of(run.pid) == []
    assert adapter(tmp_path) == adapter(tracked.parents[1])
    assert len(kept(tmp_path / "tiny_qwen2vl-shapes" / "run")) == 14


def services_of(pid: int) -> list[int]:
    """W&B's service processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"wandb-core" in path.read_bytes() and f"--pid\0{pid}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended meanwhile
            continue
    return found
