"""Choose the searcher that a configuration names (grid, isoFLOP or a sampler of Optuna), and make its trials."""

from collections.abc import Callable, Sequence

from muxfer.config.study import Config, StudyKind
from muxfer.study.search import grid
from muxfer.study.trials import trials_of, validate_search
from muxfer.trial import NUMERICS_VERSION, Record, Setting, Trial

Propose = Callable[[Sequence[Record]], list[Trial]]
"""From the records to every trial of the completed rounds and of the round under way."""


def proposing(config: Config, *, fingerprint: str, numerics: int = NUMERICS_VERSION) -> Propose:
    """How a study proposes trials; `numerics` is that of a recorded study. BadInput for a search that can't work."""
    validate_search(config)
    settings = settings_of(config)
    return lambda records: trials_of(settings(records), config, fingerprint=fingerprint, numerics=numerics)


def settings_of(config: Config) -> Callable[[Sequence[Record]], list[Setting]]:
    """From the records to every setting of the completed rounds and of the round under way, each once.

    The list depends on the records alone. So a killed study continues as an uninterrupted one would, and nothing but
    records needs to be stored. A grid and an isoFLOP study have one round.
    """
    search = config.search
    if search.kind is StudyKind.SCATTERED:
        from muxfer.study.optuna_search import OptunaSearcher

        return OptunaSearcher(search, seed=config.training.seed).settings
    if search.kind is StudyKind.GRID:
        settings = grid(search)
    else:
        from muxfer.models.count import counter
        from muxfer.study.isoflop import isoflop_settings

        settings = isoflop_settings(search, config.task, counter(config))
    return lambda records: settings
