"""Tables for the tests of `muxfer verdict --table`: the paper's, and parabolas of a known drift."""

import numpy as np

from muxfer.commands.verdict_table import verdict
from tests.typed import ROOT

TABLES = ROOT / "tests" / "tables"
LR, MULTIPLIER = TABLES / "dit_mup_base_lr_by_width.csv", TABLES / "dit_mup_output_mult_by_width.csv"
SCORES = {"fid50k": "min", "sfid50k": "min", "inception_score": "max", "precision": "max", "recall": "max"}


def judged(path, hp="hp", metric="loss", axis="width", **more):
    """The verdict on the runs, without the keys that describe the file."""
    data = verdict(str(path), axis=axis, hp=hp, metric=metric, **more).data
    return {key: value for key, value in data.items() if key not in ("table", "rows", "duplicates", "notes")}


def write(folder, rows, header="width,hp,loss", name="runs.csv"):
    path = folder / name
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def quadratic(*, drift=0.0, seeds=1, noise=0.0, widths=(64, 128, 256), seed=0):
    """Rows (width, log2 setting, loss, seed) on a parabola whose vertex moves by `drift` per doubling."""
    rng = np.random.default_rng(seed)
    return [
        (width, hp, 1 + 0.02 * (hp + 10 - drift * doubling) ** 2 + noise * rng.normal(), number)
        for doubling, width in enumerate(widths)
        for hp in range(-14, -6)
        for number in range(seeds)
    ]
