"""The check command: it passes right rules, explains the failures of broken ones, and draws a figure."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from muxfer.commands.check import check, check_text, failures
from muxfer.config.hydra_compose import compose, compose_model
from muxfer.config.parse import parse, parse_without_grid
from muxfer.config.task import to_plain
from muxfer.models.coordinate_run import check_coordinates
from muxfer.mup.mutants import MUTANTS
from muxfer.mup.slopes import CoordinateCheck, Kind, judge
from muxfer.report.figures.check import coordinate_figure
from muxfer.study.trials import study_of
from tests.refusals import refused
from tests.typed import answer

pytestmark = pytest.mark.usefixtures("empty_folder")
SIZES = (16, 32, 64, 128)
SMALL = ["model.depth=1", "check.seeds=1", "check.batch_size=8", "check.sizes=[16,32,64,128]"]


def quiet(line):
    pass


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("passed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        printed = []
        return check("dit", [*SMALL, f"output_dir={folder}"], print_line=printed.append), printed


def test_mup_passes_beside_a_control_that_fails(passed):
    result, printed = passed
    assert result.exit_code == 0
    data = result.data
    assert (data["verdict"], data["parametrization"], data["axis"]) == ("pass", "mup", "width")
    assert (data["widths"], data["sizes"], data["steps"], data["seeds"]) == (list(SIZES), list(SIZES), 10, 1)
    assert data["control"] == {"parametrization": "standard", "verdict": "fail"}
    assert all(data["measures"].values())
    assert len(printed) == 2
    json.dumps(data, allow_nan=False)


def test_every_measure_has_modules_with_the_documented_keys(passed):
    modules = passed[0].data["modules"]
    assert {module["measure"] for module in modules} == {"change", "output_at_init", "update", "parameter_at_init"}
    for module in modules:
        assert {"name", "measure", "slope", "low", "high", "pass"} <= set(module)
        if module["slope"] is not None:
            assert module["low"] <= module["slope"] <= module["high"]
    zero = {module["name"] for module in modules if module["slope"] is None}
    assert "final_layer.linear.weight" in zero


def test_the_figure_is_a_png_and_an_svg_in_the_output_folder(passed):
    png = Path(passed[0].data["figure"])
    assert png.parent.name == "check-dit"
    assert png.read_bytes().startswith(b"\x89PNG")
    text = "".join(ElementTree.parse(png.with_suffix(".svg")).getroot().itertext())
    for word in ("mup: pass", "standard: fail", "hidden", "tolerated", "width"):
        assert word in text
    assert [path.name for path in png.parent.iterdir() if path.name.startswith(".")] == []


def test_a_failed_check_is_exit_code_6_and_one_json_object(tmp_path):
    data = answer(tmp_path, "check", "dit", *SMALL, "optimizer.parametrization=standard", code=6)
    assert (data["verdict"], data["control"]) == ("fail", None)
    assert data["measures"] == {"change": False, "output_at_init": True, "update": False, "parameter_at_init": True}
    assert Path(data["figure"]).parent.parent == tmp_path / "muxfer"


def checked(*overrides, mutant=None):
    config = parse_without_grid(compose_model("dit", [*SMALL, "model.num_classes=10", *overrides]))
    options = config.check
    return check_coordinates(
        config.task,
        axis=options.axis,
        sizes=options.sizes,
        steps=options.steps,
        seeds=range(options.seeds),
        base_lr=options.base_lr,
        batch_size=options.batch_size,
        mutant=mutant,
    )


@pytest.mark.parametrize(
    ("mutant", "meaning"),
    [
        ("hidden lr not scaled", "first updates: the learning rate of hidden parameters falls too slowly"),
        ("vector lr as hidden", "first updates: the learning rate of input parameters falls with the width"),
        ("hidden init 1/m", "fresh parameters: the initial deviation of hidden parameters falls too fast"),
    ],
)
def test_a_broken_rule_is_named_first(mutant, meaning):
    result = checked(mutant=MUTANTS[mutant])
    assert not result.passed
    assert next(iter(failures(result))).startswith(meaning)
    assert f"\n{meaning}" in check_text(result, model="dit")


def line(measure, name, slope=0.0, *, values=None, role="hidden", step=None, axis="width", end=False):
    kind = Kind(role=role, is_branch_end=end, num_entries=10**6)
    values = values or {size: [size**slope] for size in SIZES}
    return judge((measure, name, step), values, kind, sizes=SIZES, num_seeds=1, axis=axis)


def check_of(*lines, axis="width"):
    return CoordinateCheck(
        parametrization="mup", axis=axis, sizes=SIZES, steps=10, seeds=1, lines=lines, loss_change=0.1
    )


def test_a_forward_that_depends_on_the_width_is_distinguished_from_wrong_initial_parameters():
    right, wrong = (line("parameter_at_init", "a.weight", slope) for slope in (-0.5, 0.0))
    output = line("output_at_init", "a", 0.5)
    assert "in a way that the scales do not cover" in check_text(check_of(right, output), model="m")
    text = check_text(check_of(wrong, output), model="m")
    assert "do not cover" not in text
    assert "fresh outputs: too large at the larger widths; see the fresh parameters" in text


def test_outputs_that_move_too_much_refer_to_the_updates_if_those_fail():
    output = line("change", "", 0.9, role="", step=10)
    right, wrong = (line("update", "a.weight", slope) for slope in (0.0, 1.0))
    assert "more at the larger widths; see the first updates" in check_text(check_of(output, wrong), model="m")
    assert "though the first updates pass: the forward pass depends" in check_text(check_of(output, right), model="m")
    assert "(the model)" in check_text(check_of(output), model="m")


def test_a_check_over_depth_speaks_of_depth():
    end = line("update", "blocks.*.mlp.fc2.bias", 0.0, role="input", axis="depth", end=True)
    assert not end.passed
    text = check_text(check_of(end, axis="depth"), model="m")
    assert "the learning rate of input parameters falls too slowly with the depth" in text
    assert "expected -1" in text
    assert "width" not in text


def test_a_value_that_is_zero_at_some_sizes_only_is_reported():
    some = line("update", "a", values={32: [0.0], 64: [1.0]})
    assert "zero or not finite, at some widths" in check_text(check_of(some), model="m")


def test_a_parameter_without_a_gradient_is_named():
    """The text queries of MMDiT's last block are such a parameter: nothing reads their output."""
    still = line("update", "blocks.1.attn.q.weight", values={size: [0.0] for size in SIZES})
    named = "no gradient in 10 steps, so their updates are not judged: blocks.1.attn.q.weight"
    assert named in check_text(check_of(still), model="mmdit")


def test_the_check_runs_under_ddpm_with_a_learned_variance():
    result = check("dit", [*SMALL, "objective=ddpm", "model.learn_sigma=true"], print_line=quiet)
    assert result.exit_code == 0, result.text


def test_every_failing_line_is_listed_and_alike_blocks_share_a_row():
    lines = [line("update", f"blocks.{i}.mlp.weight", 1 + i / 10) for i in range(4)]
    text = check_text(check_of(*lines), model="m")
    assert "blocks.{0..3}.mlp.weight  hidden  slope +1.00 to +1.30" in text
    assert "4/4" in text


def test_a_figure_of_nothing_but_zeros_is_drawn(tmp_path):
    zero = line("update", "a", values={size: [0.0] for size in SIZES})
    paths = coordinate_figure([check_of(zero)], tmp_path / "zero", title="m")
    assert "zero at every size" in paths[1].read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["check.sizes=[32,64,128]"], "at least 4 different widths over a range of 8x"),
        (["check.sizes=[32,64,128,128]"], "at least 4 different widths"),
        (["check.sizes=[32,48,64,96]"], "over a range of 8x"),
        (["check.sizes=[0,64,128,256]"], "check.sizes 0: expected a number above 0"),
        (["check.sizes=256"], "check.sizes is 256: expected a list of numbers"),
        (["check.sizes=[a]"], "check.sizes[0] is 'a': expected a whole number"),
        (["check.steps=9"], "check.steps 9: expected at least 10"),
        (["check.seeds=0"], "check.seeds 0: expected a number above 0"),
        (["check.base_lr=0"], "check.base_lr 0.0: expected a number above 0"),
        (["check.base_lr=small"], "check.base_lr is 'small': expected a number"),
        (["check.axis=height"], "expected width or depth"),
        (["check.sizes=[32,64,128,300]"], "check.sizes holds 300: model.width 300 is not divisible by"),
        (["check=depht"], "unknown check 'depht': did you mean 'depth'?"),
        (["check.size=[1]"], "did you mean 'check.sizes'"),
        (["check.base_lr=1e30"], "lower check.base_lr"),
    ],
)
def test_options_that_give_no_slope_are_refused_in_one_line(overrides, message):
    with refused(message):
        check("dit", [*SMALL, *overrides], print_line=quiet)


def test_a_rate_may_be_written_as_a_power_of_two():
    assert parse(compose("lr-width", ["check.base_lr=2**-11"])).check.base_lr == 2**-11
    assert parse(compose("lr-width")).check.base_lr == 2**-16


@pytest.mark.parametrize("override", ["check=depth", "check.steps=20", "check.base_lr=1e-4"])
def test_check_options_do_not_change_a_study(override):
    plain, other = (parse(compose("lr-width", given)) for given in ([], [override]))
    assert plain != other
    assert study_of("s", plain, fingerprint="1") == study_of("s", other, fingerprint="1")


def test_a_configuration_survives_json_and_an_earlier_one_gets_the_default_check():
    config = parse(compose("lr-width"))
    plain = json.loads(json.dumps(to_plain(config)))
    assert parse(plain) == config
    del plain["check"]
    assert parse(plain) == config


def test_the_sizes_of_a_check_do_not_restrict_the_head_dim_of_a_sweep():
    sizes = ["model.head_dim=24", "model.width=48", "model.base_width=48", "search.width=[48]"]
    assert parse(compose("lr-width", sizes)).model.head_dim == 24


def test_depth_passes_under_completep():
    small = ["model.width=32", "model.base_width=32", "check.sizes=[1,2,4,8]"]
    result = checked("check=depth", *small, "optimizer.parametrization=completep", "model.base_depth=2")
    assert result.passed, [line for line in result.lines if not line.passed]
    assert (result.axis, result.sizes) == ("depth", (1, 2, 4, 8))
