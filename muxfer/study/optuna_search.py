"""Optuna proposes: its samplers behind the Searcher protocol, asked again from the records alone.

No storage of Optuna's is used: the ledger is the one source of truth. A search is played back from its beginning: each
round is asked for, and told what the ledger holds of it; the first round that is not settled is the one under way. At
each combination of the grids an independent search with the same seed is made, so that random and Sobol points are the
same at every value of the axis, and the others learn for each value.
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
"""Settings before TPE and the Gaussian process are believed: so many, or two a dimension, or a round; CMA-ES takes no
smaller generation."""

MIN_FINISHED = 8
"""Settings that must have finished before anything is said of what matters."""


class OptunaSearcher:
    """The samplers random, qmc, tpe, gp and cmaes over a study's spaces."""

    def __init__(self, search: Search, *, seed: int) -> None:
        self._search = search
        self._playbacks = [_Playback(search, held, seed=seed) for held in grid(search)]

    def settings(self, records: Sequence[Record]) -> list[Setting]:
        values = values_of(records, self._search.seeds)
        with _quiet():
            request = [setting for playback in self._playbacks for setting in playback.settings(values)]
        once = {key_of(setting): setting for setting in request}  # integers and choices are drawn again
        return [*once.values(), *finalists(self._search, [*once.values()], records)]


def importances(records: Sequence[Record], search: Search) -> dict[str, float]:
    """Each setting's share in what the metric varies by at the axis' largest value, by fANOVA (Hutter et al. 2014).

    Empty where fewer than two settings vary besides the axis, or fewer than MIN_FINISHED of them finished. What
    diverged is as bad as the worst that finished.
    """
    values = values_of(searched(search, records), search.seeds)
    tried = [(dict(key), value) for key, value in values.items()]
    largest = max((setting[search.axis] for setting, _ in tried), default=0)
    tried = sorted(((s, v) for s, v in tried if s[search.axis] == largest), key=lambda item: key_of(item[0]))
    finished = [value for _, value in tried if math.isfinite(value)]
    names = [name for name in (*search.grids, *search.spaces) if len({setting[name] for setting, _ in tried}) > 1]
    if len(names) < 2 or len(finished) < MIN_FINISHED:
        return {}
    import optuna
    from optuna.distributions import FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    def position(name: str, value: float) -> float:
        space = search.spaces.get(name)
        in_log = space is None or space.log2 or space.kind in ("choice", "log_uniform", "log_integer")
        return math.log2(value) if in_log and all(float(setting[name]) > 0 for setting, _ in tried) else value

    at = [{name: position(name, float(setting[name])) for name in names} for setting, _ in tried]
    ends = {name: (min(one[name] for one in at), max(one[name] for one in at)) for name in names}
    with _quiet():
        study = optuna.create_study()
        for place, (_, value) in zip(at, tried, strict=True):
            distributions = {name: FloatDistribution(*ends[name]) for name in names}
            told = min(value, max(finished))
            study.add_trial(optuna.create_trial(params=place, distributions=distributions, value=told))
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: float(share) for name, share in found.items()}


class _Playback:
    """The search at one combination of the grids, played as far as the records go; more records play it on."""

    def __init__(self, search: Search, held: Setting, *, seed: int) -> None:
        self._search = search
        self._held = held
        self._seed = seed
        self._begin()

    def settings(self, values: Mapping[Key, float]) -> list[Setting]:
        if self._told != [values.get(key_of(setting)) for setting in self._asked[: len(self._told)]]:
            self._begin()  # not the ledger that was played
        while len(self._told) < (self._search.num_settings or 0):
            if len(self._asked) == len(self._told):
                self._ask()
            under_way = self._asked[len(self._told) :]
            came_to = [values[key_of(setting)] for setting in under_way if key_of(setting) in values]
            if len(came_to) < len(under_way):
                break
            for trial, value in zip(self._in_flight, came_to, strict=True):
                self._study.tell(trial, value)
            self._told += came_to
        return self._asked

    def _begin(self) -> None:
        self._study: Any = None
        self._asked: list[Setting] = []
        self._told: list[float] = []
        self._in_flight: list[optuna.Trial] = []

    def _ask(self) -> None:
        """One more round; of what does not learn from results everything at once, so that no slot waits."""
        import optuna

        search = self._search
        space = {name: _distribution(space) for name, space in search.spaces.items()}
        if self._study is None:
            self._study = optuna.create_study(sampler=_sampler(search, self._seed))
            num_spread = {"qmc": search.num_settings or 0, "tpe": _startup(search), "gp": _startup(search)}
            for point in _sobol(space, num_spread.get(search.sampler, 0), seed=self._seed):
                self._study.enqueue_trial(point)
        left = (search.num_settings or 0) - len(self._asked)
        size = left if search.sampler in ("random", "qmc") else min(search.round_size, left)
        self._in_flight = [self._study.ask(space) for _ in range(size)]
        self._asked += [drawn_setting(search, self._held, trial.params) for trial in self._in_flight]


def _sampler(search: Search, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    match search.sampler:
        case "tpe":
            startup = _startup(search)
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True
            )
        case "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=_startup(search))
        case "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, popsize=max(MIN_STARTUP, search.round_size))
    return optuna.samplers.RandomSampler(seed=seed)  # of qmc every point is laid out beforehand


def _startup(search: Search) -> int:
    return max(MIN_STARTUP, 2 * len(search.spaces), search.round_size)


def _sobol(space: Mapping[str, Any], count: int, *, seed: int) -> list[dict[str, Any]]:
    """So many points of a scrambled Sobol sequence: a search that learns begins with them too, for what is drawn at
    random clusters."""
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed))
    first = study.ask(space)  # the dimensions are taken from the first trial, which is itself drawn at random
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
    """Without Optuna's lines on stderr: that a result is infinite is known (see `values_of`), that a sampler is young
    too."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            optuna.logging.set_verbosity(verbosity)
