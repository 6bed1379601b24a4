"""`muxfer config`: the whole configuration of a sweep."""

from collections.abc import Sequence

from muxfer.commands.answer import Answer
from muxfer.config.parse import parse
from muxfer.redaction import hidden


def show_config(name: str, overrides: Sequence[str]) -> Answer:
    """The whole configuration, overrides applied; what the environment gives stands there by its name."""
    from muxfer.config.hydra_compose import composed, to_yaml

    found = composed(name, overrides)
    parse(found.plain)
    plain = hidden(found.plain, found.variables)
    return Answer(data=plain, text=to_yaml(plain))
