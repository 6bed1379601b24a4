"""Every packaged study composes at both scales. Its paper scale is planned without data or GPU."""

import dataclasses
import functools
import json

import pytest

from muxfer.commands.plan import plan
from muxfer.config.hydra_compose import compose, packaged
from muxfer.config.parse import parse
from muxfer.config.settings import with_setting
from muxfer.config.task import DescribedData
from muxfer.data.source import describe_data, load_dataset
from muxfer.errors import BadInput
from muxfer.study.resolve import resolve
from muxfer.study.trials import grid_trials
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("empty_folder")
STUDIES = sorted(file.stem for file in packaged("sweeps").glob("*.yaml"))

DIT_RATES = tuple(2.0**power for power in range(-13, -8))
MULTIPLIERS = tuple(2.0**power for power in range(-6, 7, 2))
WIDTHS, BATCHES, STEPS = (144, 288, 576), (128, 256, 512), (100_000, 150_000, 200_000)
GRIDS = {
    "lr-width": {"width": WIDTHS, "base_lr": DIT_RATES},
    "sp-control": {"width": WIDTHS, "base_lr": DIT_RATES},
    "lr-batch": {"batch_size": BATCHES, "base_lr": DIT_RATES},
    "lr-steps": {"steps": STEPS, "base_lr": DIT_RATES},
    "multiplier-width": {"width": WIDTHS, "output_multiplier": MULTIPLIERS},
    "multiplier-steps": {"steps": STEPS, "output_multiplier": MULTIPLIERS},
    "pixart-lr": {"width": (288,), "base_lr": DIT_RATES},
    "mmdit-random": {"width": (512,)},
    "isoflop": {"flops": (1e17, 3e17, 6e17, 1e18, 3e18, 6e18), "depth": tuple(range(2, 16))},
}
"""The grids of the papers' studies."""


@functools.cache
def composed(name, scale):
    return parse(compose(name, [f"scale={scale}"]))


@functools.cache
def paper_plan(name):
    return plan(name, ["scale=paper"])


@pytest.mark.parametrize("name", STUDIES)
def test_study_uses_digits_by_default_and_described_data_at_paper_scale(name):
    embedded, paper = composed(name, "embedded"), composed(name, "paper")
    assert embedded.data.name == "digits"
    assert paper.data.name == "planned"
    assert paper.search.axis == embedded.search.axis
    assert paper.search.hp == embedded.search.hp
    for config in (embedded, paper):
        for size in config.search.grids.get("width", ()):
            with_setting(config.task, {"width": size})


@pytest.mark.parametrize("name", GRIDS)
def test_paper_scale_has_the_papers_grids(name):
    assert composed(name, "paper").search.grids == GRIDS[name]


@pytest.mark.parametrize("name", STUDIES)
def test_paper_scale_is_planned_without_data_gpu_or_ledger(name, empty_folder):
    result = paper_plan(name)
    json.dumps(result.data, allow_nan=False)
    assert result.data["trials"] == sum(size["trials"] for size in result.data["sizes"])
    assert result.data["proxy_flops"] == pytest.approx(sum(s["trials"] * s["flops"] for s in result.data["sizes"]))
    assert result.data["tuning_ratio_flops"] > 0
    assert result.data["hours"] is None
    assert "not measured" in result.text
    assert list(empty_folder.iterdir()) == []


def test_pixart_tunes_for_5_5_percent_of_its_target():
    result = paper_plan("pixart-lr").data
    assert result["trials"] == 5
    assert result["tuning_ratio"] == pytest.approx(0.055, abs=5e-4)
    own, target = result["sizes"][0]["parameters"], result["target"]["parameters"]
    assert result["tuning_ratio_counted"] == pytest.approx(5 * 5 * own / (30 * target))


def test_mmdit_tunes_for_14_5_percent_of_one_pretraining_and_2_9_percent_of_the_experts():
    result = paper_plan("mmdit-random")
    assert result.data["trials"] == 85
    assert result.data["tuning_ratio"] == pytest.approx(0.145, abs=5e-4)
    assert result.data["experts_ratio"] == pytest.approx(0.029, abs=5e-4)
    assert "14.5 %" in result.text
    assert "2.9 %" in result.text


@pytest.mark.parametrize("name", ["lr-width", "mmdit-random"])
def test_training_on_described_data_is_refused_in_one_line(name):
    with refused("not on this machine", "data=image_folder"):
        resolve(name, ["scale=paper"])


def test_image_folder_replaces_described_data():
    config = parse(compose("lr-width", ["scale=paper", "data=image_folder", "data.path=pictures"]))
    assert (config.data.name, config.model.channels, config.search.grids["width"]) == ("image_folder", 3, WIDTHS)


def test_command_line_overrides_the_scale():
    config = parse(compose("lr-width", ["scale=paper", "search.width=[72]", "training.steps=7", "objective=ddpm"]))
    assert (config.search.grids["width"], config.training.steps) == ((72,), 7)


def test_default_scale_keeps_earlier_study_and_trial_keys():
    request = resolve("lr-width", [])
    assert request.study.label == "lr-width-6988d735"
    assert grid_trials(request.config, fingerprint=request.fingerprint)[0].key == "654a9d0fafae45a3"


def test_control_differs_from_lr_width_in_parametrization_alone():
    for scale in ("embedded", "paper"):
        ours, control = (composed(name, scale) for name in ("lr-width", "sp-control"))
        assert control.optimizer == dataclasses.replace(ours.optimizer, parametrization="standard")
        assert dataclasses.replace(control.task, optimizer=ours.optimizer) == ours.task
        assert control.search == ours.search


def test_described_data_is_identified_by_its_description():
    data = DescribedData(name="planned", image_size=8, channels=4, num_samples=100, num_classes=3, text_tokens=5)
    known = describe_data(data)
    assert (known.num_classes, len(known.captions[0].split()) + 1) == (3, 5)
    assert describe_data(dataclasses.replace(data)) == known
    assert describe_data(dataclasses.replace(data, num_samples=101)).fingerprint != known.fingerprint
    with pytest.raises(BadInput, match="100 pictures of 4x8x8"):
        load_dataset(data)
