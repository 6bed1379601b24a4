"""Optuna proposes: its samplers behind the Searcher protocol, rebuilt from the records before each round.

No storage of Optuna's is used: the ledger is the one source of truth, and a study in memory takes 1 ms a trial.
"""

from collections import Counter
from collections.abc import Sequence

from muxfer.config import Search
from muxfer.search import grid
from muxfer.trial import Record, Setting


class OptunaSearcher:
    """A study's grid by Optuna's GridSampler, as one round."""

    def __init__(self, search: Search, *, seed: int) -> None:
        self._search = search
        self._seed = seed

    def ask(self, records: Sequence[Record]) -> list[Setting]:
        import optuna

        wanted = grid(self._search)
        settled = Counter(tuple(sorted(record.setting.items())) for record in records if record.outcome.settled)
        if all(settled[tuple(sorted(setting.items()))] >= self._search.seeds for setting in wanted):
            return []
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = {name: list(values) for name, values in self._search.grids.items()}
        study = optuna.create_study(sampler=optuna.samplers.GridSampler(space, seed=self._seed))
        settings: list[Setting] = []
        for _ in wanted:
            trial = study.ask()
            settings.append({name: trial.suggest_categorical(name, values) for name, values in space.items()})
        return settings
