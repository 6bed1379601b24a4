"""Imports the modules that the command line names (`--plugin package.module`), and no other code of the user.

Names from a configuration, a ledger or a checkpoint never get here: whoever types the command vouches for the code.
Free of torch: every command imports this module, and light commands must start fast.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from muxfer.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Plugins:
    """Names of modules, and the folder that is searched first, as `python -m` would."""

    names: tuple[str, ...] = ()
    folder: str = ""


_allowed = Plugins()


def allowed() -> Plugins:
    """The plugins that this process may use. A job carries them to the process that runs it."""
    return _allowed


def allow(names: Sequence[str], *, folder: str) -> None:
    """Import these modules and let models name their classes. Raises BadInput where one can't be imported."""
    global _allowed
    if names and folder not in sys.path:
        sys.path.insert(0, folder)
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise BadInput(f"--plugin {name[:60]!r}: expected the name of a Python module, package.module")
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # a script without a __main__ guard may call sys.exit
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise BadInput(f"--plugin {name} can't be imported ({reason}); looked in {folder} first") from error
    _allowed = Plugins(names=tuple(names), folder=folder)
