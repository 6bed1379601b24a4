"""Records of a study as a file that is kept with the docs, one row a trial. The page can be made again from it."""

import csv
from collections.abc import Sequence
from pathlib import Path

from muxfer.analysis.cells import ordered
from muxfer.files import replace_file
from muxfer.report.format import rows_csv
from muxfer.trial import Outcome, Record

OWN = ("replicate", "outcome", "metric", "step", "num_parameters", "train_seconds")
"""The columns after the settings."""

DATA = Path(__file__).parents[1] / "docs" / "data"


def export(name: str, overrides: Sequence[str], path: Path) -> list[Record]:
    """Write the settled trials of a recorded study. Run it in the ledger's folder with the sweep's overrides."""
    from muxfer.study.match import the_study
    from muxfer.study.resolve import resolve
    from muxfer.study.session import open_ledger

    request = resolve(name, overrides)
    with open_ledger(request, existing=True) as ledger:
        study = the_study(ledger.studies(request.name), request.study, request.overridden)
        records = ledger.records(study)
    write(records, path)
    return records


def write(records: Sequence[Record], path: Path) -> None:
    settings = sorted({setting for record in records for setting in record.setting})
    rows = [
        [*(record.setting.get(setting) for setting in settings), *(getattr(record, name) for name in OWN)]
        for record in ordered(records)
        if record.kind == "proxy"
    ]
    replace_file(path, rows_csv([*settings, *OWN], rows).encode())


def read(path: Path) -> list[Record]:
    """The records of a file that `write` made. Their keys are row numbers."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Record(
            key=str(index),
            setting={name: float(value) for name, value in row.items() if name not in OWN and value},
            replicate=int(row["replicate"]),
            outcome=Outcome(row["outcome"]),
            metric=float(row["metric"]) if row["metric"] else None,
            step=int(row["step"]),
            num_parameters=int(row["num_parameters"]),
            train_seconds=float(row["train_seconds"]),
        )
        for index, row in enumerate(rows)
    ]
