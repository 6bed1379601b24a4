"""The transfer command: the best base settings of a recorded study, the target's plan, the target itself, its samples.

The target is a trial in the same ledger, trained by the same loop: typing the command again resumes it, or finds it
done. It is recorded with its lineage: the source study, the winning trial, the hash of the plan that scaled it.
"""

import functools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muxfer import plan
from muxfer.analysis.transferability import inside_grid, shown
from muxfer.commands import best_of, judge, recorded
from muxfer.config import Task, with_setting
from muxfer.cost import tuning_ratio
from muxfer.errors import BadInput, TrialsFailed
from muxfer.figures import replace_file
from muxfer.mup import check_same_base
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
        study, config, trials = recorded(asked, ledger)
        home = asked.folder / study.label
        check_writable(home)
        records = ledger.records(study)
        wanted = {trial.key for trial in trials}
        proxies = [record for record in records if record.key in wanted]
        judged = judge(proxies, config)
        target = target_run(
            asked.config,
            study,
            verdict=judged,
            best=best_of(proxies, config),
            inside=inside_grid(proxies, axis=config.search.axis, hp=config.search.hp),
            unfinished=len(plan.remaining(trials, proxies)),
            fingerprint=asked.fingerprint,
            force=force,
        )
        task = parse_task(target.trial.task)
        scales = mup_plan(task)
        base = proxy_task(config, study)
        check_same_base(mup_plan(with_setting(base, target.winner.setting)), scales)
        choice = [
            f"{study.label}: best at {show_setting(target.winner.setting)}, validation loss {target.proxy_metric:.4f}",
            f"verdict: {judged.verdict}: {judged.why}",
            *(f"forced: {objection}" for objection in target.forced),
            scales_text(scales, task),
        ]
        data: dict[str, Any] = {
            "source": {"sweep": name, "study": study.key, "trial": target.winner.key, "plan_hash": scales.hash},
            "setting": dict(target.trial.setting),
            "target": {"model": task.model.family, "width": task.model.width, "steps": task.training.steps},
            "proxy_metric": target.proxy_metric,
            "tuning_ratio": _tuning_ratio(proxies, base, task),
            "groups": scale_groups(scales, task),
            "forced": list(target.forced),
        }
        if dry_run:
            empty = {"metric": None, "run_id": None, "checkpoint": None}
            return Answer(data=data | empty, text="\n".join([*choice, "dry run: nothing was launched"]))
        say("\n".join(choice))
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
            "plan": f"{scales.hash}, {scales.parametrization} with base width {scales.base_width}{_base_depth(scales)}",
            **({"forced": "; ".join(target.forced)} if target.forced else {}),
        }
        page = report.write_target(name, home, record, proxies, judged, samples=folder / "samples.png", lineage=origin)
    data |= {"metric": record.metric, "run_id": record.run_id, "checkpoint": str(folder / "ema.safetensors")}
    data |= {"samples": str(folder / "samples.png"), "report": str(page)}
    lowest = min(proxy.metric for proxy in proxies if proxy.metric is not None)
    better = "below every proxy's" if record.metric < lowest else "NOT below every proxy's"
    lines = [
        f"target: validation loss {record.metric:.4f}, {better} (the lowest is {lowest:.4f})",
        f"tuning cost {100 * data['tuning_ratio']:.1f} % of the target (trials x parameters x samples)",
        f"weights: {data['checkpoint']}",
        f"samples: {data['samples']}",
        f"report:  {page}",
    ]
    return Answer(data=data, text="\n".join(lines))


def scale_groups(scales: "Plan", task: Task) -> list[dict[str, Any]]:
    """Each parameter group of the target: how many tensors, and its rate, decay and eps after scaling."""
    optimizer = task.optimizer
    counts = Counter((s.role, s.lr, s.weight_decay, s.eps, s.init_std) for s in scales.scales.values())
    return [
        {
            "role": role,
            "tensors": count,
            "lr": optimizer.base_lr * lr,
            "weight_decay": optimizer.weight_decay * decay,
            "eps": optimizer.eps * eps,
            "init_std": init,
        }
        for (role, lr, decay, eps, init), count in sorted(counts.items())
    ]


def scales_text(scales: "Plan", task: Task) -> str:
    """The same as a table for a terminal."""
    lines = [
        f"plan {scales.hash}: {scales.parametrization}, width {scales.width}, base width {scales.base_width}"
        f"{_base_depth(scales)}",
        f"  {'role':<8} {'tensors':>7} {'lr':>12} {'weight decay':>13} {'eps':>9} {'init':>7}",
    ]
    for group in scale_groups(scales, task):
        lines.append(
            f"  {group['role']:<8} {group['tensors']:>7} {shown(group['lr']):>12} {group['weight_decay']:>13.3g}"
            f" {group['eps']:>9.2g} {'x' + format(group['init_std'], '.3g'):>7}"
        )
    return "\n".join(lines)


def _base_depth(scales: "Plan") -> str:
    scaled = scales.parametrization == "completep"
    return f", depth {scales.depth}, base depth {scales.base_depth}" if scaled else ""


def _tuning_ratio(proxies: Sequence[Record], base: Task, target: Task) -> float:
    spent = []
    for record in proxies:
        batch_size = with_setting(base, record.setting).training.batch_size
        spent.append((record.num_parameters, record.step * batch_size))
    return tuning_ratio(spent, (measure(target.model).parameters, target.training.steps * target.training.batch_size))


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
    """Averaged weights, lineage and plan, and last a picture of samples: what the target hands out."""
    import torch
    from safetensors.torch import load_file

    from muxfer.adapters.diffusers_sampling import sample, save_grid
    from muxfer.training.data import load
    from muxfer.worker import build_model, conditioning

    folder.mkdir(parents=True, exist_ok=True)
    source = Path(record.checkpoint or "") / "ema.safetensors"
    if not source.is_file():
        raise BadInput(
            f"the target is trained (run {record.run_id}) but its checkpoint is not on this host ({source.parent}):"
            " take ema.safetensors from the run's artifacts in MLflow, or bring the study's folder here"
        )
    weights = replace_file(folder / "ema.safetensors", source.read_bytes())
    origin = {"lineage": dict(target.trial.lineage), "task": target.trial.task, "plan": scales.to_dict()}
    about = replace_file(folder / "target.json", json.dumps(origin, indent=2).encode())
    data = load(task.data)
    model, _ = build_model(task, replicate=0)
    model.load_state_dict(load_file(weights), strict=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    labels = [label for label in range(data.num_classes) for _ in range(task.evaluation.samples_per_class)]
    predict = conditioning(task.model, data.captions).to(device)
    images = sample(
        functools.partial(predict, model.eval().to(device)),
        objective=task.objective,
        evaluation=task.evaluation,
        labels=labels,
        num_classes=data.num_classes,
        image_shape=data.image_shape,
        seed=task.training.seed,
        learn_sigma=task.model.learn_sigma,
        device=device,
    )
    drawn = save_grid(images, labels, folder / ".samples.png", class_names=data.class_names)
    return [weights, about, drawn.replace(folder / "samples.png")]
