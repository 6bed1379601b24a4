"""The coordinate check on a study's page. The page goes to the ledger, so it must not carry files from elsewhere."""

import json
import os
import shutil

import pytest

from muxfer.report.study_page import write
from tests.synthetic import check_of, judged, make_study


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A folder as `muxfer check` leaves it."""
    folder = tmp_path_factory.mktemp("check")
    (folder / "mup-width.json").write_text(json.dumps(check_of(folder)))
    return folder


def page_with(check, home):
    records = make_study(widths=(32, 64), seeds=1)
    return write("lr-width", home, records, judged(records), context={"check": check}).read_text()


def test_page_has_the_coordinate_check_and_its_figure(checked, tmp_path):
    moved = shutil.copytree(checked, tmp_path / "moved")
    assert "under mup does not keep its coordinates at width 32, 64, 128, 256" in (
        page := page_with(moved, tmp_path / "home")
    )
    assert "coordinate-check.svg" in page
    for suffix in (".png", ".svg"):
        copied = tmp_path / "home" / f"coordinate-check{suffix}"
        assert copied.read_bytes() == (checked / f"mup-width{suffix}").read_bytes()


@pytest.mark.parametrize("plant", ["the file names it", "the figure is a link"])
def test_files_outside_the_check_folder_are_never_copied(checked, tmp_path, plant):
    folder, private = shutil.copytree(checked, tmp_path / "check"), [tmp_path / "key.png", tmp_path / "key.svg"]
    file = folder / "mup-width.json"
    for secret in private:
        secret.write_text("<svg PRIVATE KEY")
        if plant == "the figure is a link":
            file.with_suffix(secret.suffix).unlink()
            file.with_suffix(secret.suffix).symlink_to(secret)
    named = private[0] if plant == "the file names it" else file.with_suffix(".png")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"figure": str(named)}))
    assert "PRIVATE" not in page_with(folder, tmp_path / "home")
    files = {path: path.read_bytes() for path in (tmp_path / "home").iterdir()}
    assert not [path for path, content in files.items() if b"PRIVATE" in content]


WRONG_CHECKS = {
    "{}": b"{}",
    "no JSON": b"\xff",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "half a character": {"model": "\ud800"},
    "a text for the sizes": {"sizes": "32"},
    "lines without slopes": {"modules": [{}]},
    "a number for the control": {"control": 5},
    "a control without a verdict": {"control": {"parametrization": "standard"}},
}


@pytest.mark.parametrize("wrong", WRONG_CHECKS)
def test_malformed_check_is_left_out_with_a_warning(checked, tmp_path, caplog, wrong):
    folder, content = shutil.copytree(checked, tmp_path / "check"), WRONG_CHECKS[wrong]
    file = folder / "mup-width.json"
    whole = content if isinstance(content, bytes) else json.dumps(json.loads(file.read_text()) | content).encode()
    file.write_bytes(whole)
    assert "Coordinate check" not in page_with(folder, tmp_path / "home")
    assert "muxfer check makes it again" in caplog.text


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/nothing")])
def test_check_that_is_not_a_file_is_left_out(tmp_path, make):
    (tmp_path / "check").mkdir()
    make(tmp_path / "check" / "mup-width.json")
    assert "Coordinate check" not in page_with(tmp_path / "check", tmp_path / "home")
