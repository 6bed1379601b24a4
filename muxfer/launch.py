"""The transfer command: the best base settings of a recorded study, the target's plan, the target itself, its samples.

The target is a trial in the same ledger, trained by the same loop: typing the command again resumes it, or finds it
done. It is recorded with its lineage: the source study, the winning trial, the hash of the plan that scaled it.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muxfer import plan
from muxfer.analysis.transferability import shown
from muxfer.commands import best_of, judge, recorded
from muxfer.config import Task, with_setting
from muxfer.cost import tuning_ratio
from muxfer.errors import TrialsFailed
from muxfer.parse import parse_task
from muxfer.progress import Progress, show_setting
from muxfer.request import Answer, Request, Say, check_writable, driving, open_ledger, request
from muxfer.study import run_study
from muxfer.transfer import TargetRun, proxy_task, target_run
from muxfer.trial import Record
from muxfer.worker import Executor, measure, mup_plan

if TYPE_CHECKING:
    from muxfer.mup import Plan


def transfer(name: str, overrides: Sequence[str], *, say: Say, dry_run: bool = False, force: bool = False) -> Answer:
    """Choose the best base settings of a study and launch the target with them."""
    asked = request(name, overrides)
    with open_ledger(asked, existing=True) as ledger:
        study, config = recorded(asked, ledger)
        home = asked.folder / study.label
        check_writable(home)
        records = ledger.records(study)
        proxies = [record for record in records if record.kind == "proxy"]
        judged = judge(proxies, config)
        target = target_run(
            asked.config,
            study,
            verdict=judged,
            best=best_of(proxies, config),
            unfinished=len(plan.remaining(plan.grid_trials(config, fingerprint=asked.fingerprint), proxies)),
            fingerprint=asked.fingerprint,
            force=force,
        )
        task = parse_task(target.trial.task)
        scales = mup_plan(task)
        for objection in target.forced:
            say(f"forced: {objection}")
        say(f"{study.label}: best at {show_setting(target.winner.setting)}, validation loss {target.proxy_metric:.4f}")
        say(scales_text(scales, task))
        data: dict[str, Any] = {
            "source": {"sweep": name, "study": study.key, "trial": target.winner.key, "plan_hash": scales.hash},
            "setting": dict(target.trial.setting),
            "target": {"model": task.model.family, "width": task.model.width, "steps": task.training.steps},
            "proxy_metric": target.proxy_metric,
            "tuning_ratio": _tuning_ratio(proxies, proxy_task(config, study), task),
            "forced": list(target.forced),
        }
        if dry_run:
            empty = {"metric": None, "run_id": None, "checkpoint": None}
            return Answer(data=data | empty, text="dry run: nothing was launched")
        trial = replace(target.trial, lineage={**target.lineage, "plan_hash": scales.hash})
        with driving(asked, study, ledger, None) as lease:
            ran = run_study(
                [trial],
                records,
                study=study,
                ledger=ledger,
                lease=lease,
                start_executor=lambda: _executor(asked),
                folder=asked.folder,
                progress=Progress(),
            )
            ledger.flush(asked.config.ledger.patience_seconds)
            record = next(record for record in ledger.records(study) if record.key == trial.key)
            if record.metric is None:
                raise TrialsFailed(
                    f"the target {record.outcome} at step {record.step}: {record.error or 'see its loss'}"
                )
            folder = home / f"target-{trial.key[:8]}"
            if ran.records or not (folder / "samples.png").exists():
                files = _write_results(folder, replace(target, trial=trial), record, scales, task)
                ledger.attach(files, key=trial.key)
        from muxfer import report

        origin = {
            "source": f"sweep {study.name}, study {study.key}",
            "winning trial": f"{target.winner.key}, {show_setting(target.winner.setting)}",
            "plan": f"{scales.hash}, {scales.parametrization} with base width {scales.base_width}",
            **({"forced": "; ".join(target.forced)} if target.forced else {}),
        }
        page = report.write_target(name, home, record, proxies, judged, samples=folder / "samples.png", lineage=origin)
    data |= {"metric": record.metric, "run_id": record.run_id, "checkpoint": str(folder / "ema.safetensors")}
    data |= {"samples": str(folder / "samples.png"), "report": str(page)}
    better = "below" if record.metric < target.proxy_metric else "NOT below"
    lines = [
        f"target: validation loss {record.metric:.4f}, {better} the best proxy's {target.proxy_metric:.4f}",
        f"tuning cost {100 * data['tuning_ratio']:.1f} % of the target (trials x parameters x samples)",
        f"weights: {data['checkpoint']}",
        f"samples: {data['samples']}",
        f"report:  {page}",
    ]
    return Answer(data=data, text="\n".join(lines))


def scales_text(scales: "Plan", task: Task) -> str:
    """Each parameter group of the target: how many, and its rate, decay and eps after scaling."""
    optimizer = task.optimizer
    groups: dict[tuple[str, float, float, float, float], int] = {}
    for scale in scales.scales.values():
        key = (scale.role, scale.lr, scale.weight_decay, scale.eps, scale.init_std)
        groups[key] = groups.get(key, 0) + 1
    lines = [
        f"plan {scales.hash}: {scales.parametrization}, width {scales.width}, base width {scales.base_width}",
        f"  {'role':<8} {'tensors':>7} {'lr':>12} {'weight decay':>13} {'eps':>9} {'init':>7}",
    ]
    for (role, lr, decay, eps, init), count in sorted(groups.items()):
        lines.append(
            f"  {role:<8} {count:>7} {shown(optimizer.base_lr * lr):>12} {optimizer.weight_decay * decay:>13.3g}"
            f" {optimizer.eps * eps:>9.2g} {'x' + format(init, '.3g'):>7}"
        )
    return "\n".join(lines)


def _tuning_ratio(proxies: Sequence[Record], base: Task, target: Task) -> float:
    spent = []
    for record in proxies:
        batch_size = with_setting(base, record.setting).training.batch_size
        spent.append((record.num_parameters, record.step * batch_size))
    return tuning_ratio(spent, (measure(target).parameters, target.training.steps * target.training.batch_size))


def _executor(asked: Request) -> Executor:
    """The target takes a joined cluster's slot; on this machine it has all of it, in this very process."""
    if asked.config.compute.address is not None:
        from muxfer.adapters.ray_tune import RayExecutor

        return RayExecutor(asked.config.compute, folder=asked.folder)
    import torch

    from muxfer.inline import InlineExecutor

    device = asked.config.compute.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        from muxfer.errors import NoResources

        raise NoResources("compute.device cuda: this machine has no GPU; use compute.device=cpu or auto")
    return InlineExecutor(device=device)


def _write_results(folder: Path, target: TargetRun, record: Record, scales: "Plan", task: Task) -> list[Path]:
    """Averaged weights, lineage and plan, and a picture of samples: what the target hands out."""
    import torch
    from safetensors.torch import load_file

    from muxfer.adapters.diffusers_sampling import sample, save_grid
    from muxfer.training.data import load
    from muxfer.worker import build_model

    folder.mkdir(parents=True, exist_ok=True)
    assert record.checkpoint is not None
    weights = shutil.copyfile(Path(record.checkpoint) / "ema.safetensors", folder / "ema.safetensors")
    about = folder / "target.json"
    origin = {"lineage": dict(target.trial.lineage), "task": target.trial.task, "plan": scales.to_dict()}
    about.write_text(json.dumps(origin, indent=2))
    data = load(task.data)
    model, _ = build_model(task, replicate=0)
    model.load_state_dict(load_file(weights), strict=False)
    labels = [label for label in range(data.num_classes) for _ in range(task.evaluation.samples_per_class)]
    with torch.no_grad():
        images = sample(
            model.eval(),
            objective=task.objective,
            evaluation=task.evaluation,
            labels=labels,
            num_classes=data.num_classes,
            image_shape=data.image_shape,
            seed=task.training.seed,
        )
    picture = save_grid(images, labels, folder / "samples.png", class_names=data.class_names)
    return [weights, about, picture]
