"""CompleteP: folded depth scaling trains as a forward that multiplies every branch by s, in float64, to 1e-12.

The unfolded forward is made with hooks: s times the output of each module that ends a branch, f times the input of each
readout. Its parameters, rates, decays, eps and clip are the unfolded ones, written down here and not taken from the
table. Depth is three times the base depth and width three times the base width, so no factor is a power of two.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from statistics import mean, median

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from muxfer.analysis.transferability import best_setting, judge
from muxfer.config.models import Uvit
from muxfer.config.parse import parse_task
from muxfer.config.settings import with_setting
from muxfer.errors import BadInput
from muxfer.models.build import build_model, scale_plan
from muxfer.models.families import family_of
from muxfer.mup import ScalePlan, fold_factors, make_plan, param_groups, parametrize, scale_of, validate_same_base
from muxfer.study.trials import grid_trials, study_of
from muxfer.transfer.target import target_run
from muxfer.trial import Outcome, Record
from proxy_models import FAMILIES

BASE, OTHER, WIDTH, BASE_DEPTH, DEPTH = 16, 32, 48, 2, 6
M, S, ALPHA = WIDTH / BASE, BASE_DEPTH / DEPTH, 3.0
EPS, DECAY, RATE, BETAS, CLIP = 1e-3, 0.1, 2.0**-6, (0.9, 0.95), 0.25
STEPS = 24
FEW = 8
"""Steps after which a mutant must have shown itself."""
HEAD_DIM = 8


class Block(nn.Module):
    """Attention with one key head and QK-norm, then an MLP; gates from a linear and a table, none of them zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(HEAD_DIM)
        self.kv = nn.Linear(width, 2 * HEAD_DIM)
        self.proj = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.gate = nn.Linear(width, 2 * width)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / 2)

    def forward(self, x_BTD: torch.Tensor, c_BD: torch.Tensor) -> torch.Tensor:
        gate_attn, gate_mlp = (self.gate(c_BD).unflatten(1, (2, -1)) + self.scale_shift_table).unbind(1)
        h_BTD = self.norm(x_BTD)
        q_BHTK = self.q_norm(self.q(h_BTD).unflatten(-1, (-1, HEAD_DIM))).transpose(1, 2)
        k_B1TK, v_B1TK = self.kv(h_BTD)[:, None].chunk(2, dim=-1)
        attended_BTHK = F.scaled_dot_product_attention(
            q_BHTK, k_B1TK.expand_as(q_BHTK), v_B1TK.expand_as(q_BHTK)
        ).transpose(1, 2)
        x_BTD = x_BTD + gate_attn[:, None] * self.proj(attended_BTHK.flatten(-2))
        return x_BTD + gate_mlp[:, None] * self.fc2(F.gelu(self.fc1(F.layer_norm(x_BTD, x_BTD.shape[-1:]))))


class Residual(nn.Module):
    """Every role that a branch may hold: hidden, vectors and a table, finite gains, a readout (keys and values)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.condition = nn.Linear(3, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.out = nn.Linear(width, 3)

    def forward(self, x_BTC: torch.Tensor, c_BC: torch.Tensor) -> torch.Tensor:
        x_BTD, c_BD = self.embed(x_BTC), F.silu(self.condition(c_BC))
        for block in self.blocks:
            x_BTD = block(x_BTD, c_BD)
        return self.out(F.layer_norm(x_BTD, x_BTD.shape[-1:]))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and what it declares; `inputs` draws one batch and its target."""

    build: Callable[[int, int], nn.Module]
    inputs: Callable[[torch.Generator], tuple[torch.Tensor, ...]]
    readout: str
    branch_ends: tuple[str, ...]
    gates: str

    def plan(
        self, *, width: int = WIDTH, depth: int = DEPTH, parametrization: str = "completep", **kwargs
    ) -> ScalePlan:
        return make_plan(
            lambda w: self.build(w, depth),
            width=width,
            base_width=BASE,
            other_width=OTHER,
            parametrization=parametrization,
            readout=self.readout,
            depth=depth,
            branches=("blocks.*",),
            branch_ends=self.branch_ends,
            **{"output_multiplier": ALPHA, "base_depth": BASE_DEPTH, **kwargs},
        )


@cache
def right_plan(case: str) -> ScalePlan:
    return CASES[case].plan()


def residual(width: int, depth: int) -> nn.Module:
    return Residual(width, depth).double()


def draw_tokens(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((8, 5, 3), (8, 3), (8, 5, 3))
    )


def dit(width: int, depth: int) -> nn.Module:
    """Our DiT as it is, zero gates and all, but for a readout that lets the first gradient in."""
    model = FAMILIES["dit"].build(
        width=width, depth=depth, head_dim=16, patch=4, image_size=8, channels=1, num_classes=10
    )
    nn.init.normal_(model.final_layer.linear.weight, std=width**-0.5)
    return model.double()


def draw_images(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    x_BCHW, target_BCHW = torch.randn(2, 8, 1, 8, 8, generator=generator, dtype=torch.float64)
    t_B = 1000 * torch.rand(8, generator=generator, dtype=torch.float64)
    return x_BCHW, t_B, torch.randint(0, 11, (8,), generator=generator), target_BCHW


CASES = {
    "residual": Case(
        build=residual,
        inputs=draw_tokens,
        readout="out.weight",
        branch_ends=("blocks.*.proj.*", "blocks.*.fc2.*"),
        gates="blocks.*.gate.*",
    ),
    "dit": Case(
        build=dit,
        inputs=draw_images,
        readout="final_layer.linear.weight",
        branch_ends=FAMILIES["dit"].branch_ends,
        gates="blocks.*.adaLN_modulation.*",
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order: threads would differ by 1e-16 between two runs of one model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def is_end(name: str) -> bool:
    return name.startswith("blocks.") and name.rpartition(".")[0].endswith((".proj", ".fc2"))


def train(
    case: Case, model: nn.Module, groups: list[dict], folds: Mapping[str, float], *, steps: int
) -> tuple[list[float], list[bool]]:
    """Losses, and which steps were clipped, by the global norm of fold x gradient."""
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(groups)
    losses, clipped = [], []
    for _ in range(steps):
        *given, target = case.inputs(generator)
        loss = (model(*given) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([folds[name] * p.grad.norm() for name, p in model.named_parameters()]).norm()
        for parameter in model.parameters():
            parameter.grad.mul_((CLIP / (norm + 1e-6)).clamp(max=1))
        optimizer.step()
        losses.append(loss.item())
        clipped.append(norm.item() > CLIP)
    return losses, clipped


def fresh(case: Case, plan: ScalePlan) -> nn.Module:
    torch.manual_seed(0)
    model = case.build(WIDTH, DEPTH)
    parametrize(model, plan)
    return model


def train_folded(
    case: Case, plan: ScalePlan, *, initial: ScalePlan | None = None, steps: int = STEPS
) -> tuple[list[float], list[bool]]:
    """By the plan's numbers, from weights scaled by the same plan or by another, `initial`."""
    model = fresh(case, initial or plan)
    groups = param_groups(model, plan, base_lr=RATE, weight_decay=DECAY, eps=EPS, betas=BETAS)
    return train(case, model, groups, fold_factors(plan), steps=steps)


@cache
def train_unfolded(case_name: str) -> tuple[list[float], list[bool]]:
    """From the same initial function: s and f stand in the forward, and every number is the unfolded rule's."""
    case, plan = CASES[case_name], right_plan(case_name)
    model = fresh(case, plan)
    groups = []
    for name, parameter in model.named_parameters():
        role, inside = plan.scales[name].role, name.startswith("blocks.")
        factor = S if is_end(name) else 1.0
        if role == "readout":
            factor *= (ALPHA if name == case.readout else 1.0) / M
            module = model.get_submodule(name.removesuffix(".weight"))
            module.register_forward_pre_hook(lambda _, args, f=factor: (f * args[0],))
        elif is_end(name) and name.endswith(".weight"):
            model.get_submodule(name.removesuffix(".weight")).register_forward_hook(lambda _, args, out: S * out)
        with torch.no_grad():
            parameter.div_(factor)
        hidden = role == "hidden"
        groups.append(
            {
                "params": [parameter],
                "lr": RATE / M if hidden else RATE,
                "weight_decay": DECAY * M if hidden else DECAY,
                "eps": EPS * (S if inside else 1.0) / (1.0 if role == "finite" else M),
                "betas": BETAS,
            }
        )
    return train(case, model, groups, dict.fromkeys(plan.scales, 1.0), steps=STEPS)


def gap(case: str, plan: ScalePlan, *, initial: ScalePlan | None = None) -> float:
    """How far the losses part from the unfolded forward's."""
    losses, _ = train_folded(CASES[case], plan, initial=initial, steps=FEW)
    return max(abs(a - b) for a, b in zip(losses, train_unfolded(case)[0][:FEW], strict=True))


@pytest.mark.parametrize("case", CASES)
def test_losses_equal_those_of_the_unfolded_forward(case: str) -> None:
    theirs, their_clips = train_unfolded(case)
    losses, clips = train_folded(CASES[case], right_plan(case))
    assert clips == their_clips
    assert sum(clips) >= STEPS // 2
    assert abs(losses[-1] - losses[0]) > 1e-2
    assert losses == pytest.approx(theirs, rel=0, abs=1e-12)


def rescaled(which: Callable[[str], bool], **factors: float) -> Callable[[ScalePlan], ScalePlan]:
    """Numbers of some parameters multiplied."""

    def change(plan: ScalePlan) -> ScalePlan:
        return replace(
            plan,
            scales={
                name: replace(scale, **{key: getattr(scale, key) * factor for key, factor in factors.items()})
                if which(name)
                else scale
                for name, scale in plan.scales.items()
            },
        )

    return change


def is_inside(name: str) -> bool:
    return name.startswith("blocks.") and not is_end(name)


def is_gain(name: str) -> bool:
    return ".q_norm." in name


MUTANTS = {
    "eps 1/m of what is inside": rescaled(is_inside, eps=1 / S),
    "eps s/m of the folded end": rescaled(is_end, eps=S),
    "eps s/m of the shared condition": rescaled(lambda name: not name.startswith("blocks."), eps=S),
    "decay not divided": rescaled(is_end, weight_decay=S),
    "decay divided inside too": rescaled(is_inside, weight_decay=1 / S),
    "rate not folded": rescaled(is_end, lr=1 / S),
    "rate folded inside too": rescaled(is_inside, lr=S),
    "clipped by the folded gradient": rescaled(is_end, fold=1 / S),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_number_off_is_seen(case: str, mutant: str) -> None:
    plan = right_plan(case)
    assert gap(case, MUTANTS[mutant](plan), initial=plan) > 1e-6


def test_eps_of_a_finite_gain_without_the_depth_is_seen() -> None:
    plan = right_plan("residual")
    assert gap("residual", rescaled(is_gain, eps=1 / S)(plan), initial=plan) > 1e-6


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mutant", ["bias not folded", "gate folded too"])
def test_a_fold_in_the_wrong_place_is_seen(case: str, mutant: str) -> None:
    """The whole plan changes, the weights that it scales at initialization too."""
    given = CASES[case]
    if mutant == "gate folded too":
        plan = replace(given, branch_ends=(*given.branch_ends, given.gates)).plan()
    else:
        plan = right_plan(case)
        ends = {name for name in plan.scales if is_end(name) and name.endswith(".bias")}
        bias = scale_of("input", width_ratio=M, parametrization="completep", depth_ratio=1 / S, in_branch=True)
        plan = replace(plan, scales={**plan.scales, **dict.fromkeys(ends, bias)})
    assert gap(case, plan) > 1e-6


@pytest.mark.parametrize("case", CASES)
def test_at_the_base_depth_it_is_mup(case: str) -> None:
    """Scales and laws alike, so the weights that come of them are too."""
    completep = CASES[case].plan(base_depth=DEPTH)
    mup = CASES[case].plan(base_depth=DEPTH, parametrization="mup")
    assert completep.scales == mup.scales
    assert replace(completep, parametrization="mup", base_depth=1, depth=1) == mup


@pytest.mark.parametrize("case", CASES)
def test_at_both_bases_the_weights_stay_bit_identical(case: str) -> None:
    torch.manual_seed(0)
    model = CASES[case].build(BASE, BASE_DEPTH)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    parametrize(model, CASES[case].plan(width=BASE, depth=BASE_DEPTH, output_multiplier=1.0))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_only_ends_are_scaled_by_the_depth_alone() -> None:
    """At the base width: weight and bias of each end by s, and not a bit of anything else."""
    case = CASES["residual"]
    torch.manual_seed(0)
    model = case.build(BASE, DEPTH)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    parametrize(model, case.plan(width=BASE, output_multiplier=1.0))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name] * S if is_end(name) else before[name]), name


def slope(sizes: list[int], values: list[float]) -> float:
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return sum((a - mean(x)) * (b - mean(y)) for a, b in zip(x, y, strict=True)) / sum((a - mean(x)) ** 2 for a in x)


@cache
def gradient_over_eps() -> dict[str, float]:
    """Slope over log depth of RMS(gradient) / eps at initialization, of each kind of parameter; median over blocks."""
    depths = [2, 8, 32]
    case = CASES["residual"]
    found: dict[str, list[float]] = {}
    for depth in depths:
        plan = case.plan(width=BASE, depth=depth)
        by_kind: dict[str, list[float]] = {}
        for seed in range(3):
            torch.manual_seed(seed)
            model = case.build(BASE, depth)
            parametrize(model, plan)
            *given, target = case.inputs(torch.Generator().manual_seed(seed))
            (model(*given) - target).square().mean().backward()
            for name, parameter in model.named_parameters():
                kind = ".".join(part for part in name.split(".") if not part.isdigit())
                rms = parameter.grad.square().mean().sqrt().item()
                by_kind.setdefault(kind, []).append(rms / plan.scales[name].eps)
        for kind, values in by_kind.items():
            found.setdefault(kind, []).append(median(values))
    return {kind: slope(depths, values) for kind, values in found.items()}


@pytest.mark.parametrize(
    "kind",
    [
        *("norm.weight", "q.weight", "q_norm.weight", "kv.weight", "fc1.weight", "gate.weight", "scale_shift_table"),
        *("proj.weight", "proj.bias", "fc2.weight", "fc2.bias"),
    ],
)
def test_eps_keeps_its_distance_to_the_gradient_at_every_depth(kind: str) -> None:
    """Why all inside a branch has s, a gain in which nothing grows too. Without it the slope would be -1."""
    assert abs(gradient_over_eps()[f"blocks.{kind}"]) < 0.3


SIZES = {"width": 32, "depth": 3, "head_dim": 16, "patch": 4, "image_size": 8, "channels": 1}
NEEDED = {"labels": {"num_classes": 10}, "text": {"text_dim": 6}, "pooled": {"pooled_dim": 5}}
"""Arguments by the source that needs them."""


def build_family(family: str, width: int) -> nn.Module:
    entry = FAMILIES[family]
    wanted = {**SIZES, "width": width}
    for source in entry.inputs.values():
        wanted |= NEEDED.get(source, {})
    if "skip" in inspect.signature(entry.build).parameters:
        wanted["skip"] = "residual"
    return entry.build(**wanted)


def forward_family(family: str) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """A family's model in float64 with nothing zero in it, and its forward on one batch."""
    torch.manual_seed(1)
    model = build_family(family, SIZES["width"]).double()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    batch = {
        "image": torch.randn(2, 1, 8, 8, dtype=torch.float64),
        "timestep": torch.tensor([100.0, 700.0], dtype=torch.float64),
        "labels": torch.tensor([3, 7]),
        "text": torch.randn(2, 3, 6, dtype=torch.float64),
        "text_mask": torch.tensor([[True, True, False], [True, True, True]]),
        "pooled": torch.randn(2, 5, dtype=torch.float64),
    }
    given = {argument: batch[source] for argument, source in FAMILIES[family].inputs.items()}
    return model, lambda: model(**given)


def find_branches(family: str) -> tuple[set[str], set[str]]:
    """Names inside the family's branches, and of those the ends, by what a plan at the base width does to them."""
    entry = FAMILIES[family]
    plan = make_plan(
        lambda width: build_family(family, width),
        width=32,
        base_width=32,
        parametrization="completep",
        readout=entry.readout,
        declared=entry.declared,
        depth=3,
        base_depth=1,
        branches=entry.branches,
        branch_ends=entry.branch_ends,
    )
    inside = {name for name, scale in plan.scales.items() if scale.eps * scale.fold != 1}
    return inside, {name for name, scale in plan.scales.items() if scale.fold != 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_ends_close_all_of_its_branches_and_hold_the_factor_once(family: str) -> None:
    """At ends of zero nothing inside matters; near it the output grows in proportion, so no end has a second one."""
    model, forward = forward_family(family)
    inside, ends = find_branches(family)
    assert ends
    assert ends < inside
    parameters = dict(model.named_parameters())
    whole = {name: parameters[name].detach().clone() for name in ends}

    def at(factor: float) -> torch.Tensor:
        with torch.no_grad():
            for name in ends:
                parameters[name].copy_(factor * whole[name])
        return forward()

    small, double = (at(factor).detach() for factor in (1e-4, 2e-4))
    closed = at(0.0)
    grads = torch.autograd.grad(closed.square().sum(), [*parameters.values()], allow_unused=True)
    for name, grad in zip(parameters, grads, strict=True):
        if name in inside - ends:
            assert grad is None or not grad.any(), name
    torch.testing.assert_close(double - closed, 2 * (small - closed), rtol=1e-2, atol=1e-6)
    assert (small - closed).abs().max() > 1e-6


def test_stock_uvit_is_refused_and_says_what_to_do() -> None:
    for skip in ("linear", "residual"):
        model = Uvit(family="uvit", num_classes=10, skip=skip, base_width=32, **SIZES)
        family = family_of(model)
        arguments = {
            "width": 64,
            "base_width": 32,
            "parametrization": "completep",
            "readout": family.readout,
            "depth": 3,
            "base_depth": 1,
            "branches": family.branches,
            "branch_ends": family.branch_ends,
        }
        if skip == "linear":
            with pytest.raises(BadInput, match=r"no branch ends.*model.skip=residual offers x \+ W\[x; skip\]"):
                make_plan(family.build, **arguments)
        else:
            plan = make_plan(family.build, **arguments)
            assert plan.scales["out_blocks.0.skip_linear.weight"].fold == pytest.approx(1 / 3)


def tied(width: int) -> nn.Module:
    model = Residual(width, 2)
    model.blocks[0].proj.weight = model.blocks[0].q.weight
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branch_ends": ()}, "declares no branch ends, so it can't be scaled in depth"),
        ({"branch_ends": ("block.*.proj.*",)}, "branch_ends match no parameter of the model: block"),
        ({"branches": ("block.*",)}, "branches match no parameter of the model: block"),
        ({"branches": ()}, r"branch end blocks.0.fc2.bias is in none of the branches \(none\)"),
        ({"branch_ends": ("blocks.*.proj.*", "embed.*")}, "branch end embed.bias is in none of the branches blocks"),
        ({"branch_ends": ("blocks.*.proj.weight",)}, "blocks.0.proj.weight is a branch end and blocks.0.proj.bias is"),
        ({"branch_ends": ("blocks.*.proj.bias",)}, "blocks.0.proj.bias is a branch end and blocks.0.proj.weight is"),
        ({"branches": ("*",)}, "the readout out.weight is declared inside a residual branch"),
        ({"build": tied}, "one tensor matches branch_ends under one name and not under another: blocks.0.q"),
        ({"depth": 0}, "depth 0: expected at least 1"),
        ({"base_depth": 0}, "base depth 0: expected at least 1"),
        ({"parametrization": "mup"}, "2 times the base depth has no effect under mup"),
        ({"parametrization": "standard"}, "no effect under standard"),
        ({"parametrization": "stock"}, "no effect under stock"),
    ],
)
def test_what_cannot_be_scaled_in_depth_is_refused(changes: dict, message: str) -> None:
    arguments = {
        "build": lambda width: Residual(width, 2),
        "width": 32,
        "base_width": 16,
        "parametrization": "completep",
        "readout": "out.weight",
        "depth": 2,
        "base_depth": 1,
        "branches": ("blocks.*",),
        "branch_ends": ("blocks.*.proj.*", "blocks.*.fc2.*"),
    }
    with pytest.raises(BadInput, match=message) as caught:
        make_plan(**{**arguments, **changes})
    assert "\n" not in str(caught.value)


def test_patterns_that_another_model_of_the_family_needs_are_no_mistake() -> None:
    case = CASES["residual"]
    wider = replace(case, branch_ends=(*case.branch_ends, "blocks.*.cross_attn.*"))
    assert wider.plan() == case.plan()


def test_a_depth_that_scales_nothing_stands_in_no_plan() -> None:
    with_depth = CASES["residual"].plan(base_depth=DEPTH, parametrization="mup")
    without = CASES["residual"].plan(base_depth=1, depth=1, parametrization="mup")
    assert (with_depth.base_depth, with_depth.depth) == (1, 1)
    assert with_depth.to_dict().keys() == without.to_dict().keys()
    assert not {"base_depth", "depth"} & without.to_dict().keys()


def test_a_plan_keeps_its_depths_and_hashes_them() -> None:
    plan = right_plan("residual")
    assert (plan.base_depth, plan.depth) == (BASE_DEPTH, DEPTH)
    assert ScalePlan.from_dict(plan.to_dict()) == plan
    assert len({plan.hash, replace(plan, base_depth=1).hash, replace(plan, depth=5).hash}) == 3


def test_a_target_of_another_base_depth_is_refused() -> None:
    proxy, target = CASES["residual"].plan(width=BASE, depth=2), CASES["residual"].plan()
    validate_same_base(proxy, target)
    validate_same_base(proxy.to_dict(), target)
    with pytest.raises(BadInput, match="target has base_depth 3, its source 2; .* use 2"):
        validate_same_base(proxy.to_dict(), CASES["residual"].plan(base_depth=3))
    with pytest.raises(BadInput, match="target has parametrization completep, its source mup"):
        validate_same_base(CASES["residual"].plan(base_depth=DEPTH, parametrization="mup"), target)


IN_DEPTH = ("optimizer.parametrization=completep", "++model.base_depth=2", "model.depth=4", "model.num_classes=10")


def test_a_task_in_depth_has_a_plan_and_a_model(make_config: Callable) -> None:
    model, plan = build_model(make_config(*IN_DEPTH).task, replicate=0)
    assert (plan.base_depth, plan.depth) == (2, 4)
    assert {name for name, fold in fold_factors(plan).items() if fold == 0.5} >= {
        f"blocks.{i}.{end}.{part}" for i in range(4) for end in ("attn.proj", "mlp.fc2") for part in ("weight", "bias")
    }
    assert len(model.blocks) == 4
    plain = scale_plan(make_config("model.depth=4", "model.num_classes=10").task)
    assert (plain.parametrization, plain.depth) == ("mup", 1)


def test_a_deeper_target_has_the_base_depth_of_its_proxies(make_config: Callable) -> None:
    config = make_config(*IN_DEPTH, "target.depth=6", "search.base_lr=[2**-8,2**-7,2**-6]")
    trials = grid_trials(config, fingerprint="0")
    records = [
        Record(
            key=trial.key,
            setting=trial.setting,
            replicate=0,
            outcome=Outcome.FINISHED,
            metric=1 + abs(math.log2(trial.setting["base_lr"]) + 7),
            step=200,
            num_parameters=1000,
        )
        for trial in trials
    ]
    target = target_run(
        config,
        study_of("lr-width", config, fingerprint="0"),
        verdict=judge(records, axis="width", hp="base_lr"),
        best=best_setting(records, axis="width", hp="base_lr"),
        inside=True,
        unfinished=0,
        fingerprint="0",
        num_pictures=1493,
    )
    plan = scale_plan(parse_task(target.trial.task))
    assert (plan.base_depth, plan.depth, plan.base_width) == (2, 6, config.model.base_width)
    validate_same_base(scale_plan(with_setting(config.task, target.winner.setting)), plan)
