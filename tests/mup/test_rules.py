"""The multiplier table, entry by entry, and what it refuses."""

import pytest

from muxfer.errors import BadInput
from muxfer.mup import Scale, scale_of

# m = 4, α = 2, as fractions of the design's table: (role, declared readout), init, lr, weight decay, eps, fold
MUP = [
    ("input", False, 1, 1, 1, 1 / 4, 1),
    ("hidden", False, 1 / 2, 1 / 4, 4, 1 / 4, 1),
    ("readout", False, 1 / 4, 1 / 4, 4, 1, 1 / 4),
    ("readout", True, 1 / 2, 1 / 2, 2, 1 / 2, 1 / 2),
    ("finite", False, 1, 1, 1, 1, 1),
]
STANDARD = [
    ("input", False, 1, 1, 1, 1, 1),
    ("hidden", False, 1 / 2, 1, 1, 1, 1),
    ("readout", False, 1 / 2, 1, 1, 1, 1),
    ("readout", True, 1, 2, 1 / 2, 1 / 2, 2),
    ("finite", False, 1, 1, 1, 1, 1),
]
# m = 4, α = 2, s = 1/8: (role, declared readout, place), init, lr, weight decay, eps, fold
COMPLETEP = [
    ("input", False, "trunk", 1, 1, 1, 1 / 4, 1),
    ("input", False, "inside", 1, 1, 1, 1 / 32, 1),
    ("input", False, "end", 1 / 8, 1 / 8, 8, 1 / 4, 1 / 8),
    ("hidden", False, "trunk", 1 / 2, 1 / 4, 4, 1 / 4, 1),
    ("hidden", False, "inside", 1 / 2, 1 / 4, 4, 1 / 32, 1),
    ("hidden", False, "end", 1 / 16, 1 / 32, 32, 1 / 4, 1 / 8),
    ("readout", True, "trunk", 1 / 2, 1 / 2, 2, 1 / 2, 1 / 2),
    ("readout", False, "trunk", 1 / 4, 1 / 4, 4, 1, 1 / 4),
    ("readout", False, "inside", 1 / 4, 1 / 4, 4, 1 / 8, 1 / 4),
    ("readout", False, "end", 1 / 32, 1 / 32, 32, 1, 1 / 32),
    ("finite", False, "trunk", 1, 1, 1, 1, 1),
    ("finite", False, "inside", 1, 1, 1, 1 / 8, 1),
    ("finite", False, "end", 1 / 8, 1 / 8, 8, 1, 1 / 8),
]
ROWS = [("mup", *row) for row in MUP] + [("standard", *row) for row in STANDARD]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}{'-declared' * row[2]}")
def test_table_entries_over_width(row: tuple) -> None:
    parametrization, role, declared, init_std, lr, weight_decay, eps, fold = row
    scale = scale_of(
        role, width_ratio=4, parametrization=parametrization, output_multiplier=2, is_declared_readout=declared
    )
    assert scale == Scale(role=role, init_std=init_std, lr=lr, weight_decay=weight_decay, eps=eps, fold=fold)


@pytest.mark.parametrize("row", COMPLETEP, ids=lambda row: f"{row[0]}-{row[2]}{'-declared' * row[1]}")
def test_table_entries_over_depth(row: tuple) -> None:
    role, declared, place, init_std, lr, weight_decay, eps, fold = row
    scale = scale_of(
        role,
        width_ratio=4,
        parametrization="completep",
        output_multiplier=2,
        is_declared_readout=declared,
        depth_ratio=8,
        in_branch=place == "inside",
        branch_end=place == "end",
    )
    assert scale == Scale(role=role, init_std=init_std, lr=lr, weight_decay=weight_decay, eps=eps, fold=fold)


@pytest.mark.parametrize("role", ["input", "hidden", "readout", "finite"])
@pytest.mark.parametrize("place", ["trunk", "in_branch", "branch_end"])
def test_completep_is_mup_at_the_base_depth(role: str, place: str) -> None:
    where = {} if place == "trunk" else {place: True}
    completep, mup = (
        scale_of(role, width_ratio=3, parametrization=parametrization, **where)
        for parametrization in ("completep", "mup")
    )
    assert completep == mup


@pytest.mark.parametrize("role", ["input", "hidden", "readout", "finite"])
@pytest.mark.parametrize("alpha", [1, 2, 16])
def test_standard_is_mup_at_the_base_width(role: str, alpha: float) -> None:
    mup, standard = (
        scale_of(
            role,
            width_ratio=1,
            parametrization=parametrization,
            output_multiplier=alpha,
            is_declared_readout=role == "readout",
        )
        for parametrization in ("mup", "standard")
    )
    assert mup == standard


@pytest.mark.parametrize("role", ["input", "hidden", "readout", "finite"])
def test_stock_has_no_factor(role: str) -> None:
    scale = scale_of(role, width_ratio=4, parametrization="stock")
    assert scale == Scale(role=role, init_std=1, lr=1, weight_decay=1, eps=1, fold=1)


@pytest.mark.parametrize("parametrization", ["mup", "standard"])
@pytest.mark.parametrize("role", ["input", "hidden", "readout", "finite"])
def test_rate_times_decay_is_constant_in_width(parametrization: str, role: str) -> None:
    scale = scale_of(role, width_ratio=8, parametrization=parametrization)
    assert scale.lr * scale.weight_decay == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"role": "hiden"}, "unknown role 'hiden'; did you mean 'hidden'"),
        ({"parametrization": "standart"}, "did you mean 'standard'"),
        ({"depth_ratio": 2.0}, "2 times the base depth has no effect under mup"),
        ({"parametrization": "completep", "depth_ratio": 0.0}, "depth ratio 0.0: expected a finite number above 0"),
        ({"output_multiplier": 0.0}, "above 0"),
        ({"output_multiplier": float("nan")}, "finite"),
        ({"parametrization": "stock", "output_multiplier": 2.0}, "no effect under stock"),
    ],
)
def test_settings_without_a_rule_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        scale_of(**{"role": "hidden", "width_ratio": 2, **kwargs})
