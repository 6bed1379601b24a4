"""Plain data from ledgers and files is read in the expected form. Any other form is refused with the reason."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import pytest

from benchmarks.faults.harness.settings import IDENTITY
from muxfer.files import content_of
from muxfer.trial import Identity, Outcome, Record
from muxfer.validate import expect

RECORD = Record(key="k", setting={"width": 16}, replicate=0, outcome=Outcome.FINISHED, metric=0.5, step=1).to_dict()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"step": "x"}, "step is 'x': expected a whole number"),
        ({"step": True}, "step is True: expected a whole number"),
        ({"step": 2**63}, "step is 9223372036854775808: expected a whole number"),
        ({"step": 1.0}, "step is 1.0: expected a whole number"),
        ({"setting": 5}, "setting is 5: expected keys and values"),
        ({"setting": {"width": [16]}}, r"setting.width is \[16\]: expected a number or a whole number or text"),
        ({"train_seconds": "a"}, "train_seconds is 'a': expected a number"),
        ({"train_seconds": float("nan")}, "train_seconds is nan: expected a number"),
        ({"epoch": None}, "epoch is None: expected a whole number"),
        ({"checkpoint": 5}, "checkpoint is 5: expected text or null"),
        ({"outcome": "won"}, "outcome is 'won': expected finished or diverged or failed"),
        ({"outcome": ["finished"]}, "outcome is .*: expected finished or"),
        ({"metric": None}, "a finished record cannot have metric None"),
    ],
)
def test_record_of_wrong_form_is_refused_with_reason(changed, reason):
    with pytest.raises(ValueError, match=f"^{reason}"):
        Record.from_dict(RECORD | changed)


@pytest.mark.parametrize("data", [None, 5, [RECORD], {"outcome": "finished"}])
def test_other_data_is_refused_as_a_record(data):
    with pytest.raises(ValueError, match="expected keys and values|key is missing"):
        Record.from_dict(data)


def test_unknown_and_missing_optional_keys_are_read():
    assert Record.from_dict(RECORD | {"new": [1]}) == Record.from_dict(RECORD)
    old = {name: RECORD[name] for name in ("key", "setting", "replicate", "outcome", "metric", "step")}
    assert Record.from_dict(old) == Record.from_dict(RECORD)
    assert Record.from_dict(RECORD | {"metric": 1}).metric == 1
    expect(Identity, IDENTITY | {"new": [1]})


@pytest.mark.parametrize("key", IDENTITY)
def test_identity_without_a_required_key_is_refused(key):
    with pytest.raises(ValueError, match=f"^{key} is missing"):
        expect(Identity, {name: value for name, value in IDENTITY.items() if name != key})
    with pytest.raises(ValueError, match=rf"^{key} is \[\]: expected"):
        expect(Identity, {**IDENTITY, key: []})


def test_error_names_the_path_of_a_nested_key():
    with pytest.raises(ValueError, match="^model.family is missing"):
        expect(Identity, {**IDENTITY, "model": {"name": "dit"}})


def test_lists_and_booleans_are_validated():
    class Form(TypedDict):
        names: Sequence[str]
        right: bool

    expect(Form, {"names": ["a"], "right": True})
    with pytest.raises(ValueError, match=r"^names\[1\] is 5: expected text"):
        expect(Form, {"names": ["a", 5], "right": True})
    with pytest.raises(ValueError, match="^names is 'ab': expected a list"):
        expect(Form, {"names": "ab", "right": True})
    with pytest.raises(ValueError, match="^right is 1: expected true or false"):
        expect(Form, {"names": [], "right": 1})


def test_content_of_reads_regular_files_alone(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"mine")
    link.symlink_to(file)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    open_before = len(os.listdir("/proc/self/fd"))
    assert [content_of(path) for path in (file, link)] == [b"mine", b"mine"]
    assert content_of(link, follow=False) is None
    for other in (tmp_path, tmp_path / "pipe", tmp_path / "dangling", tmp_path / "nothing", file / "below"):
        assert content_of(other) is None, other
    assert content_of(Path("/dev/zero")) is None
    assert len(os.listdir("/proc/self/fd")) == open_before
