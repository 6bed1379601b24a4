"""A configuration is checked once, at the boundary, and refused in one line that says what to do."""

import pytest

from muxfer.config import to_plain
from muxfer.errors import BadInput
from muxfer.parse import parse, parse_task


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.widht=3"], "unknown key model.widht: did you mean 'model.width'"),
        (["traning.steps=3"], "did you mean 'training.steps'"),
        (["+model.wdith=3"], "unknown key model.wdith: did you mean 'model.width'"),
        (["search.widht=[1]"], "did you mean 'search.width'"),
        (["objective=dppm"], "unknown objective 'dppm': did you mean 'ddpm'"),
        (["optimizer.parametrization=spp"], "expected mup or standard or stock"),
        (["model.base_width=100"], "model.base_width 100 is not divisible by model.head_dim 16; use 96"),
        (["model.patch=3"], "model.image_size 8 is not divisible by model.patch 3"),
        (["model.depth=0"], "model.depth 0: expected a number above 0"),
        (["model.depth=2.5"], "model.depth is 2.5: expected a whole number"),
        (["model.width=abc"], "model.width is 'abc': expected a whole number"),
        (["model.image_size=16"], "differs from data.image_size 8"),
        (["data.image_size=16"], "the digits are 8x8 grey scans"),
        (["search.base_lr=[]"], "search.base_lr is an empty grid"),
        (["search.base_lr=[-1e-3]"], "search.base_lr holds -0.001: expected numbers above 0"),
        (["search.base_lr=[0]"], "expected numbers above 0"),
        (["search.base_lr=[nan]"], "expected numbers above 0"),
        (["search.base_lr=[inf]"], "expected numbers above 0"),
        (["search.base_lr=[1e-3,1e-3]"], "holds a value twice"),
        (["search.base_lr=[a]"], "expected numbers, or powers of two"),
        (["search.width=null"], "search.width is missing"),
        (["search.axis=base_lr"], "search.axis 'base_lr'"),
        (["search.hp=width"], "search.hp 'width'"),
        (["search.seeds=0"], "search.seeds 0: expected a number above 0"),
        (["data=image_folder"], "data.path has no value: give it as data.path=VALUE"),
        (["+data.path=x"], "unknown key data.path"),
        (["objective=ddpm", "evaluation.sampler=flow_match_euler"], "use ddpm or ddim"),
        (["model.learn_sigma=true"], "no effect under objective rectified_flow"),
        (["optimizer.parametrization=stock", "optimizer.output_multiplier=2"], "no effect under parametrization stock"),
        (["training.warmup_steps=1000"], "expected 0 to training.steps 180"),
        (["training.label_dropout=1"], "expected a number in [0, 1)"),
        (["model.width=1,2"], "to give a list use key=[value1,value2]"),
        (["model.width=["], "no viable alternative"),
        (["data=../../etc/passwd"], "named inside ./conf"),
        (["data=/etc/passwd"], "named inside ./conf"),
        (["hydra.run.dir=/tmp/evil"], "not part of a study"),
        (["nothing"], "expected key=value"),
    ],
)
def test_a_bad_override_is_refused_in_one_line(make_config, overrides, told):
    with pytest.raises(BadInput) as refused:
        make_config(*overrides)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_grid_takes_numbers_and_powers_of_two_and_is_sorted(make_config):
    assert make_config("search.base_lr=[2**-3,1e-3]").search.grids["base_lr"] == (1e-3, 0.125)
    assert make_config("search.base_lr=0.25").search.grids["base_lr"] == (0.25,)


def test_widths_of_a_grid_are_whole_numbers(make_config):
    assert make_config().search.grids["width"] == (32, 64, 128)
    assert all(type(width) is int for width in make_config().search.grids["width"])
    with pytest.raises(BadInput, match="expected a whole number"):
        make_config("search.width=[32.5]")


def test_plain_data_is_read_back_as_the_same_configuration(make_config):
    config = make_config("objective=ddpm", "search.seeds=2")
    assert parse(to_plain(config)) == config
    assert parse_task(to_plain(config.task)) == config.task
