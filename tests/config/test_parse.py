"""A configuration is validated once, when it is parsed. A refusal is one line that says what to do."""

import json

import pytest

from muxfer.config.parse import parse, parse_task, setting_value
from muxfer.config.study import Space
from muxfer.config.task import to_plain
from muxfer.errors import BadInput
from tests.refusals import refused

DRAWN = ["search.sampler=tpe", "search.num_settings=4", "search.base_lr={uniform:[0.1,1]}"]


BAD_SEARCH = [
    (["search.widht=[1]"], "did you mean 'search.width'"),
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
    (["search.base_lr={uniform:[1]}", "search.sampler=tpe"], "expected [LOW, HIGH] with LOW below HIGH"),
    (["search.base_lr={uniform:[2,1]}"], "expected [LOW, HIGH] with LOW below HIGH"),
    (["search.base_lr={log_uniform:[0,1]}"], "expected ends above 0"),
    (["search.base_lr={uniform:[-1,1]}"], "search.base_lr holds -1: expected numbers above 0"),
    (["search.base_lr={uniform:[-2000,1],log2:true}"], "expected finite numbers"),
    (["search.base_lr={unifrom:[1,2]}"], "expected one of uniform, log_uniform, integer, log_integer, choice"),
    (["search.base_lr={uniform:[1,2],choice:[1]}"], "expected one of uniform"),
    (["search.base_lr={choice:[]}"], "expected a list of numbers"),
    (["search.base_lr={choice:[1,1]}"], "holds a value twice"),
    (["search.base_lr={integer:[1.5,2]}"], "expected whole numbers"),
    (["search.warmup_steps={uniform:[1,20]}"], "search.warmup_steps takes whole numbers, but uniform draws others"),
    (["search.base_lr={uniform:[1,2]}"], "give a list, or a sampler that draws"),
    (["search.sampler=tpe", "search.num_settings=4"], "search.sampler tpe has no space to draw from"),
    (["search.sampler=tpe", "search.base_lr={uniform:[1,2]}"], "give search.num_settings=20"),
    (["search.num_settings=4"], "no effect with sampler grid"),
    (["search.sampler=tep"], "expected grid or random or qmc or tpe or gp or cmaes"),
    ([*DRAWN, "search.width={integer:[16,32]}"], "search.width is the axis: give a list"),
    ([*DRAWN, "search.sampler=cmaes"], "search.base_lr is the only space"),
    ([*DRAWN, "search.sampler=cmaes", "search.grad_clip={choice:[1,2]}"], "search.grad_clip is a choice"),
    ([*DRAWN, "search.finalists=2"], "search.finalists and search.finalist_steps go together"),
    ([*DRAWN, "search.finalists=2", "search.finalist_steps=9", "search.steps=[5]"], "where search.steps varies"),
    (["search.finalists=2", "search.finalist_steps=9"], "no effect with sampler grid"),
    (["search.seeds=0"], "search.seeds 0: expected a number above 0"),
]
BAD_OTHER = [
    (["model.widht=3"], "unknown key model.widht: did you mean 'model.width'"),
    (["traning.steps=3"], "did you mean 'training.steps'"),
    (["+model.wdith=3"], "unknown key model.wdith: did you mean 'model.width'"),
    (["objective=dppm"], "unknown objective 'dppm': did you mean 'ddpm'"),
    (["optimizer.parametrization=spp"], "expected mup or standard or stock"),
    (["model.base_width=100"], "model.base_width 100 is not divisible by model.head_dim 16; use 96"),
    (["model.patch=3"], "model.image_size 8 is not divisible by model.patch 3"),
    (["model.depth=0"], "model.depth 0: expected a number above 0"),
    (["model.depth=2.5"], "model.depth is 2.5: expected a whole number"),
    (["model.width=abc"], "model.width is 'abc': expected a whole number"),
    (["model.image_size=16"], "differs from data.image_size 8"),
    (["data.image_size=16"], "the digits are 8x8 grey scans"),
    (["data=image_folder"], "data.path has no value: give it as data.path=VALUE"),
    (["+data.path=x"], "unknown key data.path"),
    (["objective=ddpm", "evaluation.sampler=flow_match_euler"], "use ddpm or ddim"),
    (["model.learn_sigma=true"], "no effect under objective rectified_flow"),
    (["optimizer.parametrization=stock", "optimizer.output_multiplier=2"], "no effect under parametrization stock"),
    (["training.warmup_steps=1000"], "expected 0 to training.steps 180"),
    (["training.label_dropout=1"], "expected a number in [0, 1)"),
    (["model.width=1,2"], "to give a list use key=[value1,value2]"),
    (["model.width=["], "does not follow Hydra's grammar: close each bracket"),
    (["data=../../etc/passwd"], "named inside ./conf"),
    (["data=/etc/passwd"], "named inside ./conf"),
    (["hydra.run.dir=/tmp/evil"], "not part of a study"),
    (["nothing"], "expected key=value"),
]
"""Overrides, each with a part of the message that refuses them."""


@pytest.mark.parametrize(("overrides", "message"), [*BAD_SEARCH, *BAD_OTHER])
def test_bad_override_is_refused_in_one_line(make_config, overrides, message):
    with refused(message) as caught:
        make_config(*overrides)
    assert len(str(caught.value)) < 400


def test_grid_reads_numbers_and_powers_of_two_and_is_sorted(make_config):
    assert make_config("search.base_lr=[2**-3,1e-3]").search.grids["base_lr"] == (1e-3, 0.125)
    assert make_config("search.base_lr=0.25").search.grids["base_lr"] == (0.25,)


def test_grid_widths_are_whole_numbers(make_config):
    assert make_config().search.grids["width"] == (32, 64, 128)
    assert all(type(width) is int for width in make_config().search.grids["width"])
    with pytest.raises(BadInput, match="expected a whole number"):
        make_config("search.width=[32.5]")


def test_parse_inverts_to_plain(make_config):
    config = make_config("objective=ddpm", "search.seeds=2")
    assert parse(to_plain(config)) == config
    assert parse_task(to_plain(config.task)) == config.task


def test_spaces_survive_json(make_config):
    config = make_config(
        "search.sampler=tpe",
        "search.num_settings=4",
        "search.base_lr={uniform:[-9,-5],log2:true}",
        "search.warmup_steps={log_integer:[1,20]}",
        "search.grad_clip={choice:[2**-1,1]}",
        "search.weight_decay={grid:[0,0.1]}",
    )
    assert config.search.spaces == {
        "base_lr": Space(kind="uniform", bounds=(-9.0, -5.0), log2=True),
        "grad_clip": Space(kind="choice", bounds=(0.5, 1.0)),
        "warmup_steps": Space(kind="log_integer", bounds=(1.0, 20.0)),
    }
    assert config.search.grids == {"width": (32, 64, 128), "weight_decay": (0.0, 0.1)}
    assert parse(json.loads(json.dumps(to_plain(config)))) == config


def test_setting_value_has_the_type_of_its_key():
    assert type(setting_value("batch_size", 64.0)) is int
    assert type(setting_value("base_lr", 1)) is float
    with pytest.raises(BadInput, match="search.batch_size is 64.5: expected a whole number"):
        setting_value("batch_size", 64.5)
