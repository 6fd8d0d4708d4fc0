"""python train.py -m: each job is a process of its own, so that its memory is returned and its failure stays its own.

A Hydra launcher. It stays light, because a sweep must not hold a GPU beside its jobs: no torch here.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vlmft.config.check import ConfigError, checked
from vlmft.config.processes import SLURM_JOB
from vlmft.config.schema import TrainConfig
from vlmft.run.folder import FOLDER_FILE_VARIABLE, program
from vlmft.run.lock import locked
from vlmft.sweep.result import STOPPED, SWEEP_FILE, Job, Sweep, shown
from vlmft.training.interruption import StopRequest, stop_request

POLL_SECONDS = 0.2
KILL_AFTER_SECONDS = 600.0
"""A job that was asked to stop finishes its window and saves; one that has not by then is killed."""


NOT_OF_A_SWEEP = ("resume", "output_root", "name", "test", "logger")
"""Settings that do not make it another sweep."""
OF_A_SWEEP = ("hydra.mode", "hydra.launcher", "hydra.sweep")  # settings of Hydra that its jobs do not get


def key_of(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def sweep_name(name: str | None, overrides: Sequence[str], sweeper: str) -> str:
    """The folder of a sweep below outputs/sweeps: `name=`, or a hash of what is swept and of what is not."""
    settings = sorted(o for o in overrides if key_of(o).split(".")[0] not in NOT_OF_A_SWEEP)
    return name or hashlib.sha256("\n".join([sweeper, *settings]).encode()).hexdigest()[:10]


def whole_number(key: str, text: str, at_least: int = 0) -> int:
    """A setting of Hydra's plugins, which come as texts; raises ConfigError."""
    if not text.isdecimal() or int(text) < at_least:
        raise ConfigError(f"{key}: Expected a whole number >= {at_least}, got {text!r}")
    return int(text)


class Jobs:
    """Checks and runs the jobs of one sweep; the launcher and the Optuna sweeper share it."""

    def __init__(self, config: DictConfig, context: HydraContext, prefix: Sequence[str] = ()) -> None:
        """`prefix` is the command that starts a job's command elsewhere, such as srun.

        Raises:
            ConfigError: several names, or jobs in batches.
        """
        self.config, self.context, self.prefix = config, context, list(prefix)
        self.abandoned = False
        """Set where the sweep does not wait for its jobs to stop."""
        section = config.hydra
        if (most := section.sweeper.get("max_batch_size")) is not None:
            raise ConfigError(f"hydra.sweeper.max_batch_size: Expected null, got {most}; a sweep is ranked as a whole")
        for override in OverridesParser.create().parse_overrides(list(section.overrides.task)):
            if override.get_key_element() == "name" and override.is_sweep_override():
                raise ConfigError(f"name: Expected one name for a sweep, got {override.input_line}")
        name = sweep_name(config.name, section.overrides.task, section.sweeper._target_)
        self.folder = Path(section.sweep.dir) / name

    def own(self, overrides: Sequence[str]) -> list[str]:
        """A job's settings: the test split is left to the winner, and `name=` has named the sweep.

        Raises:
            ConfigError: test=true.
        """
        given = [o.split("=", 1) for o in overrides if key_of(o) == "test"]
        if any(value.lower() not in ("false", "no", "off", "0") for _, value in given):
            raise ConfigError("test: Expected false in a sweep, got true; the winner alone meets the test split")
        kept = [o for o in overrides if key_of(o) not in ("test", "name")]
        return [*kept, "test=false", *(["name=null"] if self.config.name is not None else [])]

    def problem(self, overrides: Sequence[str]) -> str | None:
        """What the check says against a job, before it is started."""
        composed = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        names = [str(name) for name in composed if name != "hydra"]
        try:
            config = checked(OmegaConf.masked_copy(composed, names), TrainConfig)
        except ConfigError as error:
            return str(error)
        if config.trainer.devices != 1:
            return (
                f"trainer.devices: Expected 1 in a sweep (-m), got {config.trainer.devices}; a sweep watches, prunes "
                "and stops its jobs as one process each, and Lightning would start more of them from the command line"
            )
        return None

    def run(self, job: Job, stop: StopRequest, look: Callable[[Path], bool] | None = None) -> None:
        """Runs the job to its end and fills in what came of it; `look(run folder) -> stop it?` is asked meanwhile."""
        place = self.folder / "jobs" / f"{job.number:04d}"
        place.mkdir(parents=True, exist_ok=True)
        folder_file, log = place / "folder", place / "log.txt"
        folder_file.unlink(missing_ok=True)
        print(f"job {job.number}  {job.swept()}\n  log {log}", flush=True)
        started, job.state = time.monotonic(), "running"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(job.overrides),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, FOLDER_FILE_VARIABLE: str(folder_file)},
                start_new_session=True,  # Ctrl-C comes to the sweep, which asks the job once
            )
            pruned = _wait(
                process,
                stop,
                lambda: look is not None and folder_file.is_file() and look(Path(folder_file.read_text())),
                lambda: self.abandoned,
            )
        job.exit_code, job.seconds = process.returncode, round(time.monotonic() - started, 1)
        job.folder = folder_file.read_text(encoding="utf-8") if folder_file.is_file() else None
        stopped = "pruned" if pruned else "interrupted"
        job.state = "finished" if job.exit_code == 0 else stopped if job.exit_code in STOPPED else "failed"
        job.message = last_line(log) if job.state == "failed" else ""
        job.read_validation()
        print(
            f"  {job.state} {job.message or shown(job)}, {job.seconds:.0f} s, {job.folder or 'no folder'}", flush=True
        )

    def command(self, overrides: Sequence[str]) -> list[str]:
        """This very script with a job's settings, and with what says where Hydra finds files."""
        flags = get_args_parser().parse_args()
        places = {
            "--config-path": flags.config_path,
            "--config-name": flags.config_name,
            "--config-dir": flags.config_dir,
        }
        hydra_flags = [text for flag, value in places.items() if value is not None for text in (flag, value)]
        own = [o for o in self.config.hydra.overrides.hydra if not key_of(o).replace("/", ".").startswith(OF_A_SWEEP)]
        return [*self.prefix, sys.executable, *program(), *hydra_flags, *own, *overrides]


def _wait(
    process: subprocess.Popen[bytes], stop: StopRequest, prune: Callable[[], bool], abandoned: Callable[[], bool]
) -> bool:
    """Until the process has ended; returns whether it was asked to, to be pruned."""
    asked: float | None = None
    pruned = False
    try:
        while process.poll() is None:
            if asked is None and (stop.number is not None or prune()):
                asked, pruned = time.monotonic(), stop.number is None
                process.terminate()
            if abandoned() or (asked is not None and time.monotonic() - asked > KILL_AFTER_SECONDS):
                process.kill()
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:  # a second Ctrl-C
            process.kill()
            process.wait()
    return pruned


def last_line(log: Path) -> str:
    """Of what a job printed: its error line, or the last one there is."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")


class ProcessLauncher(Launcher):
    """Hydra's launcher for `-m` with its basic sweeper: all jobs one after the other, then the ranking."""

    at_once = 1

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.jobs = Jobs(config, hydra_context)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """
        Raises:
            ConfigError: no job at all could start, so it is the command line that is mistaken; or the folder holds the
                sweep already, and `resume` is not set.
            SystemExit: 1 where a job failed, 128 + signal where the sweep was stopped; all is written by then.
        """
        # Hydra's: the whole config, secrets in clear
        (self.jobs.folder.parent / "multirun.yaml").unlink(missing_ok=True)
        settings = [self.jobs.own(overrides) for overrides in job_overrides]
        problems = [self.jobs.problem(overrides) for overrides in settings]
        if all(problems):
            raise ConfigError(problems[0] or "")
        if (devices := next((p for p in problems if p and p.startswith("trainer.devices: ")), None)) is not None:
            raise ConfigError(devices)
        swept = [key for key in map(key_of, settings[0]) if len({_value(o, key) for o in settings}) > 1]
        sweep = Sweep(self.jobs.folder)
        sweep.jobs = [Job(i, o, {key: _value(o, key) for key in swept}) for i, o in enumerate(settings, start=1)]
        sweep.folder.mkdir(parents=True, exist_ok=True)
        with locked(sweep.folder), stop_request() as stop:
            if (sweep.folder / SWEEP_FILE).exists() and not self.jobs.config.resume:
                raise ConfigError(
                    f"name: {sweep.folder} holds this sweep already; go on with resume=true, or give another name="
                )
            shutil.rmtree(sweep.folder / "jobs", ignore_errors=True)
            print(f"sweep of {len(sweep.jobs)} jobs, folder {sweep.folder}")
            self._run(sweep, stop)
        finish(sweep, stop)
        done = JobStatus.COMPLETED
        return [JobReturn(overrides=job.overrides, status=done, _return_value=job.exit_code) for job in sweep.jobs]

    def _run(self, sweep: Sweep, stop: StopRequest) -> None:
        def run(job: Job) -> None:
            if stop.number is None:
                self.jobs.run(job, stop)

        with ThreadPoolExecutor(self.at_once) as pool:
            self.jobs.abandoned, all_done = False, False
            try:
                for done in as_completed([pool.submit(run, job) for job in sweep.jobs]):
                    done.result()
                    sweep.write()
                all_done = True
            finally:
                if not all_done:  # a second Ctrl-C: the threads wait for their jobs no longer, and start no others
                    self.jobs.abandoned, stop.number = True, stop.number or signal.SIGINT


class SlurmLauncher(ProcessLauncher):
    """`hydra/launcher=slurm`: each job by srun, as a job of SLURM or, inside an allocation, as a step of it.

    Args:
        at_once: jobs that are handed to SLURM at a time.
        cpus, gpus, partition, account, time: of each job, as srun has them; null: the cluster's default.
        arguments: others of srun, with spaces between them.
    """

    def __init__(
        self,
        at_once: str = "4",
        cpus: str | None = None,
        gpus: str | None = None,
        partition: str | None = None,
        account: str | None = None,
        time: str | None = None,
        arguments: str | None = None,
    ) -> None:
        if shutil.which("srun") is None:
            raise ConfigError("hydra/launcher: Expected SLURM's srun for slurm, which is not here; leave it out")
        self.at_once = whole_number("hydra.launcher.at_once", at_once, at_least=1)
        given = {"cpus-per-task": cpus, "gpus": gpus, "partition": partition, "account": account, "time": time}
        self.srun = ["srun", "--nodes=1", "--ntasks=1", "--quiet"]
        self.srun += [f"--{name}={value}" for name, value in given.items() if value is not None]
        self.srun += ["--exact"] if SLURM_JOB in os.environ else []  # steps share the allocation's cores
        self.srun += shlex.split(arguments or "")

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.jobs = Jobs(config, hydra_context, self.srun)


def finish(sweep: Sweep, stop: StopRequest) -> None:
    """
    Raises:
        SystemExit: unless every job ended well.
    """
    sweep.write()
    sweep.say()
    if stop.number is not None:
        print("stopped; the same command with resume=true goes on", file=sys.stderr)
        sys.exit(128 + stop.number)
    if sweep.exit_code():
        sys.exit(sweep.exit_code())


def _value(overrides: Sequence[str], key: str) -> str:
    return next((o.partition("=")[2] for o in overrides if key_of(o) == key), "")
