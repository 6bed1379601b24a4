"""Composition reads the user's folders first and nothing outside the folders. A failure is one line."""

import os

import pytest

from muxfer.config.hydra_compose import compose, compose_model, composed, model_names, sweep_names
from muxfer.config.parse import parse
from muxfer.errors import BadInput
from muxfer.redaction import with_values, with_variable_names
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("empty_folder")


def write(folder, name, text):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_packaged_sweep_composes_beside_a_folder_of_the_users_own_sweeps(empty_folder):
    packaged = compose("lr-width", ["scale=paper"])
    write(empty_folder, "sweeps/my-sweep.yaml", "defaults:\n  - base\n  - _self_\n")
    assert compose("lr-width", ["scale=paper"]) == packaged
    assert compose("my-sweep")
    assert compose_model("dit")


def test_users_groups_and_sweeps_come_before_packaged_ones(empty_folder):
    write(empty_folder, "conf/training/mine.yaml", "steps: 7\nbatch_size: 3\n")
    write(empty_folder, "conf/compute/local.yaml", "slots: 1\n")
    write(empty_folder, "sweeps/my-sweep.yaml", "defaults:\n  - base\n  - override training: mine\n  - _self_\n")
    config = compose("my-sweep")
    assert config["training"] == {"steps": 7, "batch_size": 3}
    assert config["compute"] == {"slots": 1}
    assert {"lr-width", "my-sweep"} <= set(sweep_names())


def test_users_sweep_replaces_packaged_sweep_of_same_name(empty_folder):
    write(empty_folder, "sweeps/lr-width.yaml", "defaults:\n  - base\n  - _self_\nsearch:\n  width: [16]\n")
    assert compose("lr-width")["search"]["width"] == [16]


@pytest.mark.parametrize("name", ["lr-widht", "../lr-width", "/etc/passwd", "", "lr-width\n", "a" * 10_000, "base"])
def test_unknown_sweep_is_refused_with_nearest_name(name):
    with pytest.raises(BadInput, match="lr-width"):
        compose(name)


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
ALIAS = "a: &a ['#', x]\nb: ['#', *a]\n"
DOUBLING = "defaults: [base, _self_]\nk40: [1]\n"
DOUBLING += "".join(f"k{i}: ['${{k{i + 1}}}', '${{k{i + 1}}}']\n" for i in range(40))
REFUSED = {
    "a primary file": (
        "conf/base.yaml",
        "evil: true\n",
        lambda: compose("lr-width"),
        "groups and sweeps only",
    ),
    "an alias bomb": ("conf/model/bomb.yaml", BOMB, lambda: compose("lr-width", ["model=bomb"]), "aliases"),
    "an alias by its model": ("conf/model/bomb.yaml", ALIAS, lambda: compose_model("bomb"), "aliases"),
    "doubling references": ("sweeps/mine.yaml", DOUBLING, lambda: compose("mine"), "more than 10000 values"),
}


@pytest.mark.parametrize(("name", "text", "composing", "message"), REFUSED.values(), ids=REFUSED)
def test_users_file_is_refused_before_it_is_expanded(empty_folder, name, text, composing, message):
    write(empty_folder, name, text)
    with refused(message):
        composing()


def test_folder_name_may_hold_a_space(empty_folder, monkeypatch):
    spaced = empty_folder / "my studies"
    write(spaced, "conf/training/mine.yaml", "steps: 7\nbatch_size: 3\n")
    monkeypatch.chdir(spaced)
    assert compose("lr-width", ["training=mine"])["training"] == {"steps": 7, "batch_size": 3}


def test_editors_lock_file_is_ignored(empty_folder):
    (empty_folder / "conf" / "model").mkdir(parents=True)
    (empty_folder / "conf" / "model" / ".#dit.yaml").symlink_to("ann@host.1")
    (empty_folder / "conf" / "model" / "folder.yaml").mkdir()
    assert compose("lr-width")["model"]["family"] == "dit"


def test_description_may_hold_dots(empty_folder):
    assert compose("lr-width", ["description=a..b"])["description"] == "a..b"


@pytest.mark.parametrize("text", ["a: [", "\t- x", "a: b: c", "- 1\n- 2\n", "\x00"])
def test_malformed_yaml_is_refused_in_one_line(empty_folder, text):
    write(empty_folder, "conf/model/broken.yaml", text)
    with refused():
        parse(compose("lr-width", ["model=broken"]))


def test_composing_twice_gives_the_same_configuration():
    assert compose("lr-width", ["model.depth=2"]) == compose("lr-width", ["model.depth=2"])


def test_override_reaches_an_interpolated_key(empty_folder):
    assert compose("lr-width", ["data.image_size=16"])["model"]["image_size"] == 16


def test_model_name_composes_primary_configuration_with_that_model():
    config = compose_model("pixart", ["model.depth=2"])
    assert (config["model"]["family"], config["model"]["depth"]) == ("pixart", 2)
    assert config["optimizer"] == compose("lr-width")["optimizer"]
    assert compose_model("lr-width", ["model=pixart", "model.depth=2"])["model"] == config["model"]


def test_users_model_comes_before_packaged_one(empty_folder):
    write(empty_folder, "conf/model/mine.yaml", "family: mine\n")
    write(empty_folder, "conf/model/dit.yaml", "family: changed\n")
    assert "mine" in model_names()
    assert compose_model("mine")["model"] == {"family": "mine"}
    assert compose_model("dit")["model"] == {"family": "changed"}


def test_sweep_wins_over_model_of_same_name(empty_folder):
    write(empty_folder, "sweeps/dit.yaml", "defaults:\n  - base\n  - override model: pixart\n  - _self_\n")
    assert compose_model("dit")["model"]["family"] == "pixart"


@pytest.mark.parametrize("name", ["dti", "model/dit", "../dit", "dit.yaml", "", "dit\n", "no-sweep", "d" * 10_000])
def test_unknown_model_is_refused_with_nearest_name(name):
    with pytest.raises(BadInput, match="unknown sweep or model .*(did you mean|known: )"):
        compose_model(name)


@pytest.mark.parametrize("override", ["model=pixart", "+model=pixart"])
def test_second_model_is_refused(override):
    with pytest.raises(BadInput, match="dit is the model already"):
        compose_model("dit", [override])


@pytest.mark.parametrize("name", ["no-sweep", "dit"])
def test_compose_refuses_a_model_name(name):
    with pytest.raises(BadInput, match="unknown sweep"):
        compose(name)


@pytest.mark.parametrize("entry", ["../../out/evil", "{/model@x: ../../out/evil}", "{override model: ../../out/evil}"])
def test_defaults_that_lead_out_of_the_folder_are_refused(empty_folder, entry):
    write(empty_folder, "out/evil.yaml", "evil: true\n")
    write(empty_folder, "sweeps/mine.yaml", f"defaults: [base, {entry}, _self_]\n")
    with pytest.raises(BadInput, match=r"inside the folder"):
        compose("mine")


@pytest.mark.parametrize("entry", ["{climb}@model", "{{optional model@x: {out}}}"])
def test_defaults_that_lead_out_of_hydras_package_are_refused(empty_folder, entry):
    write(empty_folder, "out/evil.yaml", "mlp_ratio: 3.0\n")
    out = f"{empty_folder}/out/evil"
    leading = entry.format(out=out, climb="../" * 12 + out[1:])
    write(empty_folder, "sweeps/mine.yaml", f"defaults: [base, {leading}, _self_]\n")
    with pytest.raises(BadInput, match=r"inside the folder"):
        compose("mine")


def test_pipe_in_place_of_a_file_is_refused_without_blocking(empty_folder):
    write(empty_folder, "conf/model/x.yaml", "")
    os.mkfifo(empty_folder / "conf" / "model" / "pipe.yaml")
    with pytest.raises(BadInput, match="no regular file"):
        compose("lr-width", ["model=pipe"])


@pytest.mark.parametrize("text", ["${oc.select:model.width}", "'${${oc.env:HOME}}'", "${hydra:runtime.cwd}"])
def test_other_interpolations_are_refused(text):
    with pytest.raises(BadInput, match="expected"):
        compose("lr-width", [f"description={text}"])


def test_environment_values_are_recorded_by_variable_name(monkeypatch):
    monkeypatch.setenv("STEPS", "12")
    monkeypatch.setenv("WORD", "hunter22")
    given = [
        "training.steps='${oc.decode:${oc.env:STEPS}}'",
        "description=a-${oc.env:WORD}",
        "output_dir=${description}",
    ]
    config = composed("lr-width", [*given, "ledger.tracking_uri=${oc.env:NOT_SET,sqlite:///x.db}"])
    assert config.plain["training"]["steps"] == 12
    assert (config.plain["description"], config.plain["output_dir"]) == ("a-hunter22", "a-hunter22")
    assert config.plain["ledger"]["tracking_uri"] == "sqlite:///x.db"
    assert config.variables == {
        "training.steps": "${oc.decode:${oc.env:STEPS}}",
        "description": "a-${oc.env:WORD}",
        "output_dir": "a-${oc.env:WORD}",
        "ledger.tracking_uri": "${oc.env:NOT_SET,sqlite:///x.db}",
    }
    kept = with_variable_names(config.plain, config.variables)
    assert "hunter22" not in str(kept)
    assert with_values(kept, {}) == config.plain


def test_unset_variable_is_named_in_one_line(monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(BadInput, match=r"description reads the environment variable NOT_SET, which is not set"):
        compose("lr-width", ["description=${oc.env:NOT_SET}"])


def test_search_values_from_the_environment_are_refused(monkeypatch):
    monkeypatch.setenv("RATE", "0.1")
    with pytest.raises(BadInput, match="search.base_lr reads an environment variable"):
        compose("lr-width", ["search.base_lr='${oc.decode:${oc.env:RATE}}'"])


LIST = "search.base_lr=[1e-3,2e-3]"
SPACE = "search.base_lr={uniform:[-9,-5],log2:true}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([SPACE], {"uniform": [-9, -5], "log2": True}),
        ([SPACE, LIST], [1e-3, 2e-3]),
        ([LIST, SPACE], {"uniform": [-9, -5], "log2": True}),
        ([SPACE, "search.base_lr={choice:[1,2]}"], {"choice": [1, 2]}),
        ([SPACE, "search.base_lr=0.25"], 0.25),
        (["search.base_lr=[${model.width}]"], [64]),
    ],
)
def test_search_override_replaces_list_by_space_and_space_by_list(overrides, expected):
    assert compose("lr-width", overrides)["search"]["base_lr"] == expected


def test_search_override_replaces_space_of_users_sweep(empty_folder):
    search = "search: {width: [16], base_lr: {uniform: [1, 2]}}"
    write(empty_folder, "sweeps/mine.yaml", f"defaults: [base, _self_]\n{search}\n")
    assert compose("mine", [LIST])["search"]["base_lr"] == [1e-3, 2e-3]
    assert compose("mine", [SPACE])["search"]["base_lr"] == {"uniform": [-9, -5], "log2": True}


def test_search_override_needs_no_plus_and_misspelt_key_is_refused():
    search = compose("lr-width", ["search.num_settings=8", "search.grad_clip=[1,2]", "search.sampler=tpe"])["search"]
    assert (search["num_settings"], search["grad_clip"], search["sampler"]) == (8, [1, 2], "tpe")
    with pytest.raises(BadInput, match=r"unknown key search.grad_clp"):
        compose("lr-width", ["search.grad_clp=[1,2]"])


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("[2^-9,2^-8]", (2.0**-9, 2.0**-8)),
        ("[2^-9, 2^-7.5 ]", (2.0**-9, 2.0**-7.5)),
        ("2^-7", (2.0**-7,)),
        ("['2^-9',2**-8]", (2.0**-9, 2.0**-8)),
        ("{grid:[2^-9,2^-8]}", (2.0**-9, 2.0**-8)),
    ],
)
def test_power_of_two_is_read_as_printed(given, read):
    config = parse(compose("lr-width", [f"search.base_lr={given}", "optimizer.base_lr=2^-6"]))
    assert config.search.grids["base_lr"] == read
    assert config.optimizer.base_lr == 2.0**-6


def test_power_of_two_in_quoted_text_stays_text():
    assert compose("lr-width", ["description='2^-9, and 2^-8'"])["description"] == "2^-9, and 2^-8"


@pytest.mark.parametrize("value", ["~", "~/pictures", "~ann/my pictures", '~/a"b\\', "~/a,b", "~/${description}"])
def test_path_may_begin_with_tilde(value):
    given = ["description=d", f"output_dir={value}", "data=image_folder", f"data.path={value}"]
    config = compose("lr-width", [*given, "data.image_size=32"])
    assert config["output_dir"] == config["data"]["path"] == value.replace("${description}", "d")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.base_lr=[1,2", "close each bracket"),
        ("training.steps=[1,2", "close each bracket"),
        ("search.base_lr=[3^-2]", "as 'key=\"text\"'"),
        ("description=rate 2^-9", "as 'key=\"text\"'"),
        ("training.steps=range(1,2,3,4)", "too many positional arguments"),
    ],
)
def test_override_outside_hydras_grammar_is_refused_with_remedy(override, message):
    with refused(message) as caught:
        compose("lr-width", [override])
    assert str(caught.value).startswith(f"override {override!r}")


@pytest.mark.parametrize("composing", [lambda key: compose("lr-width", [key]), lambda key: compose_model("dit", [key])])
def test_unknown_key_without_near_name_lists_the_groups(composing):
    with refused() as caught:
        composing("foo=3")
    message = str(caught.value)
    assert message.startswith("unknown key foo: known: check, checkpoints, compute, data, ")
    assert message.endswith(", training; muxfer config NAME prints every key")
    assert "model.width" not in message


def test_two_lists_for_one_setting_are_refused():
    with pytest.raises(BadInput, match="to give a list use"):
        compose("lr-width", ["search.base_lr=[1],[2]"])


def test_unknown_model_key_is_refused_with_nearest_name():
    with pytest.raises(BadInput, match=r"unknown key model.widht: did you mean 'model.width'"):
        compose_model("dit", ["model.widht=3"])
