"""The fit command: laws from a table or a recorded study, the keys of its JSON, the figure, and every refusal."""

import csv
import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from muxfer.analysis.laws.isoflop_points import Points
from muxfer.analysis.laws.scaling_law import fit_isoflop
from muxfer.commands.fit import fit
from muxfer.errors import BadInput
from muxfer.report.figures.laws import laws_figure
from tests.refusals import refused
from tests.small_sweeps import record_study
from tests.typed import answer, muxfer

pytestmark = pytest.mark.usefixtures("empty_folder")
COLUMNS = ("flops", "params", "tokens", "loss")


def rows(*, noise=1e-5, exponent=0.5681, falls=0.0273, fid=False, seed=0):
    """The paper's budgets and laws, or others; nine sizes each."""
    rng = np.random.default_rng(seed)
    for flops in (1e17, 3e17, 6e17, 1e18, 3e18, 6e18):
        for x in np.linspace(-1, 1, 9):
            params = 0.0009 * 1e18 ** (0.5681 - exponent) * flops**exponent * math.exp(x)
            loss = 2.3943 * flops**-falls * (1 + 0.05 * x**2) * (1 + noise * rng.standard_normal())
            yield (flops, params, flops / 6 / params, loss, *([2.2566e6 * flops**-0.234] if fid else []))


def write(path, content, names=COLUMNS):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(content)
    return str(path)


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def paper(tmp_path):
    return write(tmp_path / "paper.csv", rows())


def test_a_table_gives_the_documented_keys(paper):
    result = fit(None, (), table=paper, predict_at=1.5e21)
    data = json.loads(json.dumps(result.data, allow_nan=False))
    assert result.exit_code == 0
    for name, exponent in (("params", 0.5681), ("tokens", 0.4319), ("loss", -0.0273)):
        part = data[name]
        assert part["exponent"] == pytest.approx(exponent, abs=0.002)
        assert part["low"] <= part["exponent"] <= part["high"]
        assert part["coefficient"] > 0
    assert [one["flops"] for one in data["optima"]] == [1e17, 3e17, 6e17, 1e18, 3e18, 6e18]
    assert all({"flops", "params", "tokens", "loss"} <= one.keys() for one in data["optima"])
    assert data["prediction"]["flops"] == 1.5e21
    assert data["prediction"]["params"] == pytest.approx(964.7e6, rel=0.02)
    assert data["prediction"]["tokens"] == pytest.approx(1.5e21 / 6 / 964.7e6, rel=0.02)
    assert data["prediction"]["loss"] == pytest.approx(2.3943 * 1.5e21**-0.0273, rel=0.001)
    for words in ("6 budgets, a parabola", "at 1.5e+21 FLOPs, 250 times the largest budget", "parametric law  L ="):
        assert words in result.text
    assert max(map(len, result.text.splitlines())) <= 80


def test_a_study_without_a_finite_loss_still_has_a_figure(tmp_path):
    nothing = Points(**{name: np.zeros(0) for name in COLUMNS})
    for path in laws_figure(fit_isoflop(nothing), tmp_path / "isoflop", title="nothing yet"):
        assert path.stat().st_size > 0


def test_a_table_writes_nothing_unless_asked(paper, tmp_path):
    before = sorted(tmp_path.iterdir())
    assert fit(None, (), table=paper).data["figure"] is None
    assert sorted(tmp_path.iterdir()) == before


def test_the_figure_is_a_picture_a_drawing_and_a_table(paper, tmp_path):
    result = fit(None, (), table=paper, predict_at=1.5e21, figure=str(tmp_path / "out" / "laws.png"))
    png = tmp_path / "out" / "laws.png"
    assert result.data["figure"] == str(png)
    assert png.read_bytes().startswith(b"\x89PNG")
    text = "".join(ElementTree.parse(png.with_suffix(".svg")).getroot().itertext())
    for words in ("paper.csv", "3e+17 FLOPs", "power law", "95 % interval", "parametric law", "predicted", "optimum"):
        assert words in text
    kept = read(png.with_suffix(".csv"))
    assert len(kept) == 54
    assert float(kept[0]["fitted"]) == pytest.approx(float(kept[0]["loss"]), rel=1e-4)
    assert len({one["optimal_params"] for one in kept}) == 6


def test_tokens_may_be_left_out_and_a_fid_is_fitted_too(tmp_path):
    content = [(flops, params, loss, fid) for flops, params, _, loss, fid in rows(fid=True)]
    table = write(tmp_path / "few.csv", content, ("flops", "params", "loss", "fid"))
    data = fit(None, (), table=table, predict_at=1.5e21).data
    assert data["tokens"]["exponent"] == pytest.approx(0.4319, abs=0.002)
    assert data["fid"]["exponent"] == pytest.approx(-0.234, abs=0.002)
    assert data["prediction"]["fid"] == pytest.approx(2.2566e6 * 1.5e21**-0.234, rel=0.01)


def test_too_few_optima_give_exit_code_6_and_a_reason_for_each_budget(tmp_path):
    rising = [row for row in rows() if row[1] > 1.05 * 0.0009 * row[0] ** 0.5681]
    result = fit(None, (), table=write(tmp_path / "rising.csv", rising), predict_at=1e20)
    assert result.exit_code == 6
    assert (result.data["params"], result.data["prediction"], result.data["optima"]) == (None, None, [])
    assert len(result.data["left_out"]) == 6
    assert "left out: the loss is lowest at the smallest size" in result.text
    assert "no prediction: the size for 1e+20 FLOPs needs a law" in result.text.splitlines()
    assert "no prediction" not in fit(None, (), table=str(tmp_path / "rising.csv")).text


def test_two_tables_are_compared(paper, tmp_path):
    other = write(tmp_path / "other.csv", rows(exponent=0.54, falls=0.0385, seed=1))
    result = fit(None, (), table=other, against_table=paper)
    comparison = result.data["comparison"]
    assert comparison["exponents"]["params"]["value"] == pytest.approx(0.54 - 0.5681, abs=0.002)
    assert comparison["readings"][1].startswith("other.csv gains more from compute")
    assert "other.csv against paper.csv" in result.text


BAD = {
    "a missing column": (("flops", "params", "tokens", "lss"), None, "no column 'loss'"),
    "text in numbers": (COLUMNS, [(1e17, 1e6, 1e9, "good")] * 9, "'good'"),
    "no finite loss": (COLUMNS, [(1e17, 1e6, 1e9, "nan")] * 9, "none of the 9 runs has a finite loss"),
    "one row": (COLUMNS, [(1e17, 1e6, 1e9, 0.5)], "1 budget "),
    "rows that are one row": (COLUMNS, [(1e17, 1e6, 1e9, 0.5)] * 9, "1 budget "),
    "a size below zero": (COLUMNS, [(1e17, -1e6, 1e9, 0.5)] * 9, "expected numbers above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_refused_in_one_line(tmp_path, case):
    names, content, message = BAD[case]
    table = write(tmp_path / "bad.csv", rows() if content is None else content, names)
    with refused(message):
        fit(None, (), table=table)


def test_the_command_prints_one_json_object_and_refuses_a_name_with_a_table(paper, tmp_path):
    words = ["fit", "--table", paper, "--predict", "1.5e21", "--json"]
    assert answer(tmp_path, *words)["prediction"]["params"] == pytest.approx(964.7e6, rel=0.02)
    both = muxfer(tmp_path, *words, "isoflop")
    assert (both.returncode, both.stdout) == (2, "")
    assert "not both" in both.stderr


SMALL = ("search.flops=[1e11,2e11,4e11]", "search.depth=[2,3,4,5]", "training.batch_size=64")


def parabola(flops, params):
    """Losses around 0.35 sqrt(C) parameters."""
    return 3 * flops**-0.05 * (1 + 0.05 * math.log(params / (0.35 * flops**0.5)) ** 2)


def test_a_recorded_study_is_fitted_and_drawn_beside_its_report():
    asked, trials = record_study("isoflop", SMALL, parabola)
    result = fit("isoflop", SMALL, predict_at=1e13)
    assert result.exit_code == 0
    assert result.data["params"]["exponent"] == pytest.approx(0.5, abs=1e-6)
    assert result.data["loss"]["exponent"] == pytest.approx(-0.05, abs=1e-6)
    assert result.data["figure"] == str(asked.files.path / "isoflop.png")
    assert result.data["notes"] == []
    assert len(read(asked.files.path / "isoflop.csv")) == len(trials)


def test_a_study_that_is_no_isoflop_study_is_refused():
    with pytest.raises(BadInput, match="sweep lr-width is no isoFLOP study"):
        fit("lr-width", ())


def test_a_study_that_never_ran_is_refused():
    with pytest.raises(BadInput, match="run muxfer sweep isoflop first"):
        fit("isoflop", SMALL)
