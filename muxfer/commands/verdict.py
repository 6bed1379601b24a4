"""`muxfer verdict`: does the optimum of a recorded study transfer?"""

from collections.abc import Sequence

from muxfer.commands.result import CommandResult
from muxfer.errors import NotAYes
from muxfer.study.recorded import judge, outside, recorded, records_of
from muxfer.study.resolve import resolve
from muxfer.study.search import searched
from muxfer.study.session import open_ledger
from muxfer.study.trials import remaining


def verdict(name: str, overrides: Sequence[str]) -> CommandResult:
    """Does the optimum of a recorded study transfer along its axis?"""
    request = resolve(name, overrides)
    with open_ledger(request, existing=True) as ledger:
        study, config, trials = recorded(request, ledger)
        records = records_of(ledger, study, trials)
        judged = judge(records, config, unfinished=len(remaining(trials, records)))
        left_out = outside(ledger, study, trials)
    from muxfer.report.text import table_text

    text = "\n".join([table_text(searched(config.search, records), judged), *left_out])
    return CommandResult(
        data=judged.to_dict(), text=text, exit_code=0 if judged.verdict == "transfers" else NotAYes.exit_code
    )
