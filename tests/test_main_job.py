"""The main job as a person has it: real Ray, real MLflow, real images, one command after another in one folder.

Small models keep it short; nothing else is smaller than life. What must hold after every fault: one FINISHED run a
trial, no work done again beyond a checkpoint interval, and the very numbers of an uninterrupted sweep.
"""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from muxfer.commands.clean import clean
from muxfer.errors import StudyBusy
from muxfer.study import resolve as request
from muxfer.study import session
from tests.typed import answer, muxfer, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.alone]

SMALL = ["search.width=[16,32]", "search.base_lr=[2**-8,2**-6,2**-1]", "model.base_width=32", "model.depth=1"]
SMALL += ["model.patch=4", "training.steps=120", "training.batch_size=32", "training.checkpoint_every=20"]
SMALL += ["evaluation.timesteps=2"]
HEAVY = ("torch", "numpy", "datasets", "mlflow", "safetensors")
TARGET = ["target.width=64", "target.steps=240", "evaluation.sampling_steps=10", "evaluation.samples_per_class=2"]


def results(swept):
    return {trial["key"]: (trial["outcome"], trial["metric"], trial["step"]) for trial in swept["trials"]}


def trial_runs(folder):
    """The trials' runs by key, as MLflow has them."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("muxfer")
    found = {}
    for run in client.search_runs([experiment.experiment_id], run_view_type=ViewType.ACTIVE_ONLY, max_results=1000):
        found.setdefault(run.data.tags.get("muxfer.key"), []).append(run)
    found.pop(None)
    return client, found


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder with a finished sweep, and the sweep's answer."""
    folder = tmp_path_factory.mktemp("main")
    for name in HEAVY:  # somebody else's, in the folder that the command is typed in
        (folder / f"{name}.py").write_text("raise SystemExit('canary')\n")
    return folder, answer(folder, "sweep", "lr-width", *SMALL)


def test_a_sweep_ends_with_every_trial_a_verdict_a_figure_and_a_page(swept):
    folder, first = swept
    assert (first["ran"], first["skipped"], len(first["trials"])) == (6, 0, 6)
    outcomes = {(t["setting"]["width"], t["setting"]["base_lr"]): t["outcome"] for t in first["trials"]}
    assert outcomes[32, 2**-6] == "finished"
    assert first["verdict"]["verdict"] in ("transfers", "drifts", "abstains")
    assert set(first["verdict"]["optimum"]) == {"16", "32"}
    assert first["best"]["setting"]["width"] == 32
    assert first["best"]["metric"] == min(
        t["metric"] for t in first["trials"] if t["setting"]["width"] == 32 and t["metric"]
    )
    assert 0 < first["train_seconds"] < 2 * first["wall_seconds"] * (os.cpu_count() or 1)
    page = Path(first["report"])
    assert page.is_relative_to(folder / "muxfer")
    assert "best base_lr" in page.read_text()
    assert (page.parent / "u-curves.png").stat().st_size > 10_000


def test_mlflow_holds_each_trial_once_under_the_sweeps_run(swept):
    folder, first = swept
    client, runs = trial_runs(folder)
    assert set(runs) == {trial["key"] for trial in first["trials"]}
    for trial in first["trials"]:
        (run,) = runs[trial["key"]]
        assert run.data.tags["muxfer.outcome"] == trial["outcome"]
        assert run.info.status == "FINISHED"
        assert float(run.data.params["base_lr"]) == trial["setting"]["base_lr"]
        assert run.data.params["model.width"] == str(trial["setting"]["width"])
        parent = client.get_run(run.data.tags["mlflow.parentRunId"])
        assert parent.data.tags["muxfer.sweep"] == "lr-width"
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train_loss")]
        assert steps == sorted(set(steps)), "a point was written twice"
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "u-curves.png", "config.json"} <= names


def test_a_second_sweep_does_nothing(swept):
    folder, first = swept
    home = Path(first["folder"])
    litter = [home / ".report.html.4194999.tmp", home / ".ray-abc" / "tune.json"]
    litter[1].parent.mkdir()
    for left in litter:  # as drivers that were killed leave it
        left.write_text("{")
    exporting = home / ".diffusers-01234567.4194999.tmp"
    exporting.mkdir()
    again = answer(folder, "sweep", "lr-width", *SMALL)
    assert not any(left.exists() for left in litter)
    exporting.rmdir()
    assert (again["ran"], again["skipped"], again["train_seconds"]) == (0, 6, 0)
    assert results(again) == results(first)
    assert again["verdict"] == first["verdict"]


def test_extending_the_grid_reuses_its_trials(swept):
    folder, first = swept
    fewer = muxfer(folder, "sweep", "lr-width", *SMALL, "search.base_lr=[2**-8,2**-6]")
    assert (fewer.returncode, fewer.stderr.count("finished")) == (0, 0), fewer.stderr
    assert "2 more settled trials of lr-width-" in fewer.stdout, "nothing is left out in silence"
    more = answer(folder, "sweep", "lr-width", *SMALL, "search.base_lr=[2**-8,2**-6,2**-4,2**-1]")
    assert (more["ran"], more["skipped"]) == (2, 6)
    assert results(first).items() <= results(more).items()
    assert more["study"] == first["study"]


def test_the_transfer_launches_a_target_with_its_lineage_weights_and_samples(swept):
    folder, _ = swept
    answer(folder, "sweep", "lr-width", *SMALL, "search.base_lr=[2**-8,2**-6,2**-4,2**-1]")
    done = muxfer(folder, "transfer", "lr-width", *SMALL, *TARGET, "--json", "--force")
    assert done.returncode == 0, done.stderr
    launched = json.loads(done.stdout)
    assert launched["target"] == {"model": "dit", "width": 64, "steps": 240}
    assert launched["metric"] < launched["proxy_metric"]
    assert "hidden" in done.stderr, "each parameter group's scaled rate is shown"
    from PIL import Image
    from safetensors import safe_open

    with safe_open(launched["checkpoint"], "pt") as weights:
        assert weights.get_slice("final_layer.linear.weight").get_shape() == [16, 64]
    with Image.open(launched["samples"]) as picture:
        assert picture.size[0] > 50
    client, runs = trial_runs(folder)
    targets = [run for same in runs.values() for run in same if run.data.tags["muxfer.kind"] == "target"]
    (target,) = targets
    assert target.info.run_id == launched["run_id"]
    assert target.data.tags["muxfer.lineage.winning_trial"] in runs
    assert target.data.tags["muxfer.lineage.plan_hash"] == launched["source"]["plan_hash"]
    names = {file.path for file in client.list_artifacts(target.info.run_id)}
    assert {"ema.safetensors", "samples.png", "target.json"} <= names
    for trial in folder.glob("muxfer/*/trials/*"):
        shutil.rmtree(trial)  # what the target handed out needs its checkpoints no more
    again = answer(folder, "transfer", "lr-width", *SMALL, *TARGET, "--force")
    assert {**again, "wall_seconds": 0} == {**launched, "wall_seconds": 0}, "the target was found done"


def test_two_studies_of_one_sweep_are_told_apart(swept):
    folder, first = swept
    standard = answer(folder, "sweep", "lr-width", *SMALL, "optimizer.parametrization=standard")
    assert standard["study"] != first["study"]
    assert standard["ran"] == 6
    refused = muxfer(folder, "transfer", "lr-width")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "optimizer.parametrization=mup or optimizer.parametrization=standard" in refused.stderr
    judged = muxfer(folder, "verdict", "lr-width", "optimizer.parametrization=mup")
    assert judged.returncode in (0, 6), judged.stderr


def checkpoints(folder):
    return list(folder.glob("muxfer/*/trials/*/attempt-*/step-*/manifest.json"))


@pytest.mark.parametrize(
    ("number", "to_group", "code"),
    [
        (signal.SIGTERM, False, 143),
        (signal.SIGTERM, True, 143),
        (signal.SIGINT, False, 130),
        (signal.SIGUSR1, False, 143),
    ],
)
def test_a_stopped_sweep_goes_on_where_it_was_and_ends_with_the_same_numbers(swept, tmp_path, number, to_group, code):
    _, first = swept
    process = start(tmp_path, "sweep", "lr-width", *SMALL, "--json")
    wait_for(lambda: len(checkpoints(tmp_path)) >= 2, process)
    (os.killpg if to_group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out) == (code, ""), err
    assert "Traceback" not in err
    before = {path.parents[2].name: 0 for path in checkpoints(tmp_path)}
    for path in checkpoints(tmp_path):
        key, step = path.parents[2].name, int(path.parent.name.removeprefix("step-"))
        before[key] = max(before[key], step)
    again = answer(tmp_path, "sweep", "lr-width", *SMALL)
    assert results(again) == results(first), "bit for bit the uninterrupted sweep's"
    assert again["ran"] + again["skipped"] == 6
    _, runs = trial_runs(tmp_path)
    assert all(len(same) == 1 for same in runs.values())
    resumed = {trial["key"] for trial in again["trials"] if trial["resumed"]}
    half_done = {key for key, step in before.items() if step < 120} & {
        trial["key"] for trial in again["trials"] if trial["step"] == 120
    }
    assert half_done <= resumed, "what had a checkpoint went on from it"


def test_a_second_driver_is_turned_away_and_the_first_goes_on(tmp_path):
    long = [*SMALL, "training.steps=100000", "search.width=[32]", "search.base_lr=[2**-6]"]
    process = start(tmp_path, "sweep", "lr-width", *long, "--json")
    wait_for(lambda: checkpoints(tmp_path), process)
    second = muxfer(tmp_path, "sweep", "lr-width", *long, "--json")
    assert (second.returncode, second.stdout) == (75, ""), second.stderr
    assert "Traceback" not in second.stderr
    assert "skipped_because" in answer(tmp_path, "sweep", "lr-width", *long, "--if-running=skip")
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 143, "the first went on until it was stopped"
    assert "started" in err


def test_clean_removes_the_files_and_keeps_the_ledger_whose_address_no_page_tells(tmp_path):
    elsewhere = f"ledger.tracking_uri=sqlite:///{tmp_path}/a/s3cret.db"
    tiny = [*SMALL, "search.width=[16]", "search.base_lr=[2**-6]", elsewhere]
    first = answer(tmp_path, "sweep", "lr-width", *tiny)
    assert "s3cret" not in Path(first["report"]).read_text()
    asked = request.resolve("lr-width", [*tiny, f"output_dir={tmp_path}/a/muxfer"])
    with session.open_ledger(asked) as ledger, contextlib.ExitStack() as driven:

        def started_meanwhile(question):
            driven.callback(ledger.acquire(asked.study).release)
            return True

        with pytest.raises(StudyBusy, match="is being driven"):
            clean("lr-width", asked.overrides, confirmed=started_meanwhile)
    assert Path(first["folder"]).is_dir(), "the files of a sweep that was started while clean asked"
    other = muxfer(tmp_path, "clean", "lr-width", elsewhere, "training.steps=60", "--yes")
    assert (other.returncode, "no study lr-width with training.steps=60 has files" in other.stderr) == (2, True)
    cleaned = muxfer(tmp_path, "clean", "lr-width", elsewhere, "training.steps=120", "--yes")
    assert cleaned.returncode == 0, cleaned.stderr
    assert not list(tmp_path.glob("a/muxfer/*"))
    again = answer(tmp_path, "sweep", "lr-width", *tiny)
    assert again["ran"] == 0
    assert Path(again["report"]).exists()
