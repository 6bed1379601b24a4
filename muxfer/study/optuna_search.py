"""Optuna's samplers, replayed from the records alone.

Optuna's storages are not used: the ledger is the one source of truth. A search is replayed from its beginning. Each
round is asked for and then told its recorded results; the first round without all results is under way. Each
combination of the grids has an independent search with the same seed. So random and Sobol points are the same at every
value of the axis, and the other samplers learn at each value.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from muxfer.config.study import Search, Space
from muxfer.study.search import Key, drawn_setting, finalists, grid, key_of, searched, values_of
from muxfer.trial import Record, Setting

if TYPE_CHECKING:
    import optuna

MIN_STARTUP = 4
"""TPE and the Gaussian process start to learn after this many settings, or two a dimension, or a round, whichever is
most. A generation of CMA-ES has at least as many."""
MIN_FINISHED = 8  # importances need at least this many finished settings


class OptunaSearcher:
    """The samplers random, qmc, tpe, gp and cmaes over a study's spaces."""

    def __init__(self, search: Search, *, seed: int) -> None:
        self._search = search
        self._replays = [_Replay(search, held, seed=seed) for held in grid(search)]

    def settings(self, records: Sequence[Record]) -> list[Setting]:
        values = values_of(records, self._search.seeds)
        with _quiet():
            proposed = [setting for replay in self._replays for setting in replay.settings(values)]
        once = {key_of(setting): setting for setting in proposed}  # integers and choices are drawn again
        return [*once.values(), *finalists(self._search, [*once.values()], records)]


def importances(records: Sequence[Record], search: Search) -> dict[str, float]:
    """Each setting's share of the metric's variance at the axis' largest value, by fANOVA (Hutter et al. 2014). Empty
    where fewer than two settings vary besides the axis, or fewer than MIN_FINISHED finished. A diverged setting counts
    as the worst that finished.
    """
    values = values_of(searched(search, records), search.seeds)
    measured = [(dict(key), value) for key, value in values.items()]
    largest = max((setting[search.axis] for setting, _ in measured), default=0)
    measured = sorted(((s, v) for s, v in measured if s[search.axis] == largest), key=lambda item: key_of(item[0]))
    finished = [value for _, value in measured if math.isfinite(value)]
    names = [name for name in (*search.grids, *search.spaces) if len({setting[name] for setting, _ in measured}) > 1]
    if len(names) < 2 or len(finished) < MIN_FINISHED:
        return {}
    import optuna
    from optuna.distributions import FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    def position(name: str, value: float) -> float:
        space = search.spaces.get(name)
        in_log = space is None or space.log2 or space.kind in ("choice", "log_uniform", "log_integer")
        return math.log2(value) if in_log and all(float(setting[name]) > 0 for setting, _ in measured) else value

    at = [{name: position(name, float(setting[name])) for name in names} for setting, _ in measured]
    ends = {name: (min(one[name] for one in at), max(one[name] for one in at)) for name in names}
    with _quiet():
        study = optuna.create_study()
        distributions: Any = {name: FloatDistribution(*ends[name]) for name in names}
        for place, (_, value) in zip(at, measured, strict=True):
            finite = min(value, max(finished))
            study.add_trial(optuna.create_trial(params=place, distributions=distributions, value=finite))
        shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: float(share) for name, share in shares.items()}


class _Replay:
    """The search at one combination of the grids, replayed as far as the records go; more records continue it."""

    def __init__(self, search: Search, held: Setting, *, seed: int) -> None:
        self._search, self._held, self._seed = search, held, seed
        self._begin()

    def settings(self, values: Mapping[Key, float]) -> list[Setting]:
        if self._results != [values.get(key_of(setting)) for setting in self._proposed[: len(self._results)]]:
            self._begin()  # these records are not those of the replay
        while len(self._results) < (self._search.num_settings or 0):
            if len(self._proposed) == len(self._results):
                self._ask()
            under_way = self._proposed[len(self._results) :]
            results = [values[key_of(setting)] for setting in under_way if key_of(setting) in values]
            if len(results) < len(under_way):
                break
            for trial, value in zip(self._in_flight, results, strict=True):
                self._study.tell(trial, value)
            self._results += results
        return self._proposed

    def _begin(self) -> None:
        self._study: Any = None
        self._proposed: list[Setting] = []
        self._results: list[float] = []
        self._in_flight: list[optuna.Trial] = []

    def _ask(self) -> None:
        """Propose one more round. Samplers that do not learn propose everything at once, so that no slot waits."""
        import optuna

        search = self._search
        space = {name: _distribution(space) for name, space in search.spaces.items()}
        if self._study is None:
            self._study = optuna.create_study(sampler=_sampler(search, self._seed))
            num_spread = {"qmc": search.num_settings or 0, "tpe": _startup(search), "gp": _startup(search)}
            for point in _sobol(space, num_spread.get(search.sampler, 0), seed=self._seed):
                self._study.enqueue_trial(point)
        remaining = (search.num_settings or 0) - len(self._proposed)
        size = remaining if search.sampler in ("random", "qmc") else min(search.round_size, remaining)
        self._in_flight = [self._study.ask(space) for _ in range(size)]
        self._proposed += [drawn_setting(search, self._held, trial.params) for trial in self._in_flight]


def _sampler(search: Search, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    match search.sampler:
        case "tpe":
            options: Any = {"multivariate": True, "constant_liar": True}
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_startup(search), **options)
        case "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=_startup(search))
        case "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, popsize=max(MIN_STARTUP, search.round_size))
    return optuna.samplers.RandomSampler(seed=seed)  # every point of qmc is enqueued before


def _startup(search: Search) -> int:
    return max(MIN_STARTUP, 2 * len(search.spaces), search.round_size)


def _sobol(space: Mapping[str, Any], count: int, *, seed: int) -> list[dict[str, Any]]:
    """Points of a scrambled Sobol sequence. Searches that learn start with them too, because random points cluster."""
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed))
    first = study.ask(space)  # Optuna takes the dimensions from the first trial, which it draws at random
    study.tell(first, 0.0)
    return [study.ask(space).params for _ in range(count)]


def _distribution(space: Space) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.kind == "choice":
        return CategoricalDistribution(space.bounds)
    low, high = space.bounds
    if space.kind in ("integer", "log_integer"):
        return IntDistribution(int(low), int(high), log=space.kind == "log_integer")
    return FloatDistribution(low, high, log=space.kind == "log_uniform")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's warnings about infinite results (see `values_of`) and experimental samplers."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
