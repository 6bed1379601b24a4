"""The target's page compares it with its proxies and holds its samples, and no other file."""

import os
import re

import pytest
from PIL import Image

from muxfer.report.target_page import write_target
from tests.report.page_structure import Structure
from tests.synthetic import judged, make_study, settled


def target_record(metric=0.21):
    return settled({"base_lr": 2.0**-7, "width": 256}, metric, key="t", step=900, kind="target")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("secret")])
def test_samples_and_band_that_are_not_files_are_left_out(tmp_path, make):
    (tmp_path / "secret").write_text("<svg PRIVATE")
    records, files = make_study(), [tmp_path / "samples.png", tmp_path / "band.svg"]
    for file in files:
        make(file)
    page = write_target(
        "lr-width", tmp_path, target_record(), records, judged(records), samples=files[0], band=files[1]
    )
    assert re.findall(r"<h2>([^<]*)", page.read_text()) == ["Against its proxies"]


def test_page_compares_target_with_each_proxy_and_embeds_samples(tmp_path):
    picture = tmp_path / "samples.png"
    Image.new("L", (8, 8), 200).save(picture)
    records = make_study()
    page = write_target(
        "lr-width", tmp_path, target_record(), records, judged(records), samples=picture, lineage={"plan": "9f9f"}
    )
    picture.unlink()
    structure = Structure(page.read_text())
    words = " ".join(structure.words)
    assert "better than every proxy" in words
    assert words.count("proxy, width") == 3
    assert "9f9f" in words
    assert any(value.startswith("data:image/png;base64,") for name, value in structure.attributes if name == "src")


@pytest.mark.parametrize(("metric", "title"), [(None, "diverged at step 900"), (0.9, "reached validation loss 0.9000")])
def test_headline_states_a_target_that_is_not_better(tmp_path, metric, title):
    records = make_study()
    page = write_target("lr-width", tmp_path, target_record(metric), records, judged(records)).read_text()
    assert title in page
    assert "better" not in page
