"""The watched target on real training: healthy ones are left alone, one at 8 times the rate is halted and can go on."""

import dataclasses

import pytest

from muxfer.analysis.loss_band import LossBand, LossCurve, loss_band
from muxfer.analysis.transferability import best_setting
from muxfer.commands.transfer import transfer
from muxfer.config.models import with_num_classes
from muxfer.data.source import load_dataset
from muxfer.executors.base import TrialJob
from muxfer.executors.inline import InlineExecutor
from muxfer.report.figures.band import band_figure
from muxfer.study.resolve import resolve
from muxfer.study.session import open_ledger
from muxfer.study.trials import grid_trials, study_of
from muxfer.training.checkpoint import resume_step
from muxfer.training.optim import rate_multiplier
from muxfer.transfer.guard import Watched, target_band
from muxfer.transfer.target import target_run
from muxfer.trial import Outcome, Verdict, VerdictKind
from tests.small_sweeps import TINY, run_trials
from tests.typed import muxfer

pytestmark = pytest.mark.slow

PROXIES = [*TINY, "search.width=[16,32]", "training.steps=40", "training.warmup_steps=4", "training.batch_size=16"]
PROXIES += ["training.report_every=2", "training.checkpoint_every=1000"]
STUDIES = {
    "constant": [],
    "cosine": ["training.schedule=cosine"],
    "no warm-up, other seed": ["training.warmup_steps=0", "training.seed=1"],
    "ddpm, cosine": ["objective=ddpm", "training.schedule=cosine", "training.seed=2"],
}
TARGETS = [(32, 40), (64, 40), (48, 80), (64, 200), (32, 200)]
"""Width and steps: 1, 2 and 5 times those of the proxies."""


def run(executor, trial, folder):
    """The last report of a trial, and its training losses."""
    executor.submit([TrialJob(trial=trial, folder=str(folder), epoch=1)])
    losses = []
    while True:
        for report in executor.updates(0.5):
            losses += [(point.step, point.value) for point in report.points if point.name == "train_loss"]
            if report.final:
                return report, losses


class Trained:
    """A study whose proxies were trained, and the targets that can be made of it."""

    def __init__(self, config, folder):
        data = load_dataset(config.data)
        self.config = dataclasses.replace(config, model=with_num_classes(config.model, data.num_classes))
        self.folder, self.fingerprint, self.num_pictures = folder, data.fingerprint, len(data.train)
        self.records, self.curves = [], {}
        for trial in grid_trials(self.config, fingerprint=data.fingerprint):
            report, _ = run(executor := Recorder(), trial, folder / trial.key)
            self.records.append(report.record)
            self.curves[trial.key] = executor.points

    def target(self, **changes):
        config = dataclasses.replace(self.config, target=dataclasses.replace(self.config.target, **changes))
        return target_run(
            config,
            study_of("lr-width", config, fingerprint=self.fingerprint),
            verdict=Verdict(verdict=VerdictKind.TRANSFERS, why="", axis="width", hp="base_lr"),
            best=best_setting(self.records, axis="width", hp="base_lr"),
            inside=True,
            unfinished=0,
            fingerprint=self.fingerprint,
            num_pictures=self.num_pictures,
        )

    def band(self, target):
        return target_band(target, self.config.task, self.records, self.curves, axis="width")


class Recorder(InlineExecutor):
    """Trains in this process and keeps every point that came in."""

    def __init__(self):
        super().__init__()
        self.points = []

    def updates(self, timeout_seconds):
        came_in = super().updates(timeout_seconds)
        self.points += [point for report in came_in for point in report.points]
        return came_in


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Trained once for all tests, each when it is first asked for."""
    from muxfer.config.hydra_compose import compose
    from muxfer.config.parse import parse

    trained = {}

    def study(name):
        if name not in trained:
            config = parse(compose("lr-width", [*PROXIES, *STUDIES[name]]))
            trained[name] = Trained(config, tmp_path_factory.mktemp("study"))
        return trained[name]

    return study


@pytest.mark.parametrize("name", STUDIES)
def test_healthy_targets_of_other_widths_lengths_and_schedules_are_left_alone(studies, tmp_path, name):
    study = studies(name)
    for width, steps in TARGETS:
        target = study.target(width=width, steps=steps)
        band = study.band(target)
        assert isinstance(band, LossBand), band
        report, losses = run(Watched(InlineExecutor(), band), target.trial, tmp_path / target.trial.key)
        assert report.halted is None, f"width {width}, {steps} steps: {report.halted}"
        assert (report.record.outcome, report.record.step) == (Outcome.FINISHED, steps)
        assert losses[-1][0] == steps


def test_a_target_at_8_times_the_rate_is_halted_with_its_checkpoint_and_goes_on_unwatched(studies, tmp_path):
    study = studies("constant")
    target = study.target(width=64, steps=120, base_lr=2**-3)
    band = study.band(target)
    report, losses = run(Watched(InlineExecutor(), band), target.trial, tmp_path / "trial")
    assert report.record is None
    assert "above their limit" in report.halted
    assert "target.guard=off" in report.halted
    assert report.step < 60, "well before half its steps"
    assert resume_step(tmp_path / "trial", key=target.trial.key) == report.step
    again, _ = run(Watched(InlineExecutor(), band), target.trial, tmp_path / "trial")
    assert (again.halted.split(" or go on")[0], again.step) == (report.halted.split(" or go on")[0], report.step)
    resumed, points = run(Watched(InlineExecutor(), None), target.trial, tmp_path / "trial")
    assert (resumed.halted, resumed.record.resumed_at) == (None, report.step)
    assert points[: len(losses)] == losses, "from the checkpoint, not from the start"
    whole, _ = run(InlineExecutor(), target.trial, tmp_path / "whole")
    assert resumed.record.metric == whole.record.metric, "bit for bit the target that was never halted"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"width": 8 * 2}, None),
        ({"batch_size": 8}, "training.batch_size 8 says"),
        ({"weight_decay": 0.1}, "optimizer.weight_decay 0.1 says"),
        ({"label_dropout": 0.3}, "training.label_dropout 0.3 says"),
    ],
)
def test_a_target_of_which_the_proxies_say_nothing_is_not_watched_and_says_why(studies, changes, why):
    study = studies("constant")
    found = study.band(study.target(**{"width": 64, "steps": 40, **changes}))
    assert isinstance(found, LossBand) if why is None else why in found


def test_the_smallest_proxys_width_is_predicted_by_that_proxy_alone(studies):
    study = studies("constant")
    target = study.target(width=16, steps=40)
    rates = [rate_multiplier(target.task.training, step) for step in range(40)]
    (record,) = [record for record in study.records if record.setting["width"] == 16]
    points = [(p.step, p.value) for p in study.curves[record.key] if p.name == "train_loss"]
    alone = loss_band([LossCurve(size=16, points=points, rates=rates)], size=16, rates=rates)
    assert study.band(target) == alone


def test_the_figure_shows_the_band_and_where_the_target_left_it(studies, tmp_path):
    study = studies("constant")
    band = study.band(study.target(width=64, steps=120))
    points = [(step, 1.6) for step in range(3, 100, 3)]
    png, svg, table = band_figure(band, points, tmp_path / "target-band", title="target of a study")
    drawn = svg.read_text()
    assert "the proxies predict" in drawn
    assert "too long above" in drawn
    assert "the proxies end" in drawn
    assert png.stat().st_size > 10_000
    header, *rows = table.read_text().splitlines()
    assert header == "step,train_loss,smoothed,predicted,limit"
    assert len(rows) == len(points)
    healthy = [(step, 0.99 * band.at(step)[0]) for step in range(3, 121, 3)]
    assert "too long above" not in band_figure(band, healthy, tmp_path / "other", title="")[1].read_text()


SMALL = [*PROXIES, "training.checkpoint_every=20", "search.base_lr=[2**-9,2**-6,2**-1]"]
WRONG = ["target.width=64", "target.steps=120", "target.base_lr=2**-3"]
BRIEF = ["evaluation.sampling_steps=2", "evaluation.samples_per_class=1"]


def test_transfer_halts_with_3_draws_the_band_and_goes_on_with_the_guard_off(empty_folder):
    asked = resolve("lr-width", SMALL)
    run_trials(asked)
    halted = muxfer(empty_folder, "transfer", "lr-width", *SMALL, *WRONG, *BRIEF, "--force", "--json")
    assert (halted.returncode, halted.stdout) == (3, ""), halted.stderr
    last = halted.stderr.splitlines()[-1]
    assert "the target was halted at step" in last
    assert "target.guard=off" in last
    assert "Traceback" not in halted.stderr
    (picture,) = asked.files.path.glob("target-*/target-band.png")
    assert str(picture) in last
    assert len(list(asked.files.path.glob("trials/*/attempt-*/step-*"))) > 6, "its checkpoint lies there"
    answer = transfer(
        "lr-width", [*SMALL, *WRONG, *BRIEF, "target.guard=off"], print_line=lambda line: None, force=True
    )
    assert answer.data["guard"]["watched"] is False
    assert answer.data["metric"] is not None
    with open_ledger(asked, existing=True) as ledger:
        (record,) = [record for record in ledger.records(asked.study) if record.kind == "target"]
    assert f"halted at step {record.resumed_at}:" in last, "it went on where it was halted"
    assert any(one["name"] == "base_lr" and one["how"] == "given" for one in answer.data["settings"])
    assert "base_lr 2^-3" in answer.data["forced"][-1]
