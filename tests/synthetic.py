"""Studies for the tests: of a known shape, drawn at random, and one that really ran."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from muxfer.analysis.laws.isoflop_points import Points
from muxfer.analysis.laws.scaling_law import fit_isoflop
from muxfer.analysis.transferability import judge
from muxfer.trial import Outcome, Point, Record


def settled(setting: Any, metric: float | None, *, key: str = "k", step: int = 200, **more: Any) -> Record:
    """What a trial leaves: it finished with a metric, or diverged without one."""
    outcome = Outcome.DIVERGED if metric is None else Outcome.FINISHED
    given = {"key": key, "setting": setting, "replicate": 0, "outcome": outcome, "metric": metric, "step": step}
    return Record(**given | more)


def make_study(widths=(32, 64, 128), exponents=range(-9, -3), seeds=2, shift=0.0):
    records = []
    for width in widths:
        for e in exponents:
            for seed in range(seeds):
                diverged = e >= -4 and width > 32
                metric = None if diverged else 0.3 + 4 / width + 0.01 * (e + 7 - shift) ** 2 + 0.001 * seed
                metric = 31.5 if e >= -4 and width == 32 else metric
                more = {"replicate": seed, "train_seconds": 2.0, "num_parameters": 100 * width}
                setting, key = {"base_lr": 2.0**e, "width": width}, f"key{width}x{-e}x{seed}"
                records.append(settled(setting, metric, key=key, step=17 if diverged else 200, **more))
    return records


def judged(records):
    return judge(records, axis="width", hp="base_lr")


def points_of(records):
    return {
        r.key: [Point(name="train_loss", step=s, value=1 / (1 + s / 50)) for s in range(0, r.step, 5)] for r in records
    }


def make_search(num=24, seed=0):
    """Random settings: two span decades, one is a name. Every sixth trial diverged."""
    draw, records = np.random.default_rng(seed), []
    for i in range(num):
        lr, clip = 2.0 ** draw.uniform(-10, -5), 10.0 ** draw.uniform(-2, 2)
        setting = {"base_lr": lr, "gradient_clip": clip, "warmup_steps": int(draw.integers(1, 99)), "width": 64}
        setting["sampler"] = "late" if i % 3 else "early"
        metric = None if i % 6 == 0 else 0.5 + 0.02 * (np.log2(lr) + 7) ** 2 + 0.005 * np.log10(clip) ** 2
        records.append(settled(setting, metric, key=f"s{i}", step=9, train_seconds=1.0))
    return records


def real_study():
    """The records and training curves of `muxfer sweep lr-width` at four widths with three seeds, on 2 cores."""
    rows = json.loads((Path(__file__).parent / "fixtures" / "lr-width.json").read_text())
    points = {
        row["key"]: [Point(name="train_loss", step=step, value=value) for step, value in row.pop("train_loss", [])]
        for row in rows
    }
    return [Record.from_dict(row) for row in rows], points


def check_of(folder):
    """A coordinate check with one failing line, as `muxfer check` writes it: its JSON, and its figure in the folder."""
    from muxfer.commands.check import check_data  # these import torch
    from muxfer.mup.slopes import MEASURES, CoordinateCheck, Line
    from muxfer.report.figures.check import coordinate_figure

    sizes = (32, 64, 128, 256)
    lines = []
    for i, (measure, role) in enumerate([(m, r) for m in MEASURES for r in ("input", "hidden", "readout")]):
        slope = 0.9 if (measure, role) == ("update", "readout") else 0.02 * (i % 3 - 1)
        values = {size: 0.1 * size**slope for size in sizes}
        step = 10 if measure == "change" else None
        around = {"slope": slope, "low": slope - 0.02, "high": slope + 0.02}
        passed = slope < 0.5
        name = f"blocks.{i}.{role}"
        lines.append(
            Line(measure=measure, name=name, role=role, step=step, expected=0.0, values=values, passed=passed, **around)
        )
    found = CoordinateCheck(
        parametrization="mup", axis="width", sizes=sizes, steps=10, seeds=3, lines=tuple(lines), loss_change=0.01
    )
    paths = coordinate_figure([found], folder / "mup-width", title="dit: coordinates by width")
    return {**check_data(found, model="dit", width=64), "figure": str(paths[0]), "control": None}


def front_study():
    """Learning rates over widths and steps. Short trials have another best rate."""
    draw, records = np.random.default_rng(5), []
    for width in (32, 64, 128):
        for steps in (50, 100, 200):
            for e in range(-9, -3):
                for seed in range(2):
                    diverged = e == -4 and width == 128
                    loss = (0.45 + 6 / width + 20 / steps) * (1 + 0.02 * (e + 6.4 - 1.2 * (steps < 100)) ** 2)
                    metric = None if diverged else float(loss * (1 + 0.004 * draw.normal()))
                    more = {"replicate": seed, "train_seconds": 4.0, "num_parameters": 100 * width**2}
                    setting, key = {"base_lr": 2.0**e, "width": width, "steps": steps}, f"p{width}x{steps}x{-e}x{seed}"
                    records.append(settled(setting, metric, key=key, step=17 if diverged else steps, **more))
    return records


def isoflop_study():
    """Budgets against widths under a known law, and its fit."""
    draw, records, rows = np.random.default_rng(0), [], []
    for flops in (1e11, 3e11, 1e12, 3e12):
        for width in (32, 48, 64, 96, 128, 192):
            params = 300 * width**2
            loss = 2.39 * flops**-0.03 * (1 + 0.03 * np.log(params / (1.1e6 * (flops / 5e11) ** 0.4)) ** 2)
            loss = float(loss * (1 + 0.002 * draw.normal()))
            setting = {"flops": flops, "width": width}
            records.append(settled(setting, loss, key=f"i{flops:g}x{width}", step=100, num_parameters=params))
            rows.append((flops, params, flops / 6 / params, loss))
    columns = np.array(rows).T
    return records, fit_isoflop(Points(**dict(zip(("flops", "params", "tokens", "loss"), columns, strict=True))))
