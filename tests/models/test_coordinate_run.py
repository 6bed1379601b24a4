"""Every family under the coordinate check: μP passes, SP fails, and each broken rule is seen."""

import pytest

from benchmarks.coordinates import DEPTH_FAMILIES, FAMILIES, Job, run_all, study
from muxfer.mup.mutants import MUTANTS

pytestmark = pytest.mark.slow

FULLY = {"dit": 12, "pixart": 12, "uvit": 11, "mmdit": 11, "in_context": 10, "cross_attention": 11}
"""One of each family gets every mutant, of which so many change its training; variants and diffusers' classes get few.

The others have nothing to break: a zero readout's deviation, a table or a modulation that is not there.
"""
FEW = ("hidden lr not scaled", "readout lr not scaled", "constant init of hidden weights")
HEALTHY_RUNS = 4
"""`make models` does 20 and publishes them."""


@pytest.mark.parametrize("name", FAMILIES)
def test_mup_passes_and_standard_and_broken_rules_fail(name):
    overrides = tuple(FAMILIES[name])
    mutants = list(MUTANTS) if name in FULLY else FEW
    healthy = [Job(overrides=overrides, seeds=(seed,)) for seed in range(HEALTHY_RUNS)]
    standard = Job(overrides=(*overrides, "optimizer.parametrization=standard"))
    broken = [Job(overrides=overrides, mutant=mutant) for mutant in mutants]
    results = run_all([*healthy, standard, *broken])
    for result in results[:HEALTHY_RUNS]:
        assert result.passed, result.failing
        assert result.loss_change < 0.1
    sp = results[HEALTHY_RUNS]
    assert not sp.passed
    assert sp.worst["change"] > 0.8
    seen = {
        mutant: result for mutant, result in zip(mutants, results[HEALTHY_RUNS + 1 :], strict=True) if result.changes
    }
    assert [mutant for mutant, result in seen.items() if result.passed] == []
    assert len(seen) == FULLY.get(name, len(FEW))


@pytest.mark.parametrize("name", DEPTH_FAMILIES)
def test_completep_passes_over_depths_and_mup_alone_fails(name):
    found = study(name, DEPTH_FAMILIES[name], axis="depth", num_healthy=1, mutants=[])
    assert found["healthy_failed"] == 0, found["failing"]
    assert not found["control_passed"]
    assert found["control_worst"]["change"] > 0.8
