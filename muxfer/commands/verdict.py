"""`muxfer verdict NAME`: does the optimum of a recorded study transfer along its axis?"""

from collections.abc import Sequence

from muxfer.commands.result import CommandResult
from muxfer.errors import NotConfirmed
from muxfer.report.text import table_text
from muxfer.study.recorded import read_study
from muxfer.study.resolve import resolve
from muxfer.study.search import searched
from muxfer.study.session import open_ledger
from muxfer.trial import VerdictKind


def verdict(name: str, overrides: Sequence[str]) -> CommandResult:
    request = resolve(name, overrides)
    with open_ledger(request, existing=True) as ledger:
        study = read_study(request, ledger)
    text = "\n".join([table_text(searched(study.config.search, study.records), study.verdict), *study.notes])
    exit_code = 0 if study.verdict.verdict is VerdictKind.TRANSFERS else NotConfirmed.exit_code
    return CommandResult(data=study.verdict.to_dict(), text=text, exit_code=exit_code)
