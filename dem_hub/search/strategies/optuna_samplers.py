"""Optuna's samplers, by name or as objects: for scores that are not smooth, for many processes, and to compare with.

The first trials are points that anyone would try (the base, each vector alone, equal shares, all at once). With a storage that several
processes share (a journal file, a database), they share one study; the trials of all of them count.
"""

import importlib.util
import warnings
from dataclasses import dataclass
from typing import Any

from dem_hub.errors import ConfigError, MissingDependencyError
from dem_hub.search.problem import Problem, Trial

SAMPLERS = {
    "gp": "GPSampler",
    "tpe": "TPESampler",
    "cmaes": "CmaEsSampler",
    "nsgaii": "NSGAIISampler",
    "random": "RandomSampler",
}
N_TRIALS = 40


@dataclass(frozen=True)
class Optuna:
    """A study of `max_forward` trials, each of which is one forward pass (40 if the caller does not say).

    Args:
        sampler: one of `SAMPLERS`, or any sampler of Optuna's. NSGA-II looks for the Pareto front of the distributions' losses.
        storage: Optuna's; `None` keeps the study in memory. A path makes a journal file, which processes on one file system can share;
            each then has a seed of its own, or they would all propose the same.
        study_name (`str`): the study within the storage.
    """

    sampler: Any = "gp"
    storage: Any = None
    study_name: str = "dem_hub"
    name: str = "optuna"

    def search(self, problem: Problem) -> None:
        """Ask, score, tell."""
        optuna = _optuna()
        several = "nsga" in (self.sampler if isinstance(self.sampler, str) else type(self.sampler).__name__).lower()
        study = self._study(optuna, problem, len(problem.measure.losses((0.0,) * problem.count)) if several else 1)
        names = [f"c{number}" for number in range(problem.count)]
        from huggingface_hub.utils import tqdm

        for _ in tqdm(range(int(problem.budget(N_TRIALS))), desc="Searching", unit="trial"):
            proposed = study.ask()
            point = [proposed.suggest_float(name, *bound) for name, bound in zip(names, problem.bounds(), strict=True)]
            trial = problem.evaluate(problem.inside(point))
            values = list(trial.losses.values()) if several else [trial.value]
            state = optuna.trial.TrialState.COMPLETE if trial.value < float("inf") else optuna.trial.TrialState.FAIL
            proposed.set_user_attr("losses", dict(trial.losses))
            study.tell(proposed, values if state == optuna.trial.TrialState.COMPLETE else None, state)
        if self.storage is not None:
            self._collect(optuna, study, problem, names)

    def _study(self, optuna: Any, problem: Problem, goals: int) -> Any:
        """The study, with its first points asked for by whoever comes first."""
        storage = self.storage
        if isinstance(storage, str) and "://" not in storage:
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
        points = [problem.inside(point).tolist() for point in first_points(problem.count)]
        sampler = self._sampler(optuna, problem.seed if storage is None else None, len(points))
        name = self.study_name if storage is not None else None
        try:
            study = optuna.create_study(
                sampler=sampler, directions=["minimize"] * goals, storage=storage, study_name=name
            )
        except optuna.exceptions.DuplicatedStudyError:
            return optuna.load_study(sampler=sampler, storage=storage, study_name=name)
        for point in (
            points
        ):  # by whoever made the study alone: two processes at once would both ask for a point that is not there yet
            study.enqueue_trial({f"c{i}": value for i, value in enumerate(point)}, skip_if_exists=True)
        return study

    def _sampler(self, optuna: Any, seed: int | None, startup: int) -> Any:
        if not isinstance(self.sampler, str):
            return self.sampler
        if self.sampler not in SAMPLERS:
            raise ConfigError(
                f"sampler is {self.sampler!r}; give one of {', '.join(SAMPLERS)}, or a sampler of Optuna's."
            )
        if self.sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
            raise MissingDependencyError("The sampler 'cmaes' needs the package cmaes: pip install 'dem-hub[search]'")
        options: dict[str, Any] = {"seed": seed}
        if self.sampler == "gp":
            options |= {"n_startup_trials": startup, "deterministic_objective": True}
        with warnings.catch_warnings():  # of options that Optuna calls experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return getattr(optuna.samplers, SAMPLERS[self.sampler])(**options)

    def _collect(self, optuna: Any, study: Any, problem: Problem, names: list[str]) -> None:
        """The other processes' trials, too."""
        known = {trial.coefficients for trial in problem.trials}
        for other in study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
            point = tuple(problem.inside([other.params[name] for name in names]).tolist())
            losses = other.user_attrs.get("losses")
            if point not in known and losses is not None:
                problem.trials.append(Trial(point, losses, problem.objective.value(losses, problem.base_losses)))


def first_points(count: int) -> list[tuple[float, ...]]:
    """What anyone would try first: nothing, each vector alone, equal shares that sum to 1, half of each, all of each."""
    singles = [tuple(float(i == j) for j in range(count)) for i in range(count)]
    points = [(0.0,) * count, *singles, (1 / count,) * count, (0.5,) * count, (1.0,) * count]
    return list(dict.fromkeys(points))


def _optuna() -> Any:
    try:
        import optuna
        import scipy  # noqa: F401  which Optuna's GPSampler asks for only when it is used
    except ImportError as error:
        raise MissingDependencyError(
            f"method='optuna' needs Optuna and SciPy ({error}): pip install 'dem-hub[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
