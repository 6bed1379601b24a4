"""Each attempt gets a folder of its own, numbered within its epoch, and never behind a link."""

import pytest

from muxfer.errors import BadInput
from muxfer.training.attempt_folders import new_attempt


def test_each_attempt_has_a_folder_of_its_own(tmp_path):
    folders = [new_attempt(tmp_path, epoch=3) for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(folder.name.startswith("attempt-0003-") for folder in folders)


def test_the_next_attempts_number_ignores_other_names_epochs_and_files(tmp_path):
    for name in ("attempt-0003-07", "attempt-0003-x", "attempt-0004-09"):
        (tmp_path / name).mkdir()
    (tmp_path / "attempt-0003-08").write_text("a file")
    assert new_attempt(tmp_path, epoch=3).name == "attempt-0003-09"


@pytest.mark.parametrize("link", ["trials", "trials/key"])
def test_an_attempt_behind_a_link_is_refused(tmp_path, link):
    outside = tmp_path / "outside"
    (outside / "key").mkdir(parents=True)
    path = tmp_path / "study" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)
    with pytest.raises(BadInput, match=r"is a link to .*outside: expected a folder.*output_dir=FOLDER"):
        new_attempt(tmp_path / "study" / "trials" / "key", epoch=1)
    assert sorted(outside.rglob("*")) == [outside / "key"]
