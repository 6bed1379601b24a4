"""`muxfer config`: the whole configuration of a sweep."""

from collections.abc import Sequence

from muxfer.commands.result import CommandResult
from muxfer.config.parse import parse
from muxfer.redaction import with_variable_names


def show_config(name: str, overrides: Sequence[str]) -> CommandResult:
    """The whole configuration, overrides applied; what the environment gives stands there by its name."""
    from muxfer.config.hydra_compose import composed, to_yaml

    found = composed(name, overrides)
    parse(found.plain)
    plain = with_variable_names(found.plain, found.variables)
    return CommandResult(data=plain, text=to_yaml(plain))
