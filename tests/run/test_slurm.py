"""Two virtual nodes of a real SLURM on this machine: a run and a sweep there end as they do without it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("slurmctld") is None, reason="needs slurmctld, slurmd, slurm-client"),
]

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "cache.answers=false",
    "model=tiny", "data.limit_train=22", "data.limit_val=13", "data.limit_test=24", "train.rows_per_step=5",
    "trainer.max_epochs=1", "trainer.log_every_n_steps=1", "evaluation.rows_per_batch=4", "evaluation.canary_rows=2",
    "trainer.accelerator=cpu", "train.lr=1e-4", "logger=none", "name=run", "trainer.threads=1",
)  # fmt: skip
CONFIG = """
ClusterName=two
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/slurmctld
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=requeue_delay=1,batch_sched_delay=1
JobRequeue=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """That of a user of the cluster, whose daemons run as long as this lasts."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("slurmctld", "n1", "n2"):
        (folder / name).mkdir()
    config = folder / "slurm.conf"
    ports = {name: free_port() for name in ("port", "port1", "port2")}
    config.write_text(CONFIG.format(host=socket.gethostname().split(".")[0], folder=folder, **ports))
    path = f"{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}"
    # Virtual nodes have names that no machine has: rank 0's address is given.
    mine = {**os.environ, "SLURM_CONF": str(config), "MASTER_ADDR": "127.0.0.1", "PATH": path, "OMP_NUM_THREADS": "1"}
    commands = (["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"])
    with (folder / "daemons.log").open("wb") as log:
        daemons = [subprocess.Popen(command, env=mine, stdout=log, stderr=log) for command in commands]
    try:
        waited_until = time.monotonic() + 60
        while subprocess.run(["sinfo", "-h", "-t", "idle", "-o", "%D"], env=mine, capture_output=True).stdout != b"2\n":
            assert time.monotonic() < waited_until, (folder / "daemons.log").read_text()
            time.sleep(0.5)
        yield mine
    finally:
        for daemon in daemons:
            daemon.terminate()
        psutil.wait_procs([psutil.Process(daemon.pid) for daemon in daemons], timeout=20)


def job(root: Path, environment: dict[str, str], *more: str) -> str:
    """Submits a run on both nodes; returns its number."""
    script = root / "job.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n#SBATCH --signal=USR1@90\n"
        f"#SBATCH --open-mode=append\n#SBATCH --output={root}/log.txt\nsrun --kill-on-bad-exit=1 python train.py "
        + " ".join([*SETTINGS, "trainer.num_nodes=2", f"output_root={root}", *more])
        + "\n"
    )
    submitted = subprocess.run(
        ["sbatch", "--parsable", str(script)], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return submitted.stdout.strip()


def waited(condition: Callable[[], object], what: Callable[[], str]) -> None:
    waited_until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < waited_until, what()
        time.sleep(0.05)


def results(root: Path) -> dict[str, bytes]:
    run = root / "tiny-shapes/run"
    paths = [run / "adapter/adapter_model.safetensors", *sorted((run / "predictions").glob("*.jsonl"))]
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def without_slurm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("alone")
    subprocess.run(
        [sys.executable, "train.py", *SETTINGS, "trainer.devices=2", f"output_root={root}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=400,
    )
    found = results(root)
    assert len(found) == 6
    return found


def test_two_nodes_end_as_two_processes_of_one_machine(
    environment: dict[str, str], without_slurm: dict[str, bytes], tmp_path: Path
) -> None:
    job(tmp_path, environment)
    summary, log = tmp_path / "tiny-shapes/run/summary.json", tmp_path / "log.txt"
    waited(summary.exists, log.read_text)
    assert results(tmp_path) == without_slurm
    assert "Traceback" not in log.read_text() and log.read_text().count(": the rows as used") == 1


def test_a_run_that_is_warned_of_its_end_is_queued_again(
    environment: dict[str, str], without_slurm: dict[str, bytes], tmp_path: Path
) -> None:
    number = job(tmp_path, environment)
    run, log = tmp_path / "tiny-shapes/run", tmp_path / "log.txt"
    waited(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_bytes(), log.read_text)
    subprocess.run(["scancel", "--signal=USR1", number], env=environment, check=True)  # as SLURM does before the end
    waited((run / "summary.json").exists, log.read_text)
    text = log.read_text()
    assert f"stopped by {signal.SIGUSR1.name}; job {number} is queued again" in text
    assert "going on from step-" in text and "Traceback" not in text
    assert results(tmp_path) == without_slurm


SWEEP = Path(__file__).parents[1] / "sweep/quick_train.py"


def sweep(folder: Path, environment: dict[str, str], *more: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(SWEEP), "-m", "model.lora.r=2,4,6,8", "trainer.max_steps=2", "model=tiny"]
    pipe = subprocess.PIPE
    env = {**environment, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, *more], cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True)


def ranking(folder: Path) -> list[tuple[str, str, float | None]]:
    (found,) = folder.glob("outputs/sweeps/*/sweep.json")
    jobs = json.loads(found.read_text())["jobs"]
    return sorted((job["values"]["model.lora.r"], job["state"], job["value"]) for job in jobs)


def test_a_sweep_ranks_as_on_one_machine_and_a_cancelled_job_is_done_by_resume(
    environment: dict[str, str], tmp_path: Path
) -> None:
    alone = sweep(tmp_path / "alone", {**os.environ}, "trainer.log_every_n_steps=1")
    assert alone.wait(timeout=300) == 0
    whole = ranking(tmp_path / "alone")
    assert [state for _, state, _ in whole] == ["finished"] * 4
    on_slurm = ("hydra/launcher=slurm", "hydra.launcher.at_once=4", "hydra.launcher.cpus=1")
    # Each job sleeps for two times five seconds, so that there is time to cancel one.
    process = sweep(tmp_path / "slurm", environment, *on_slurm, "trainer.log_every_n_steps=50")
    folder, listed = tmp_path / "slurm", ["squeue", "-h", "-t", "R", "-o", "%i"]
    waited(lambda: len(list(folder.rglob("calls"))) == 4, lambda: "four jobs at once")
    number = subprocess.run(listed, env=environment, capture_output=True, text=True).stdout.split()[0]
    subprocess.run(["scancel", number], env=environment, check=True)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 1, output + errors
    assert "Traceback" not in errors
    states = [state for _, state, _ in ranking(folder)]
    assert sorted(states) == ["finished"] * 3 + ["interrupted"], output
    again = sweep(folder, environment, *on_slurm, "trainer.log_every_n_steps=50", "resume=true")
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0, output + errors
    assert ranking(folder) == whole
    calls = [path.read_text() for path in folder.rglob("calls")]
    assert sorted(calls) == ["ran\nfinished already\n"] * 3 + ["ran\nran\n"]
