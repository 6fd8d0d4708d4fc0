"""hydra/sweeper=optuna: a study in the sweep's folder, which the same command continues and other processes join.

Ask and tell against Optuna itself: the published plugin is pinned to optuna < 3. A study's trials are the jobs of
`sweep.py`; who runs a trial holds its lock, so a trial whose process is gone is known by a lock that nobody holds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from vlmft.config.check import ConfigError
from vlmft.run.lock import locked
from vlmft.sweep.launcher import Jobs, finish, key_of, whole_number
from vlmft.sweep.result import Job, Sweep, validations
from vlmft.training.interruption import StopRequest, stop_request

if TYPE_CHECKING:
    import optuna

DONE_OVER = "done over"
"""Attribute of a study: numbers of interrupted trials, each of which another trial does over."""


class OptunaSweeper(Sweeper):
    """Asks a study for settings until it holds `n_trials` trials. Values come as texts, see hydra_plugins.py."""

    def __init__(self, n_trials: str, seed: str | None, pruning: str, n_startup_trials: str) -> None:
        self.n_trials = whole_number("hydra.sweeper.n_trials", n_trials, at_least=1)
        self.seed = whole_number("hydra.sweeper.seed", seed) if seed is not None else None
        self.n_startup_trials = whole_number("hydra.sweeper.n_startup_trials", n_startup_trials)
        if pruning.lower() not in ("true", "false"):
            raise ConfigError(f"hydra.sweeper.pruning: Expected true or false, got {pruning!r}")
        self.pruning = pruning.lower() == "true"

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """
        Raises:
            ConfigError: jobs are to be handed to SLURM.
        """
        if "Slurm" in config.hydra.launcher._target_:
            raise ConfigError(
                "hydra/launcher: Expected processes for an Optuna study, whose trials run one after the other, got "
                "slurm; hand this command itself to SLURM, as often as trials are to run at once: they share the study"
            )
        self.jobs = Jobs(config, hydra_context)

    def sweep(self, arguments: list[str]) -> None:
        """
        Raises:
            ConfigError: no Optuna, no space, a space that Optuna does not have, or settings that no job could take.
            SystemExit: as the launcher's.
        """
        loader = self.jobs.context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        fixed = self.jobs.own([o.input_line or "" for o in overrides if not o.is_sweep_override()])
        space = {o.get_key_element(): distribution(o) for o in overrides if o.is_sweep_override()}
        if not space:
            raise ConfigError("hydra/sweeper=optuna: Expected a space such as 'train.lr=interval(1e-4,3e-3)', got none")
        self.fixed = [*(o for o in fixed if key_of(o) != "resume"), "resume=true"]  # the same settings may come again
        lowest = [f"{key}={found.low if hasattr(found, 'low') else found.choices[0]}" for key, found in space.items()]
        if (problem := self.jobs.problem([*lowest, *self.fixed])) is not None:
            raise ConfigError(problem)
        self.jobs.folder.mkdir(parents=True, exist_ok=True)
        with self.alone():
            study = self.open_study(sorted(arguments))
        with stop_request() as stop:
            while stop.number is None and (taken := self.take(study, space)) is not None:
                trial, lock = taken
                with lock:
                    self.run(study, trial, stop)
        finish(Sweep(self.jobs.folder, jobs_of(study)), stop)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Waits for the study; counting its trials and asking for one more must not be interleaved."""
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(locked(self.jobs.folder))
                    break
                except ConfigError:
                    time.sleep(0.1)
            yield

    def open_study(self, arguments: list[str]) -> optuna.Study:
        library = imported()
        library.logging.set_verbosity(library.logging.WARNING)
        url, patience = f"sqlite:///{self.jobs.folder / 'study.db'}", {"connect_args": {"timeout": 60}}
        pruner = library.pruners.MedianPruner(n_startup_trials=self.n_startup_trials)
        study: optuna.Study = library.create_study(
            storage=library.storages.RDBStorage(url, engine_kwargs=patience),
            study_name=self.jobs.folder.name,
            direction="maximize",
            pruner=pruner if self.pruning else library.pruners.NopPruner(),
            load_if_exists=True,
        )
        settings = [o for o in arguments if key_of(o) not in ("resume", "name")]
        if study.user_attrs.setdefault("overrides", settings) != settings:
            raise ConfigError(f"name: {self.jobs.folder} holds a study of other settings; give this one another name=")
        study.set_user_attr("overrides", settings)
        return study

    def take(self, study: optuna.Study, space: dict[str, Any]) -> tuple[optuna.Trial, contextlib.ExitStack] | None:
        """The next trial with its lock held, or None where the study has all it should have."""
        library = imported()
        with self.alone():
            self.free_abandoned(study)
            if len(counted(study)) >= self.n_trials:
                return None
            seed = self.seed + len(study.trials) if self.seed is not None else None  # else a continued study repeats
            study.sampler = library.samplers.TPESampler(seed=seed)
            trial = study.ask(space)
            lock = contextlib.ExitStack()
            lock.enter_context(locked(self.place(trial.number)))
            return trial, lock

    def place(self, number: int) -> Path:
        folder = self.jobs.folder / "jobs" / f"{number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def free_abandoned(self, study: optuna.Study) -> None:
        """Trials whose process is gone are failed and asked again; the run goes on from its last checkpoint."""
        optuna = imported()
        for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            with contextlib.suppress(ConfigError), locked(self.place(trial.number)):
                give_back(study, trial.number, trial.params)

    def run(self, study: optuna.Study, trial: optuna.Trial, stop: StopRequest) -> None:
        optuna = imported()
        job = Job(trial.number, [], {key_of(key): str(value) for key, value in trial.params.items()})
        job.overrides = [*(f"{key}={value}" for key, value in trial.params.items()), *self.fixed]
        self.jobs.run(job, stop, reporter(trial) if self.pruning else None)
        trial.set_user_attr("job", vars(job))
        if job.state == "interrupted" and stop.number is not None:
            with self.alone():
                give_back(study, trial.number, trial.params)
        elif job.state == "finished" and job.value is not None:
            study.tell(trial, job.value)
        else:
            pruned = job.state == "pruned"
            study.tell(trial, state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.FAIL)
        with self.alone():
            Sweep(self.jobs.folder, jobs_of(study)).write()


def give_back(study: optuna.Study, number: int, params: dict[str, Any]) -> None:
    """Another trial takes this one's settings: the next that this process or another one asks for."""
    study.set_user_attr(DONE_OVER, [*study.user_attrs.get(DONE_OVER, []), number])
    study.tell(number, state=imported().trial.TrialState.FAIL)
    study.enqueue_trial(params)


def counted(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials of every process that have begun, but for those that are done over."""
    over, waiting = study.user_attrs.get(DONE_OVER, []), imported().trial.TrialState.WAITING
    return [t for t in study.get_trials(deepcopy=False) if t.number not in over and t.state != waiting]


def reporter(trial: optuna.Trial) -> Callable[[Path], bool]:
    """Tells Optuna each new validation of a run; whether the trial should be pruned."""
    reported: set[int] = set()

    def look(folder: Path) -> bool:
        new = [point for point in validations(folder) if point.step not in reported]
        for point in new:
            reported.add(point.step)
            trial.report(point.value, point.step)
        return bool(new) and trial.should_prune()

    return look


def jobs_of(study: optuna.Study) -> list[Job]:
    states = {"COMPLETE": "finished", "FAIL": "failed", "PRUNED": "pruned", "RUNNING": "running"}
    jobs = []
    for trial in counted(study):
        known = trial.user_attrs.get("job")
        values = {key_of(key): str(value) for key, value in trial.params.items()}
        jobs.append(Job(**known) if known else Job(trial.number, [], values, states[trial.state.name]))
    return jobs


def distribution(override: Override) -> Any:
    """Hydra's choice, range and interval as Optuna's; `tag(log, ...)` makes the scale logarithmic.

    Raises:
        ConfigError: a sweep that has no counterpart.
    """
    optuna, sweep = imported(), override.value()
    log = "log" in getattr(sweep, "tags", ())
    try:
        if isinstance(sweep, IntervalSweep):
            low, high = sweep.start, sweep.end
            if isinstance(low, int) and isinstance(high, int):
                return optuna.distributions.IntDistribution(low, high, log=log)
            return optuna.distributions.FloatDistribution(float(low or 0), float(high or 0), log=log)
        if isinstance(sweep, RangeSweep) and not log and all(isinstance(v, int) for v in (sweep.start, sweep.step)):
            values = list(sweep.range())
            return optuna.distributions.IntDistribution(int(values[0]), int(values[-1]), step=int(sweep.step))
        if isinstance(sweep, (ChoiceSweep, RangeSweep)) and not log:
            return optuna.distributions.CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{override.input_line}: {error}") from error
    raise ConfigError(f"{override.input_line}: Expected a,b or choice, range, interval or tag(log, interval), got this")


def imported() -> Any:
    """
    Raises:
        ConfigError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("hydra/sweeper=optuna: needs Optuna; pip install 'vlmft[sweep]'") from error
    return optuna
