"""`muxfer config`: the whole configuration of a sweep."""

from collections.abc import Sequence

from muxfer.commands.result import CommandResult
from muxfer.config.parse import parse
from muxfer.redaction import with_variable_names


def show_config(name: str, overrides: Sequence[str]) -> CommandResult:
    """The whole configuration with the overrides applied. Environment variables stand by their names."""
    from muxfer.config.hydra_compose import composed, to_yaml

    composition = composed(name, overrides)
    parse(composition.plain)
    plain = with_variable_names(composition.plain, composition.variables)
    return CommandResult(data=plain, text=to_yaml(plain))
