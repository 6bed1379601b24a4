"""μP for any torch module: scales by parameter name, inferred from shapes, folded into the weights' own numbers.

    plan = make_plan(build, width=256, base_width=64, readout="final_layer.linear.weight")
    model = build(256)
    parametrize(model, plan)
    optimizer = AdamW(param_groups(model, plan, base_lr=2**-7, weight_decay=0.0, eps=1e-8, betas=(0.9, 0.999)))

Depth scaling needs to know which parameters are in residual branches, and which of them end a branch:

    plan = make_plan(build_deep, width=256, base_width=64, readout="final_layer.linear.weight",
                     parametrization="completep", depth=24, base_depth=6,
                     branches=["blocks.*"], branch_ends=["blocks.*.attn.proj.*", "blocks.*.mlp.fc2.*"])

`shapes` finds what grows, `rules` is the table, `initialization` records how the class initializes itself, and
`parametrize` applies the plan. `rules`, `mutants` and `slopes` use no torch of their own.
"""

from muxfer.mup.parametrize import (
    fold_factors,
    make_plan,
    param_groups,
    parametrize,
    validate_optimizer,
    validate_same_base,
)
from muxfer.mup.rules import PARAMETRIZATIONS, ROLES, Initialization, Scale, ScalePlan, scale_of

__all__ = [
    "PARAMETRIZATIONS",
    "ROLES",
    "Initialization",
    "Scale",
    "ScalePlan",
    "fold_factors",
    "make_plan",
    "param_groups",
    "parametrize",
    "scale_of",
    "validate_optimizer",
    "validate_same_base",
]
