"""Choose the searcher that a configuration names (grid, isoFLOP or a sampler of Optuna), and make its trials."""

from collections.abc import Callable, Sequence

from muxfer.config.study import Config, StudyKind
from muxfer.study.search import Fixed, Searcher, grid
from muxfer.study.trials import trials_of, validate_search
from muxfer.trial import NUMERICS_VERSION, Record, Trial

Propose = Callable[[Sequence[Record]], list[Trial]]
"""From the records to every trial of the completed rounds and of the round under way."""


def proposing(config: Config, *, fingerprint: str, numerics: int = NUMERICS_VERSION) -> Propose:
    """How a study proposes trials. BadInput where the search is too large, or its spaces hold invalid tasks.
    `numerics`: the version that a recorded study was trained with.
    """
    validate_search(config)
    searcher = searcher_of(config)
    return lambda records: trials_of(searcher.settings(records), config, fingerprint=fingerprint, numerics=numerics)


def searcher_of(config: Config) -> Searcher:
    search = config.search
    if search.kind is StudyKind.GRID:
        return Fixed(known=tuple(grid(search)))
    if search.kind is StudyKind.ISOFLOP:
        from muxfer.models.count import counter
        from muxfer.study.isoflop import isoflop_settings

        return Fixed(known=tuple(isoflop_settings(search, config.task, counter(config))))
    from muxfer.study.optuna_search import OptunaSearcher

    return OptunaSearcher(search, seed=config.training.seed)
