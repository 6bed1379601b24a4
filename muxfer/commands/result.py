"""What a command returns: JSON data, the same as text, and the exit code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """What a command has to say: `data` under --json, else `text`."""

    data: Mapping[str, Any]
    text: str
    exit_code: int = 0
