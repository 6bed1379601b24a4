"""Carries weights of our families to diffusers' classes: names change, numbers never do.

Each family has one section below: a function from its configuration to a Counterpart, which maps the model and each of
its tensors to diffusers' names. Refuses what diffusers' classes lack, and states of another configuration.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from muxfer.config.models import Declared, Dit, Mmdit, Model, Pixart
from muxfer.errors import BadInput
from muxfer.models.families import family_of

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Carried:
    """One tensor of ours, cut along its first dimension into one equal piece for each entry of `theirs`. An entry holds
    diffusers' names of its piece: more than one where diffusers keeps copies. `swapped`: diffusers has the two halves
    of the tensor in the other order (shift and scale of a modulation).
    """

    ours: str
    theirs: tuple[tuple[str, ...], ...]
    swapped: bool = False


@dataclass(frozen=True, kw_only=True)
class Counterpart:
    """Diffusers' class for a model, its arguments, the tensors' places. `left_out`: prefixes only training needs."""

    class_name: str
    config: Mapping[str, Any]
    tensors: Sequence[Carried]
    left_out: tuple[str, ...] = ()


def to_diffusers(model: Model, state: State) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """Class name, arguments and state of the model in diffusers. Pieces are views of the given tensors."""
    if isinstance(model, Declared):
        return _declared_class(model), _declared_config(model), dict(state)
    counterpart = counterpart_of(model)
    given = {name: tensor for name, tensor in state.items() if not name.startswith(counterpart.left_out)}
    _validate_names(given, {carried.ours for carried in counterpart.tensors}, "the configuration")
    theirs: dict[str, torch.Tensor] = {}
    for carried in counterpart.tensors:
        tensor = given[carried.ours]
        pieces = [swap(tensor)] if carried.swapped else tensor.chunk(len(carried.theirs))
        for names, piece in zip(carried.theirs, pieces, strict=True):
            theirs |= dict.fromkeys(names, piece)
    return counterpart.class_name, dict(counterpart.config), theirs


def counterpart_of(model: Model) -> Counterpart:
    """Diffusers' class for this model, and its tensors there. Raises BadInput where there is none."""
    if model.family not in COUNTERPARTS:
        raise _no_such_model()
    if model.mlp_ratio != 4:
        raise BadInput(
            f"model.mlp_ratio {model.mlp_ratio:g}: diffusers' classes have 4; retrain with model.mlp_ratio=4"
        )
    return COUNTERPARTS[model.family](model)


def save(folder: Path, class_name: str, config: Mapping[str, Any], state: State) -> int:
    """Write what `diffusers.CLASS.from_pretrained` reads; number of parameters. Only computed tables may be missing."""
    import diffusers

    model = getattr(diffusers, class_name)(**config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    parameters = dict(model.named_parameters())
    assert not unexpected, unexpected
    assert not set(missing) & set(parameters), missing
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in parameters.values())


def _no_such_model() -> BadInput:
    return BadInput("diffusers has no such model: export knows dit (adaln_zero), pixart, mmdit")


def _validate_names(state: State, known: set[str], what: str) -> None:
    for name in sorted(set(state) ^ known):
        difference = (
            f"the weights have {name}, {what} has not" if name in state else f"{what} has {name}, the weights have not"
        )
        raise BadInput(f"{difference}: these are weights of another model")


def swap(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def _layer(ours: str, *theirs: str | tuple[str, ...]) -> list[Carried]:
    """Weight and bias of a linear of ours. `theirs`: diffusers' linears that share its rows, or tuples of copies."""
    names = [(name,) if isinstance(name, str) else name for name in theirs]
    return [
        Carried(ours=f"{ours}.{kind}", theirs=tuple(tuple(f"{name}.{kind}" for name in same) for same in names))
        for kind in ("weight", "bias")
    ]


def _tensor(ours: str, *theirs: str) -> list[Carried]:
    """One tensor, under one name or several copies of it."""
    return [Carried(ours=ours, theirs=(theirs,))]


def _transformer(model: Model) -> dict[str, Any]:
    """The arguments that diffusers' image transformers share."""
    return {
        "num_attention_heads": model.width // model.head_dim,
        "attention_head_dim": model.head_dim,
        "in_channels": model.channels,
        "out_channels": 2 * model.channels if model.learn_sigma else model.channels,
        "num_layers": model.depth,
        "sample_size": model.image_size,
        "patch_size": model.patch,
    }


# DiT: DiTTransformer2DModel. Every block of it has its own copy of the time and label embedders.


def _dit(model: Dit) -> Counterpart:
    if model.block != "adaln_zero":
        raise _no_such_model()
    if model.frequency_shift != 1:
        raise BadInput(
            f"model.frequency_shift {model.frequency_shift:g}: diffusers' DiT embeds timesteps with frequency shift 1;"
            " retrain with model.frequency_shift=1"
        )
    if model.num_classes is None:
        raise BadInput("model.num_classes is not given: diffusers' DiT needs it")
    blocks = [f"transformer_blocks.{i}" for i in range(model.depth)]
    embedders = [f"{block}.norm1.emb" for block in blocks]
    tensors = [
        *_layer("x_embedder.proj", "pos_embed.proj"),
        *_layer("t_embedder.mlp.0", tuple(f"{own}.timestep_embedder.linear_1" for own in embedders)),
        *_layer("t_embedder.mlp.2", tuple(f"{own}.timestep_embedder.linear_2" for own in embedders)),
        *_tensor(
            "y_embedder.embedding_table.weight", *(f"{own}.class_embedder.embedding_table.weight" for own in embedders)
        ),
        *_layer("final_layer.adaLN_modulation.1", "proj_out_1"),
        *_layer("final_layer.linear", "proj_out_2"),
    ]
    for i, block in enumerate(blocks):
        tensors += _layer(f"blocks.{i}.adaLN_modulation.1", f"{block}.norm1.linear")
        tensors += _self_attention_and_mlp(f"blocks.{i}", block)
    config = {"num_embeds_ada_norm": model.num_classes, "norm_eps": 1e-6}
    return Counterpart(class_name="DiTTransformer2DModel", config=_transformer(model) | config, tensors=tensors)


def _self_attention_and_mlp(ours: str, theirs: str) -> list[Carried]:
    """The part of a block that DiT and PixArt share."""
    return [
        *_layer(f"{ours}.attn.qkv", *(f"{theirs}.attn1.to_{letter}" for letter in "qkv")),
        *_layer(f"{ours}.attn.proj", f"{theirs}.attn1.to_out.0"),
        *_layer(f"{ours}.mlp.fc1", f"{theirs}.ff.net.0.proj"),
        *_layer(f"{ours}.mlp.fc2", f"{theirs}.ff.net.2"),
    ]


# PixArt-α: PixArtTransformer2DModel without size and aspect conditions.


def _pixart(model: Pixart) -> Counterpart:
    tensors = [
        *_layer("x_embedder.proj", "pos_embed.proj"),
        *_layer("t_embedder.mlp.0", "adaln_single.emb.timestep_embedder.linear_1"),
        *_layer("t_embedder.mlp.2", "adaln_single.emb.timestep_embedder.linear_2"),
        *_layer("t_block.1", "adaln_single.linear"),
        *_layer("y_embedder.y_proj.fc1", "caption_projection.linear_1"),
        *_layer("y_embedder.y_proj.fc2", "caption_projection.linear_2"),
        *_layer("final_layer.linear", "proj_out"),
        *_tensor("final_layer.scale_shift_table", "scale_shift_table"),
    ]
    for i in range(model.depth):
        ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
        tensors += _self_attention_and_mlp(ours, theirs)
        tensors += _layer(f"{ours}.cross_attn.q_linear", f"{theirs}.attn2.to_q")
        tensors += _layer(f"{ours}.cross_attn.kv_linear", f"{theirs}.attn2.to_k", f"{theirs}.attn2.to_v")
        tensors += _layer(f"{ours}.cross_attn.proj", f"{theirs}.attn2.to_out.0")
        tensors += _tensor(f"{ours}.scale_shift_table", f"{theirs}.scale_shift_table")
    config = {
        "caption_channels": model.text_dim,
        "cross_attention_dim": model.width,
        "interpolation_scale": 1,  # its default is image_size // 64, which gives other positions
        "use_additional_conditions": False,
    }
    return Counterpart(class_name="PixArtTransformer2DModel", config=_transformer(model) | config, tensors=tensors)


# MMDiT: SD3Transformer2DModel. REPA's projector is not carried. In diffusers a modulation without a gate has its scale
# before its shift.


def _mmdit(model: Mmdit) -> Counterpart:
    tensors = [
        *_layer("x_embedder.proj", "pos_embed.proj"),
        *_layer("context_embedder", "context_embedder"),
        *_layer("final_layer.linear", "proj_out"),
        *_scale_first("final_layer.adaLN_modulation.1", "norm_out.linear"),
    ]
    for ours, theirs in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")):
        tensors += _layer(f"{ours}.mlp.0", f"time_text_embed.{theirs}.linear_1")
        tensors += _layer(f"{ours}.mlp.2", f"time_text_embed.{theirs}.linear_2")
    for i in range(model.depth):
        last, theirs = i == model.depth - 1, f"transformer_blocks.{i}"
        tensors += _stream(model, f"joint_blocks.{i}.x_block", theirs, added=False, pre_only=False)
        tensors += _stream(model, f"joint_blocks.{i}.context_block", theirs, added=True, pre_only=last)
    config = {
        "joint_attention_dim": model.text_dim,
        "caption_projection_dim": model.width,
        "pooled_projection_dim": model.pooled_dim,
        "pos_embed_max_size": model.image_size // model.patch,  # a larger table would be cropped to other positions
        "qk_norm": "rms_norm" if model.qk_norm else None,
    }
    return Counterpart(
        class_name="SD3Transformer2DModel",
        config=_transformer(model) | config,
        tensors=tensors,
        left_out=("projector.",),
    )


def _stream(model: Mmdit, ours: str, theirs: str, *, added: bool, pre_only: bool) -> list[Carried]:
    """One stream's half of a block. Diffusers calls the text's weights `added`."""
    letters = [f"{theirs}.attn.{'add' if added else 'to'}_{letter}{'_proj' if added else ''}" for letter in "qkv"]
    tensors = _layer(f"{ours}.attn.qkv", *letters)
    if model.qk_norm:
        for letter in "qk":
            name = f"norm_added_{letter}" if added else f"norm_{letter}"
            tensors += _tensor(f"{ours}.attn.ln_{letter}.weight", f"{theirs}.attn.{name}.weight")
    norm, mlp = (f"{theirs}.norm1_context", f"{theirs}.ff_context") if added else (f"{theirs}.norm1", f"{theirs}.ff")
    if pre_only:
        return [*tensors, *_scale_first(f"{ours}.adaLN_modulation.1", f"{norm}.linear")]
    return [
        *tensors,
        *_layer(f"{ours}.adaLN_modulation.1", f"{norm}.linear"),
        *_layer(f"{ours}.attn.proj", f"{theirs}.attn.{'to_add_out' if added else 'to_out.0'}"),
        *_layer(f"{ours}.mlp.fc1", f"{mlp}.net.0.proj"),
        *_layer(f"{ours}.mlp.fc2", f"{mlp}.net.2"),
    ]


def _scale_first(ours: str, theirs: str) -> list[Carried]:
    return [replace(carried, swapped=True) for carried in _layer(ours, theirs)]


# A declared class of diffusers: its names are diffusers' already.


def _declared_class(model: Declared) -> str:
    library, _, class_name = model.target.partition(":")
    if library != "diffusers":
        raise _no_such_model()
    return class_name


def _declared_config(model: Declared) -> dict[str, Any]:
    """Every argument of the class, defaults included, as the class records them."""
    with torch.device("meta"):
        built = family_of(model).build(model.width)
    config: Any = getattr(built, "config", None)
    if config is None or not hasattr(built, "save_pretrained"):
        raise BadInput(f"{model.target} is a part of a model, without a configuration of its own: it can't be exported")
    return {name: value for name, value in config.items() if not name.startswith("_")}


COUNTERPARTS: Mapping[str, Callable[[Any], Counterpart]] = {"dit": _dit, "pixart": _pixart, "mmdit": _mmdit}
"""By the family of a configuration."""
