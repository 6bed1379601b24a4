"""Scale plans with one rule broken. A coordinate check must fail each of them, for any model.

A mutant changes the numbers of a correct plan. Each fault was seen in public code, or is close to one that was.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from muxfer.mup.rules import Scale, ScalePlan

Mutant = Callable[[str, Scale, float, ScalePlan], Scale]
"""(parameter name, its right scale, m, plan) -> its wrong scale"""


def is_vector(name: str, plan: ScalePlan) -> bool:
    return len(plan.shapes[name]) == 1


def is_modulation(name: str) -> bool:
    """Whether this is a linear from the condition to shifts, scales and gates, by our names or those of diffusers."""
    named = ("adaLN_modulation.", "t_block.", ".norm1.linear.", ".norm1_context.linear.", "norm_out.linear.")
    return any(part in name for part in (*named, "adaln_single.linear.", ".norm.linear."))


def is_label_table(name: str) -> bool:
    return name.endswith(("embedding_table.weight", "label_emb.weight"))


def is_patch_embedding(name: str) -> bool:
    return name.endswith(("x_embedder.proj.weight", "patch_embed.proj.weight", "pos_embed.proj.weight"))


def _xavier_ratio(name: str, m: float, plan: ScalePlan) -> float:
    """Xavier's deviation at this width over that at the base width, for a patch embedding [D, C, p, p]."""
    width, *kernel = plan.shapes[name]
    fan_in = kernel[0] * kernel[1] * kernel[2]
    fan_out = width * kernel[1] * kernel[2]
    return ((fan_in + fan_out / m) / (fan_in + fan_out)) ** 0.5


MUTANTS: Mapping[str, Mutant] = {
    "hidden lr not scaled": lambda n, s, m, p: replace(s, lr=1.0) if s.role == "hidden" else s,
    "hidden lr divided twice": lambda n, s, m, p: replace(s, lr=s.lr / m) if s.role == "hidden" else s,
    "hidden init 1/m": lambda n, s, m, p: replace(s, init_std=1 / m) if s.role == "hidden" else s,
    "readout lr not scaled": lambda n, s, m, p: replace(s, lr=1.0) if n == p.readout else s,
    "readout init m^-1/2": lambda n, s, m, p: replace(s, init_std=m**-0.5) if n == p.readout else s,
    "input lr as hidden": lambda n, s, m, p: replace(s, lr=1 / m) if s.role == "input" and not is_vector(n, p) else s,
    "vector lr as hidden": lambda n, s, m, p: replace(s, lr=1 / m) if s.role == "input" and is_vector(n, p) else s,
    "finite lr as hidden": lambda n, s, m, p: replace(s, lr=1 / m) if s.role == "finite" else s,
    "modulation lr as input": lambda n, s, m, p: replace(s, lr=1.0) if s.role == "hidden" and is_modulation(n) else s,
    "table taken for a readout": lambda n, s, m, p: (
        replace(s, init_std=1 / m, lr=1 / m, weight_decay=m) if is_label_table(n) else s
    ),
    "Xavier on the patch embedding": lambda n, s, m, p: (
        replace(s, init_std=_xavier_ratio(n, m, p)) if is_patch_embedding(n) else s
    ),
    "constant init of hidden weights": lambda n, s, m, p: replace(s, init_std=1.0) if s.role == "hidden" else s,
    "table's init D^-1/2": lambda n, s, m, p: replace(s, init_std=m**-0.5) if n.endswith("scale_shift_table") else s,
    "readout's 1/m twice": lambda n, s, m, p: (
        replace(
            s, init_std=s.init_std / m, lr=s.lr / m, weight_decay=s.weight_decay * m, eps=s.eps * m, fold=s.fold / m
        )
        if n == p.readout
        else s
    ),
}


def mutated(plan: ScalePlan, mutant: Mutant) -> ScalePlan:
    """The plan with one rule broken. It is unchanged where the rule applies to no parameter of the model."""
    m = plan.width / plan.base_width
    return replace(plan, scales={name: mutant(name, scale, m, plan) for name, scale in plan.scales.items()})
