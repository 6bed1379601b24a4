"""Where configurations come from: the user's folders in front, nothing outside them, one line when it fails."""

import pytest

from muxfer.adapters.hydra_compose import compose, compose_model, model_names, sweep_names
from muxfer.errors import BadInput
from muxfer.parse import parse


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, name, text):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_a_users_group_and_sweep_stand_before_the_packaged_ones(empty_folder):
    write(empty_folder, "conf/training/mine.yaml", "steps: 7\nbatch_size: 3\n")
    write(empty_folder, "conf/compute/local.yaml", "slots: 1\n")
    write(empty_folder, "sweeps/my-sweep.yaml", "defaults:\n  - base\n  - override training: mine\n  - _self_\n")
    config = compose("my-sweep")
    assert config["training"] == {"steps": 7, "batch_size": 3}
    assert config["compute"] == {"slots": 1}
    assert sweep_names() == ["lr-width", "my-sweep"]


def test_a_users_sweep_of_the_same_name_wins(empty_folder):
    write(empty_folder, "sweeps/lr-width.yaml", "defaults:\n  - base\n  - _self_\nsearch:\n  width: [16]\n")
    assert compose("lr-width")["search"]["width"] == [16]


def test_a_users_conf_supplies_groups_never_the_primary_configuration(empty_folder):
    write(empty_folder, "conf/base.yaml", "evil: true\n")
    with pytest.raises(BadInput, match="groups and sweeps only"):
        compose("lr-width")


@pytest.mark.parametrize("name", ["lr-widht", "../lr-width", "/etc/passwd", "", "lr-width\n", "a" * 10_000, "base"])
def test_an_unknown_sweep_is_refused_with_the_nearest_name(name):
    with pytest.raises(BadInput, match="lr-width"):
        compose(name)


def test_an_alias_bomb_is_refused_before_it_is_parsed(empty_folder):
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    write(empty_folder, "conf/model/bomb.yaml", bomb)
    with pytest.raises(BadInput, match="aliases"):
        compose("lr-width", ["model=bomb"])


def test_a_folder_with_a_space_is_read(empty_folder, monkeypatch):
    spaced = empty_folder / "my studies"
    write(spaced, "conf/training/mine.yaml", "steps: 7\nbatch_size: 3\n")
    monkeypatch.chdir(spaced)
    assert compose("lr-width", ["training=mine"])["training"] == {"steps": 7, "batch_size": 3}


def test_an_editors_lock_file_is_no_configuration(empty_folder):
    (empty_folder / "conf" / "model").mkdir(parents=True)
    (empty_folder / "conf" / "model" / ".#dit.yaml").symlink_to("ann@host.1")
    (empty_folder / "conf" / "model" / "folder.yaml").mkdir()
    assert compose("lr-width")["model"]["family"] == "dit"


def test_a_description_may_hold_dots(empty_folder):
    assert compose("lr-width", ["description=a..b"])["description"] == "a..b"


@pytest.mark.parametrize("text", ["a: [", "\t- x", "a: b: c", "- 1\n- 2\n", "\x00"])
def test_malformed_yaml_is_one_line(empty_folder, text):
    write(empty_folder, "conf/model/broken.yaml", text)
    with pytest.raises(BadInput) as refused:
        parse(compose("lr-width", ["model=broken"]))
    assert "\n" not in str(refused.value)


def test_the_same_call_twice_gives_the_same_configuration():
    assert compose("lr-width", ["model.depth=2"]) == compose("lr-width", ["model.depth=2"])


def test_an_override_of_a_users_interpolation_is_resolved(empty_folder):
    assert compose("lr-width", ["data.image_size=16"])["model"]["image_size"] == 16


def test_a_model_s_name_means_the_primary_configuration_with_it():
    config = compose_model("pixart", ["model.depth=2"])
    assert (config["model"]["family"], config["model"]["depth"]) == ("pixart", 2)
    assert config["optimizer"] == compose("lr-width")["optimizer"]
    assert compose_model("lr-width", ["model=pixart", "model.depth=2"])["model"] == config["model"]


def test_a_user_s_model_has_a_name_too_and_stands_before_the_packaged_one(empty_folder):
    write(empty_folder, "conf/model/mine.yaml", "family: mine\n")
    write(empty_folder, "conf/model/dit.yaml", "family: changed\n")
    assert "mine" in model_names()
    assert compose_model("mine")["model"] == {"family": "mine"}
    assert compose_model("dit")["model"] == {"family": "changed"}


def test_of_a_sweep_and_a_model_of_one_name_the_sweep_is_meant(empty_folder):
    write(empty_folder, "sweeps/dit.yaml", "defaults:\n  - base\n  - override model: pixart\n  - _self_\n")
    assert compose_model("dit")["model"]["family"] == "pixart"


@pytest.mark.parametrize("name", ["dti", "model/dit", "../dit", "dit.yaml", "", "dit\n", "no-sweep", "d" * 10_000])
def test_an_unknown_model_is_refused_with_the_nearest_name(name):
    with pytest.raises(BadInput, match="unknown sweep or model .*dit"):
        compose_model(name)


@pytest.mark.parametrize("override", ["model=pixart", "+model=pixart"])
def test_two_models_are_refused(override):
    with pytest.raises(BadInput, match="dit is the model already"):
        compose_model("dit", [override])


@pytest.mark.parametrize("name", ["no-sweep", "dit"])
def test_a_sweep_is_never_a_model(name):
    with pytest.raises(BadInput, match="unknown sweep"):
        compose(name)


def test_a_model_with_an_alias_bomb_in_the_folder_is_refused_as_a_sweep_is(empty_folder):
    write(empty_folder, "conf/model/bomb.yaml", "a: &a [x]\nb: *a\n")
    with pytest.raises(BadInput, match="aliases"):
        compose_model("dit")


def test_a_wrong_key_of_a_model_is_told_with_the_nearest():
    with pytest.raises(BadInput, match=r"unknown key model.widht: did you mean 'model.width'"):
        compose_model("dit", ["model.widht=3"])
