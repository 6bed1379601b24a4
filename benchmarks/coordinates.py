"""`python -m benchmarks.coordinates`: the coordinate check of every family, healthy, under SP, and with broken rules.

Writes docs/models.json, and the tables between the markers of docs/models.md. Each family has healthy runs with
different seeds, of which none may fail; a run under `standard`, which must fail; and a run of each mutant of
muxfer.mup.mutants, which must fail unless it provably changes nothing. A run has one seed, fewer than `muxfer check`
uses, so it is the harder test.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.page import replace_section
from muxfer.config.hydra_compose import compose
from muxfer.config.models import with_num_classes
from muxfer.config.parse import parse
from muxfer.config.settings import with_setting
from muxfer.config.task import Task
from muxfer.data.source import load_dataset
from muxfer.models.build import build_model, scale_plan
from muxfer.models.coordinate_run import check_coordinates
from muxfer.mup.mutants import MUTANTS, Mutant, mutated

WIDTHS = (32, 64, 128, 256)
DEPTHS = (2, 4, 8, 16)
STEPS = 10
BASE_LR = 2**-16
BATCH_SIZE = 16
HEALTHY_RUNS = 20
DOCS = Path(__file__).parents[1] / "docs"
START, END = "<!-- written by make models -->", "<!-- end -->"

FAMILIES: Mapping[str, Sequence[str]] = {
    "dit": ("model=dit", "model.depth=2"),
    "dit, adaLN": ("model=dit", "model.depth=2", "model.block=adaln"),
    "dit, cross-attention": ("model=dit", "model.depth=2", "model.block=cross_attention"),
    "dit, learned variance": ("model=dit", "model.depth=2", "model.learn_sigma=true", "objective=ddpm"),
    "dit, in-context": ("model=dit", "model.depth=2", "model.block=in_context"),
    "pixart": ("model=pixart", "model.depth=2"),
    "uvit": ("model=uvit", "model.depth=3"),
    "mmdit": ("model=mmdit", "model.depth=2"),
    "mmdit with REPA": (
        *("model=mmdit", "model.depth=2", "model.repa_depth=1", "model.repa_dim=32", "objective.repa_weight=0.5"),
    ),
    "in_context": ("model=in_context", "model.depth=2"),
    "cross_attention": ("model=cross_attention", "model.depth=2"),
    "diffusers DiT": ("model=diffusers_dit", "model.depth=2"),
    "diffusers PixArt": ("model=diffusers_pixart", "model.depth=2"),
    "diffusers SD3": ("model=diffusers_sd3", "model.depth=2"),
    "diffusers FLUX": ("model=diffusers_flux", "model.depth=2"),
}
"""Name and overrides of the families that are checked over widths."""

DEPTH_FAMILIES: Mapping[str, Sequence[str]] = {
    "dit": ("model=dit", "model.width=64"),
    "pixart": ("model=pixart", "model.width=64"),
    "uvit, residual skips": ("model=uvit", "model.width=64", "model.skip=residual"),
    "mmdit": ("model=mmdit", "model.width=64"),
    "in_context": ("model=in_context", "model.width=64"),
    "cross_attention": ("model=cross_attention", "model.width=64"),
}
"""The same over depths. The smallest depth is the base depth."""
ODD_DEPTHS = (3, 5, 9, 25)
"""Depths of a U-ViT: as many in-blocks as out-blocks, and one between."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One check: a family under a parametrization, at some seeds, with one broken rule or none."""

    overrides: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    mutant: str | None = None
    axis: str = "width"
    sizes: tuple[int, ...] = WIDTHS


@dataclass(frozen=True, kw_only=True)
class Result:
    """Whether the check passed, and by measure the largest distance of a slope from the expected one.

    `changes` False: the mutant provably changes nothing, and was not run.
    """

    passed: bool
    worst: Mapping[str, float]
    failing: tuple[str, ...]
    loss_change: float
    changes: bool = True
    seconds: float = 0.0


def changes_training(task: Task, mutant: Mutant, *, width: int) -> bool:
    """Whether a mutant changes a number that training at this width depends on. False proves that no check can see it.

    Then every rate, decay, eps and fold is equal, and every initial weight is equal to the bit. Examples are a wrong
    deviation of a zero weight, and a rule for a parameter that the model lacks.
    """
    sized = with_setting(task, {"width": width})
    plan = scale_plan(sized)
    broken = mutated(plan, mutant)
    if any(replace(broken.scales[name], init_std=s.init_std) != s for name, s in plan.scales.items()):
        return True
    right, wrong = (build_model(sized, replicate=0, plan=each)[0].state_dict() for each in (plan, broken))
    return any(not torch.equal(right[name], wrong[name]) for name in right)


@lru_cache(maxsize=64)
def task_of(overrides: tuple[str, ...]) -> Task:
    task = parse(compose("lr-width", overrides)).task
    return replace(task, model=with_num_classes(task.model, load_dataset(task.data).num_classes))


def run(job: Job) -> Result:
    """Run one check in this process, on one thread."""
    torch.set_num_threads(1)
    task = task_of(job.overrides)
    mutant = None if job.mutant is None else MUTANTS[job.mutant]
    if mutant is not None and not any(changes_training(task, mutant, width=width) for width in job.sizes):
        return Result(passed=True, worst={}, failing=(), loss_change=0.0, changes=False)
    began = time.perf_counter()
    check = check_coordinates(
        task,
        axis=job.axis,
        sizes=job.sizes,
        steps=STEPS,
        seeds=job.seeds,
        base_lr=BASE_LR,
        batch_size=BATCH_SIZE,
        mutant=mutant,
    )
    worst: dict[str, float] = {}
    for line in check.lines:
        if line.slope is not None:
            worst[line.measure] = max(worst.get(line.measure, 0.0), abs(line.slope - line.expected))
    failing = tuple(f"{line.measure} of {line.name}: {line.slope}" for line in check.lines if not line.passed)
    seconds = time.perf_counter() - began
    return Result(passed=check.passed, worst=worst, failing=failing, loss_change=check.loss_change, seconds=seconds)


def run_all(jobs: Sequence[Job]) -> list[Result]:
    """Run the jobs, two at a time. Results are in their order."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return list(pool.map(run, jobs))


def study(
    name: str, overrides: Sequence[str], *, axis: str, num_healthy: int, mutants: Sequence[str]
) -> dict[str, Any]:
    """Run all checks of one family. Returns its part of docs/models.json."""
    sizes, healthy_overrides, control = WIDTHS, tuple(overrides), (*overrides, "optimizer.parametrization=standard")
    if axis == "depth":
        sizes, control = ODD_DEPTHS if "uvit" in name else DEPTHS, tuple(overrides)
        healthy_overrides = (*overrides, f"model.base_depth={sizes[0]}", "optimizer.parametrization=completep")
    healthy = [Job(overrides=healthy_overrides, seeds=(seed,), axis=axis, sizes=sizes) for seed in range(num_healthy)]
    broken = [Job(overrides=healthy_overrides, mutant=mutant, axis=axis, sizes=sizes) for mutant in mutants]
    results = run_all([*healthy, Job(overrides=control, axis=axis, sizes=sizes), *broken])
    right, under_control, faults = results[:num_healthy], results[num_healthy], results[num_healthy + 1 :]
    return {
        "name": name,
        "overrides": list(overrides),
        "axis": axis,
        "healthy_runs": num_healthy,
        "healthy_failed": sum(not result.passed for result in right),
        "failing": [line for result in right for line in result.failing],
        "worst": {m: round(max(result.worst[m] for result in right), 3) for m in right[0].worst},
        "loss_change": round(max(result.loss_change for result in right), 3),
        "seconds": round(sorted(result.seconds for result in right)[num_healthy // 2], 2),
        "control_passed": under_control.passed,
        "control_worst": {m: round(value, 3) for m, value in under_control.worst.items()},
        "mutants": {
            mutant: {
                "changes_training": result.changes,
                "caught": not result.passed,
                "worst": {m: round(value, 3) for m, value in result.worst.items()},
            }
            for mutant, result in zip(mutants, faults, strict=True)
        },
    }


def to_markdown(studies: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for axis, head in (("width", "SP"), ("depth", "μP without depth scaling")):
        rows = [each for each in studies if each["axis"] == axis]
        sizes = ", ".join(map(str, WIDTHS if axis == "width" else DEPTHS))
        if axis == "depth":
            sizes += f" (U-ViT {', '.join(map(str, ODD_DEPTHS))})"
        lines += [
            f"Over {axis}s {sizes}; {STEPS} steps at a base rate of 2^-16, batch {BATCH_SIZE}, one seed a run.",
            "The figures are the largest distance of a slope from the expected one, of any module or parameter,",
            "in any run.",
            "",
            "| family | healthy runs failed | change | output at init | update | parameter at init |"
            f" {head}: change | mutants caught |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            seen = {name: m for name, m in row["mutants"].items() if m["changes_training"]}
            caught = sum(m["caught"] for m in seen.values())
            worst = " | ".join(
                format(row["worst"][m], ".2f") for m in ("change", "output_at_init", "update", "parameter_at_init")
            )
            control = f"{row['control_worst']['change']:.2f}, {'passes' if row['control_passed'] else 'fails'}"
            mutants = f"{caught} of {len(seen)}" if seen else "not run"
            failed = f"{row['healthy_failed']} of {row['healthy_runs']}"
            lines.append(f"| {row['name']} | {failed} | {worst} | {control} | {mutants} |")
        lines.append("")
    faults: dict[str, list[float]] = {}
    for row in studies:
        for name, m in row["mutants"].items():
            if m["changes_training"]:
                faults.setdefault(name, []).append(max(m["worst"].values()))
    lines += [
        "Each rule broken, in the family in which it shows least: the largest distance of a slope, in the measure that",
        "sees it best.",
        "",
        "| broken rule | families | shows least |",
        "|---|---|---|",
        *(f"| {name} | {len(values)} | {min(values):.2f} |" for name, values in faults.items()),
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coordinates", description=__doc__)
    parser.add_argument("--healthy", type=int, default=HEALTHY_RUNS, help="healthy runs a family")
    parser.add_argument("--only", help="part of a family's name; prints, writes nothing")
    arguments = parser.parse_args()
    studies = []
    for axis, families in (("width", FAMILIES), ("depth", DEPTH_FAMILIES)):
        for name, overrides in families.items():
            if arguments.only is None or arguments.only in name:
                print(f"{axis}: {name} ...", file=sys.stderr)
                mutants = list(MUTANTS) if axis == "width" else []
                num_healthy = arguments.healthy if axis == "width" else max(1, arguments.healthy // 4)
                studies.append(study(name, overrides, axis=axis, num_healthy=num_healthy, mutants=mutants))
    page = to_markdown(studies)
    print(page)
    if arguments.only is None:
        (DOCS / "models.json").write_text(json.dumps(studies, indent=1, ensure_ascii=False) + "\n")
        models = DOCS / "models.md"
        models.write_text(replace_section(models.read_text(), START, END, page))
    faults = [m["caught"] for each in studies for m in each["mutants"].values() if m["changes_training"]]
    bad = [each["name"] for each in studies if each["healthy_failed"] or each["control_passed"]]
    return 1 if bad or sum(faults) < 0.95 * len(faults) else 0


if __name__ == "__main__":
    sys.exit(main())
