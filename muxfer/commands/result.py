"""What a command returns: JSON data, the same as text, and the exit code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """`data` is printed under --json, `text` otherwise."""

    data: Mapping[str, Any]
    text: str
    exit_code: int = 0
