"""The check command: passes what is right, fails what is not and says why, and shows both in one figure."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from muxfer.commands.check import check, check_text, failures
from muxfer.config.hydra_compose import compose, compose_model
from muxfer.config.parse import parse, parse_without_grid
from muxfer.config.task import to_plain
from muxfer.errors import BadInput
from muxfer.models.coordinate_run import check_coordinates
from muxfer.mup.mutants import MUTANTS
from muxfer.mup.slopes import CoordinateCheck, Kind, judge
from muxfer.report.figures.check import coordinate_figure
from muxfer.study.trials import study_of

SIZES = (16, 32, 64, 128)
SMALL = ["model.depth=1", "check.seeds=1", "check.batch_size=8", "check.sizes=[16,32,64,128]"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def quiet(line):
    pass


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("passed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        said = []
        return check("dit", [*SMALL, f"output_dir={folder}"], print_line=said.append), said


def test_mup_passes_beside_a_control_that_fails(passed):
    answer, said = passed
    assert answer.exit_code == 0
    data = answer.data
    assert (data["verdict"], data["parametrization"], data["axis"]) == ("pass", "mup", "width")
    assert (data["widths"], data["sizes"], data["steps"], data["seeds"]) == (list(SIZES), list(SIZES), 10, 1)
    assert data["control"] == {"parametrization": "standard", "verdict": "fail"}
    assert all(data["measures"].values())
    assert len(said) == 2
    json.dumps(data, allow_nan=False)


def test_every_measure_has_modules_with_the_keys_that_scripts_read(passed):
    modules = passed[0].data["modules"]
    assert {module["measure"] for module in modules} == {"change", "output_at_init", "update", "parameter_at_init"}
    for module in modules:
        assert {"name", "measure", "slope", "low", "high", "pass"} <= set(module)
        if module["slope"] is not None:
            assert module["low"] <= module["slope"] <= module["high"]
    zero = {module["name"] for module in modules if module["slope"] is None}
    assert "final_layer.linear.weight" in zero


def test_the_figure_is_a_picture_and_a_drawing_in_the_output_folder(passed):
    png = Path(passed[0].data["figure"])
    assert png.parent.name == "check-dit"
    assert png.read_bytes().startswith(b"\x89PNG")
    text = "".join(ElementTree.parse(png.with_suffix(".svg")).getroot().itertext())
    for word in ("mup: pass", "standard: fail", "hidden", "tolerated", "width"):
        assert word in text
    assert [path.name for path in png.parent.iterdir() if path.name.startswith(".")] == []


def test_a_failed_check_is_exit_code_6_and_one_json_object(tmp_path):
    words = ["dit", *SMALL, "optimizer.parametrization=standard", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "muxfer", "check", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 6, done.stderr
    data = json.loads(done.stdout)
    assert (data["verdict"], data["control"]) == ("fail", None)
    assert data["measures"] == {"change": False, "output_at_init": True, "update": False, "parameter_at_init": True}
    assert Path(data["figure"]).parent.parent == tmp_path / "muxfer"


def checked(*overrides, mutant=None):
    config = parse_without_grid(compose_model("dit", [*SMALL, "model.num_classes=10", *overrides]))
    asked = config.check
    return check_coordinates(
        config.task,
        axis=asked.axis,
        sizes=asked.sizes,
        steps=asked.steps,
        seeds=range(asked.seeds),
        base_lr=asked.base_lr,
        batch_size=asked.batch_size,
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
    found = checked(mutant=MUTANTS[mutant])
    assert not found.passed
    assert next(iter(failures(found))).startswith(meaning)
    assert f"\n{meaning}" in check_text(found, model="dit")


def line(measure, name, slope, *, role="", step=None, axis="width", end=False):
    kind = Kind(role=role, is_branch_end=end, num_entries=10**6)
    return judge((measure, name, step), {s: [s**slope] for s in SIZES}, kind, sizes=SIZES, num_seeds=1, axis=axis)


def found(*lines, axis="width"):
    return CoordinateCheck(
        parametrization="mup", axis=axis, sizes=SIZES, steps=10, seeds=1, lines=lines, loss_change=0.1
    )


def test_a_forward_that_depends_on_the_width_is_told_from_parameters_that_start_wrong():
    right, wrong = (line("parameter_at_init", "a.weight", slope, role="hidden") for slope in (-0.5, 0.0))
    output = line("output_at_init", "a", 0.5, role="hidden")
    assert "in a way that the plan cannot see" in check_text(found(right, output), model="m")
    text = check_text(found(wrong, output), model="m")
    assert "cannot see" not in text
    assert "fresh outputs: too large at the larger widths; see the fresh parameters" in text


def test_outputs_that_move_too_much_point_to_the_updates_where_those_fail():
    output = line("change", "", 0.9, step=10)
    right, wrong = (line("update", "a.weight", slope, role="hidden") for slope in (0.0, 1.0))
    assert "more at the larger widths; see the first updates" in check_text(found(output, wrong), model="m")
    assert "though the first updates pass: the forward depends" in check_text(found(output, right), model="m")
    assert "(the model)" in check_text(found(output), model="m")


def test_over_depth_the_words_are_those_of_depth():
    end = line("update", "blocks.*.mlp.fc2.bias", 0.0, role="input", axis="depth", end=True)
    assert not end.passed
    text = check_text(found(end, axis="depth"), model="m")
    assert "the learning rate of input parameters falls too slowly with the depth" in text
    assert "expected -1" in text
    assert "width" not in text


def test_what_is_zero_at_some_sizes_only_is_said():
    kind = Kind(role="hidden", is_branch_end=False, num_entries=4)
    some = judge(("update", "a", None), {32: [0.0], 64: [1.0]}, kind, sizes=SIZES, num_seeds=1, axis="width")
    assert "zero or not finite, at some widths" in check_text(found(some), model="m")


def test_a_parameter_without_a_gradient_is_named():
    """The text queries of MMDiT's last block: nothing reads what they would ask for."""
    kind = Kind(role="hidden", is_branch_end=False, num_entries=100)
    key = ("update", "blocks.1.attn.q.weight", None)
    still = judge(key, {size: [0.0] for size in SIZES}, kind, sizes=SIZES, num_seeds=1, axis="width")
    assert "no gradient in 10 steps, so their updates are not judged: blocks.1.attn.q.weight" in check_text(
        found(still), model="mmdit"
    )


def test_the_check_runs_under_ddpm_with_a_learned_variance():
    answer = check("dit", [*SMALL, "objective=ddpm", "model.learn_sigma=true"], print_line=quiet)
    assert answer.exit_code == 0, answer.text


def test_every_failing_line_is_in_the_text_with_alike_blocks_as_one():
    lines = [line("update", f"blocks.{i}.mlp.weight", 1 + i / 10, role="hidden") for i in range(4)]
    text = check_text(found(*lines), model="m")
    assert "blocks.{0..3}.mlp.weight  hidden   slope +1.00 to +1.30" in text
    assert "4/4" in text


def test_a_figure_of_nothing_but_zeros_is_drawn(tmp_path):
    kind = Kind(role="hidden", is_branch_end=False, num_entries=4)
    zero = judge(("update", "a", None), {s: [0.0] for s in SIZES}, kind, sizes=SIZES, num_seeds=1, axis="width")
    paths = coordinate_figure([found(zero)], tmp_path / "zero", title="m")
    assert "zero at every size" in paths[1].read_text()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["check.sizes=[32,64,128]"], "at least 4 different widths over a range of 8x"),
        (["check.sizes=[32,64,128,128]"], "at least 4 different widths"),
        (["check.sizes=[32,48,64,96]"], "over a range of 8x"),
        (["check.sizes=[0,64,128,256]"], "check.sizes 0: expected a number above 0"),
        (["check.sizes=256"], "check.sizes is 256: expected a list of numbers"),
        (["check.sizes=[a]"], "check.sizes is 'a': expected a whole number"),
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
def test_what_gives_no_slope_is_refused_in_one_line(overrides, told):
    with pytest.raises(BadInput) as refused:
        check("dit", [*SMALL, *overrides], print_line=quiet)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_rate_may_be_a_power_of_two_in_words():
    assert parse(compose("lr-width", ["check.base_lr=2**-11"])).check.base_lr == 2**-11
    assert parse(compose("lr-width")).check.base_lr == 2**-16


@pytest.mark.parametrize("override", ["check=depth", "check.steps=20", "check.base_lr=1e-4"])
def test_a_check_is_no_part_of_a_study(override):
    plain, other = (parse(compose("lr-width", given)) for given in ([], [override]))
    assert plain != other
    assert study_of("s", plain, fingerprint="1") == study_of("s", other, fingerprint="1")


def test_a_configuration_survives_plain_data_and_one_of_before_has_the_default_check():
    config = parse(compose("lr-width"))
    plain = json.loads(json.dumps(to_plain(config)))
    assert parse(plain) == config
    del plain["check"]
    assert parse(plain) == config


def test_a_sweep_of_any_head_dim_is_not_held_up_by_the_sizes_of_a_check():
    sizes = ["model.head_dim=24", "model.width=48", "model.base_width=48", "search.width=[48]"]
    assert parse(compose("lr-width", sizes)).model.head_dim == 24


def test_depth_passes_under_completep(empty_folder):
    small = ["model.width=32", "model.base_width=32", "check.sizes=[1,2,4,8]"]
    found = checked("check=depth", *small, "optimizer.parametrization=completep", "model.base_depth=2")
    assert found.passed, [line for line in found.lines if not line.passed]
    assert (found.axis, found.sizes) == ("depth", (1, 2, 4, 8))
