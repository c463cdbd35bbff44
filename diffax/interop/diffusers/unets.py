"""U-Nets of diffusers (`UNet2DModel` and `UNet2DConditionModel`), in and out.

A U-Net is a folder with a `config.json` and `diffusion_pytorch_model.safetensors`. Every array of
the one library is an array of the other under another name, with its axes in another order;
`_names` lists the pairs. Reading and writing needs `pip install 'diffax[interop]'`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from diffax.files import replacing, write_json
from diffax.models import UNet
from diffax.models.embeddings import noise_position, rows_at, sinusoidal
from diffax.models.text import FrozenFeatures
from diffax.process import AnySchedule

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
_CLASS, _OF_TEXT = "UNet2DModel", "UNet2DConditionModel"

# --- names and axes ---------------------------------------------------------------------------


class _Form(NamedTuple):
    """How an array of diffax is laid out there, and back."""

    out: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


_SAME = _Form(np.asarray, np.asarray)
_DENSE = _Form(np.transpose, np.transpose)
_CONV = _Form(lambda a: a.transpose(3, 2, 0, 1), lambda a: a.transpose(2, 3, 1, 0))
_CONV_OF_1 = _Form(lambda a: a.T[:, :, None, None], lambda a: a[:, :, 0, 0].T)
# What is a convolution of one place, or a linear layer.
_DENSE_OR_CONV = _Form(np.transpose, lambda a: a.reshape(a.shape[:2]).T)

_POOLED = ("text_pooled", "dense", "kernel")
_ROWS = ("noise_embedding", "steps")

Pair = tuple[tuple[str, ...], str, _Form]


def _layer(ours: str, theirs: str, form: _Form) -> Iterator[Pair]:
    path = tuple(ours.split("/"))
    yield (*path, "kernel"), f"{theirs}.weight", form
    yield (*path, "bias"), f"{theirs}.bias", _SAME


def _norm(ours: str, theirs: str) -> Iterator[Pair]:
    path = tuple(ours.split("/"))
    yield (*path, "scale"), f"{theirs}.weight", _SAME
    yield (*path, "bias"), f"{theirs}.bias", _SAME


def _block(ours: str, theirs: str, number: int, attention_names: Callable) -> Iterator[Pair]:
    """A residual block, and the attention behind it if there is one."""
    block, attention = f"{theirs}.resnets.{number}", f"{theirs}.attentions.{number}"
    for i in (0, 1):
        yield from _norm(f"{ours}/norm_{i}", f"{block}.norm{i + 1}")
        yield from _layer(f"{ours}/conv_{i}", f"{block}.conv{i + 1}", _CONV)
    yield from _layer(f"{ours}/embed", f"{block}.time_emb_proj", _DENSE)
    yield from _layer(f"{ours}/skip", f"{block}.conv_shortcut", _CONV_OF_1)
    yield from attention_names(f"{ours}_attention", attention)


def _plain(ours: str, theirs: str) -> Iterator[Pair]:
    yield from _norm(f"{ours}/norm", f"{theirs}.group_norm")
    yield from _layer(f"{ours}/project", f"{theirs}.to_out.0", _DENSE)
    for name in "qkv":  # diffax has the three in one array
        yield from _layer(f"{ours}/qkv/{name}", f"{theirs}.to_{name}", _DENSE)


def _transformer(ours: str, theirs: str) -> Iterator[Pair]:
    yield from _norm(f"{ours}/norm", f"{theirs}.norm")
    yield from _layer(f"{ours}/first", f"{theirs}.proj_in", _DENSE_OR_CONV)
    yield from _layer(f"{ours}/last", f"{theirs}.proj_out", _DENSE_OR_CONV)
    block = f"{theirs}.transformer_blocks.0"
    for i in (0, 1):
        for part, name in (("query", "q"), ("key", "k"), ("value", "v"), ("project", "out.0")):
            yield from _layer(f"{ours}/{part}_{i}", f"{block}.attn{i + 1}.to_{name}", _DENSE)
    for i in (0, 1, 2):
        yield from _norm(f"{ours}/norm_{i}", f"{block}.norm{i + 1}")
    yield from _layer(f"{ours}/mlp_0", f"{block}.ff.net.0.proj", _DENSE)
    yield from _layer(f"{ours}/mlp_1", f"{block}.ff.net.2", _DENSE)


def _names(model: UNet) -> Iterator[Pair]:
    """(path in diffax, name in diffusers, form) of every array that such a U-Net may have."""
    levels, num_blocks = len(model.channel_mults), model.num_blocks
    attention = {"plain": _plain, "transformer": _transformer}[model.attention]
    yield from _layer("first", "conv_in", _CONV)
    yield from _layer("noise_embedding/dense_0", "time_embedding.linear_1", _DENSE)
    yield from _layer("noise_embedding/dense_1", "time_embedding.linear_2", _DENSE)
    yield _ROWS, "time_proj.weight", _SAME
    if model.num_classes:
        yield ("noise_embedding", "classes", "embedding"), "class_embedding.weight", _SAME
    else:
        yield from _layer("text_pooled/dense", "class_embedding", _DENSE)
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        for i in range(num_blocks):
            yield from _block(f"down_{level}_block_{i}", down, i, attention)
        for i in range(num_blocks + 1):
            yield from _block(f"up_{level}_block_{i}", up, i, attention)
        yield from _layer(f"down_{level + 1}", f"{down}.downsamplers.0.conv", _CONV)
        yield from _layer(f"up_{level}", f"{up}.upsamplers.0.conv", _CONV)
    for i in (0, 1):
        yield from _block(f"middle_block_{i}", "mid_block", i, attention)
    yield from _norm("last_norm", "conv_norm_out")
    yield from _layer("last", "conv_out", _CONV)


def _parted(params: Mapping[str, Any]) -> dict[tuple[str, ...], np.ndarray]:
    """Path -> array, with what an attention's "qkv" holds under the paths qkv/q, qkv/k, qkv/v."""
    found = {}
    for path, leaf in flax.traverse_util.flatten_dict(jax.device_get(params)).items():
        if "qkv" not in path:
            found[path] = leaf
            continue
        for name, part in zip("qkv", np.split(leaf, 3, axis=-1)):
            found[(*path[:-1], name, path[-1])] = part
    return found


def _joined(parts: Mapping[tuple[str, ...], np.ndarray]) -> dict[str, Any]:
    """The parameters of `_parted`."""
    found, of_three = {}, {}
    for path, part in parts.items():
        if "qkv" in path:
            of_three.setdefault((*path[:-2], path[-1]), {})[path[-2]] = part
        else:
            found[path] = part
    for path, three in of_three.items():
        found[path] = np.concatenate([three[name] for name in "qkv"], axis=-1)
    return flax.traverse_util.unflatten_dict(found)


# --- out --------------------------------------------------------------------------------------


def save_unet(
    path: str | os.PathLike,
    model: UNet,
    params: Any,
    shape: tuple[int, int, int],
    schedule: AnySchedule | None = None,
    num_steps: int = 1000,
) -> Path:
    """Writes a U-Net as a diffusers `UNet2DModel` into the folder `path`, which it returns.

    One of captions, with attention="transformer" and features of a frozen text encoder, goes as a
    `UNet2DConditionModel`: its `encoder_hidden_states` are the features of the tokens, its
    `encoder_attention_mask` their mask, its `class_labels` the pooled features. It must be
    conditioned on the step number, as that class has no time embedding of T rows.

    diffusers calls a network with the index i = 0 .. T - 1. One that is conditioned on the log-SNR
    goes with a table of T rows, exactly the waves of `schedule`'s levels: it is right for this
    schedule and for whole indices alone. One that is conditioned on the step number needs none.
    With classes, diffusers' class K is the null class of K classes.

    Args:
      model, params: a `diffax.models.UNet` and its parameters (of a run: the averaged ones).
      shape: of one example, (height, width, channels).
      schedule: what the network is sampled under, if it is conditioned on the log-SNR.
      num_steps: T, of a continuous schedule.

    Raises:
      ValueError: the network has what those classes have not, as data that are no square images, or
        a number of groups for each width; or it is conditioned on the log-SNR and no schedule is
        given.
    """
    config = _config_of(model, shape)
    arrays = _parted(params)
    if _POOLED in arrays:
        config |= _pooled_out(model, arrays)
    if model.conditioning == "log_snr":
        arrays[_ROWS] = _rows_of(model, arrays, schedule, num_steps)
    if _ROWS in arrays:
        learned = {"time_embedding_type": "learned", "num_train_timesteps": len(arrays[_ROWS])}
        config |= learned
    tensors = {name: form.out(arrays[ours]) for ours, name, form in _names(model) if ours in arrays}
    if len(tensors) != len(arrays):
        raise ValueError(f"the parameters are not those of {model}")
    folder = Path(path)
    save_arrays(folder / WEIGHTS, tensors, "pt")
    write_json(folder / CONFIG, config)
    return folder


def _pooled_out(model: UNet, arrays: dict[tuple[str, ...], np.ndarray]) -> dict[str, Any]:
    """How the layer of the pooled features goes, which is left out where it is zero."""
    if not arrays[_POOLED].any():
        del arrays[_POOLED]
        return {}
    if model.num_classes:
        raise ValueError(
            f"the network takes pooled features of captions and {model.num_classes} classes; a"
            f" {_OF_TEXT} takes one of the two as class_labels"
        )
    arrays[*_POOLED[:-1], "bias"] = np.zeros(4 * model.channels, np.float32)
    width = len(arrays[_POOLED])
    return {
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": width,
    }


def _rows_of(
    model: UNet,
    arrays: Mapping[tuple[str, ...], np.ndarray],
    schedule: AnySchedule | None,
    num_steps: int,
) -> np.ndarray:
    """How a network that is conditioned on the log-SNR embeds each of a schedule's levels."""
    if schedule is None:
        raise ValueError("schedule is None: the network is conditioned on its log-SNR")
    discrete = schedule if schedule.num_steps else schedule.discretize(num_steps)
    positions = noise_position(jnp.asarray(discrete.log_snrs), "log_snr", model.step_log_snrs)
    if model.step_rows:
        return np.asarray(rows_at(jnp.asarray(arrays[_ROWS]), positions))
    return np.asarray(sinusoidal(positions, model.channels, model.max_period))


def save_arrays(file: Path, arrays: Mapping[str, np.ndarray], format: str) -> None:
    """Writes float32 arrays as a safetensors file; `format` says who reads it: "pt" or "flax".

    Its folder is made. Raises ValueError before that if safetensors is not installed.
    """
    save_file = _safetensors().save_file
    float32 = {name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        save_file(float32, partial, metadata={"format": format})


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError:
        raise ValueError("this needs safetensors: pip install 'diffax[interop]'") from None
    return safetensors.numpy


def _config_of(model: UNet, shape: tuple[int, ...]) -> dict[str, Any]:
    if len(shape) != 3 or shape[0] != shape[1]:
        raise ValueError(
            f"shape={shape}: a UNet2DModel takes square images, (size, size, channels)"
        )
    model.check_sizes((1, *shape))
    _check_conditions(model)
    if not model.num_groups:
        raise ValueError(
            "num_groups is 0, a number of groups for each width; a UNet2DModel has one for all:"
            " train with model.unet.num_groups set, 8 for instance"
        )
    size, channels = shape[0], shape[2]
    widths = [model.channels * mult for mult in model.channel_mults]
    attends = [size // 2**level in model.attention_resolutions for level in range(len(widths))]
    with_text = model.text is not None
    name, prefix = (_OF_TEXT, "CrossAttn") if with_text else (_CLASS, "Attn")
    of_class = _text_options if with_text else _plain_options
    return {
        "_class_name": name,
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels * (2 if model.learned_variance else 1),
        "block_out_channels": widths,
        "layers_per_block": model.num_blocks,
        "down_block_types": [f"{prefix * here}DownBlock2D" for here in attends],
        "up_block_types": [f"{prefix * here}UpBlock2D" for here in attends[::-1]],
        "norm_num_groups": model.num_groups,
        "norm_eps": model.norm_epsilon,
        "downsample_padding": _PADDING_OUT[model.padding],
        "resnet_time_scale_shift": _EMBEDDING_OUT[model.embedding],
        "dropout": model.dropout,
        "flip_sin_to_cos": False,
        "freq_shift": _freq_shift(model),
        "num_class_embeds": model.num_classes + 1 if model.num_classes else None,
        **of_class(model, widths, attends),
    }


def _check_conditions(model: UNet) -> None:
    """Raises ValueError for conditions that diffusers' U-Nets don't take, or not in this form."""
    if model.control_shape:
        raise ValueError(
            "the network takes a control, and diffusers' U-Nets take none: export it as safetensors"
            " or npz"
        )
    if model.text is None and model.attention == "transformer":
        raise ValueError(
            f"attention='transformer' without captions: a {_OF_TEXT} always attends to a text;"
            " train with model.unet.attention=plain"
        )
    if model.text is None:
        return
    if model.attention != "transformer":
        raise ValueError(
            f"the network takes captions and has attention={model.attention!r}, a form of which"
            f" diffusers has no block: train with model.unet.attention=transformer, which goes as a"
            f" {_OF_TEXT}, or export it as safetensors or npz"
        )
    if not isinstance(model.text, FrozenFeatures):
        raise ValueError(
            f"the network takes captions by an encoder that is trained along, for whose weights a"
            f" {_OF_TEXT} has no place: train with condition.text=minilm"
        )
    if model.conditioning != "step":
        raise ValueError(
            f"the network takes captions and is conditioned on the log-SNR, and a {_OF_TEXT} has no"
            " time embedding of one row for each step: train with model.unet.conditioning=step"
        )


def _plain_options(model: UNet, widths: list[int], attends: list[bool]) -> dict[str, Any]:
    width = _head_dim(model, [w for w, here in zip(widths, attends) if here])
    return {"attention_head_dim": width, "attn_norm_num_groups": model.num_groups}


def _text_options(model: UNet, widths: list[int], attends: list[bool]) -> dict[str, Any]:
    """There "attention_head_dim" is the number of heads of each level."""
    return {
        "attention_head_dim": [max(1, width // model.head_width) for width in widths],
        "cross_attention_dim": model.text.width,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "use_linear_projection": True,
    }


def _head_dim(model: UNet, attentive: list[int]) -> int | None:
    """The width of all heads; None for one head everywhere."""
    widths = [*attentive, model.channels * model.channel_mults[-1]]
    if max(widths) <= model.head_width:
        return None
    if min(widths) < model.head_width:
        raise ValueError(
            f"head_width={model.head_width} exceeds a width with attention, {min(widths)}, which"
            " then has one narrower head; the heads of a UNet2DModel have one width"
        )
    return model.head_width


_PADDING_OUT = {"end": 0, "both": 1}
_EMBEDDING_OUT = {"add": "default", "scale_shift": "scale_shift"}


def _freq_shift(model: UNet) -> float:
    """diffusers' frequencies are 10000^(-i / (half - shift)), ours max_period^(-i / half)."""
    half = model.channels // 2
    return half - half * np.log(10_000.0) / np.log(model.max_period)


# --- in ---------------------------------------------------------------------------------------

_DEFAULTS = {
    "in_channels": 3, "out_channels": 3, "layers_per_block": 2, "attention_head_dim": 8,
    "norm_num_groups": 32, "norm_eps": 1e-5, "downsample_padding": 1, "dropout": 0.0,
    "resnet_time_scale_shift": "default", "flip_sin_to_cos": True, "freq_shift": 0,
    "time_embedding_type": "positional",
}  # fmt: skip
_DEFAULTS_OF_TEXT = _DEFAULTS | {
    "in_channels": 4, "out_channels": 4, "cross_attention_dim": 1280,
}  # fmt: skip
# What diffax's U-Net has no other value of.
_ONLY = {
    "act_fn": ("silu",), "downsample_type": ("conv", None), "upsample_type": ("conv", None),
    "mid_block_scale_factor": (1,), "center_input_sample": (False,), "add_attention": (True,),
    "class_embed_type": (None,), "time_embedding_type": ("positional", "learned"),
    "mid_block_type": ("UNetMidBlock2D",), "time_embedding_dim": (None,),
}  # fmt: skip
_ONLY_OF_TEXT = {
    "act_fn": ("silu",), "mid_block_scale_factor": (1,), "center_input_sample": (False,),
    "class_embed_type": (None, "simple_projection"), "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",), "time_embedding_dim": (None,),
    "only_cross_attention": (False,), "mid_block_only_cross_attention": (None, False),
    "transformer_layers_per_block": (1,), "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,), "num_attention_heads": (None,),
    "dual_cross_attention": (False,), "addition_embed_type": (None,),
    "resnet_skip_time_act": (False,), "resnet_out_scale_factor": (1,),
    "time_embedding_act_fn": (None,), "timestep_post_act": (None,), "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,), "conv_out_kernel": (3,), "attention_type": ("default",),
    "class_embeddings_concat": (False,), "cross_attention_norm": (None,),
}  # fmt: skip
# Names of an attention's layers before diffusers 0.16.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_unet(path: str | os.PathLike) -> tuple[UNet, dict[str, Any]]:
    """The U-Net of a diffusers `UNet2DModel` or `UNet2DConditionModel`, and its parameters.

    It is conditioned on the step number, as diffusers' networks are. A learned time embedding is
    read as `step_rows`. One of a text takes {"features": encoder_hidden_states, "mask": ...,
    "pooled": class_labels} as its `text`; the pooled features make no difference where the class
    takes none.

    Args:
      path: a folder with config.json and diffusion_pytorch_model.safetensors, or the folder of a
        pipeline.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: an option that diffax's U-Net has not, or arrays that are not those of the config;
        the message names them.
    """
    folder, config = _config_in(path)
    model = _model_of(config, folder)
    tensors = {
        _renamed(name): value for name, value in _safetensors().load_file(folder / WEIGHTS).items()
    }
    found = {}
    for ours, name, form in _names(model):
        if name in tensors:
            found[ours] = form.back(tensors.pop(name)).astype(np.float32)
    if tensors:
        raise ValueError(f"{folder / WEIGHTS}: {sorted(tensors)[0]} is no array that is known")
    half = model.channels // 2
    # The cosines first: the rows of what reads them change places.
    if config["flip_sin_to_cos"] and not model.step_rows:
        rows = ("noise_embedding", "dense_0", "kernel")
        found[rows] = np.roll(found[rows], half, axis=0)
    if model.text is not None:
        _pooled_in(model, found)
    params = _joined(found)
    x = jnp.zeros((1, *_shape_of(config)))
    wanted = jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros(1))["params"]
    _check_shapes(params, wanted, folder / WEIGHTS)
    return model, params


def _pooled_in(model: UNet, found: dict[tuple[str, ...], np.ndarray]) -> None:
    """The layer of the pooled features, zero if there is none; its bias is one of the noise's."""
    found.setdefault(_POOLED, np.zeros((model.text.width, 4 * model.channels), np.float32))
    bias = found.pop((*_POOLED[:-1], "bias"), 0)
    noise = ("noise_embedding", "dense_1", "bias")
    found[noise] = found[noise] + bias


def _config_in(path: str | os.PathLike) -> tuple[Path, dict[str, Any]]:
    folder = Path(path)
    folder = folder if (folder / CONFIG).is_file() else folder / "unet"
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{path} holds no {file} of a {_CLASS}")
    given = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    defaults = _DEFAULTS_OF_TEXT if given.get("_class_name") == _OF_TEXT else _DEFAULTS
    return folder, {**defaults, **given}


def _shape_of(config: dict[str, Any]) -> tuple[int, int, int]:
    return config["sample_size"], config["sample_size"], config["in_channels"]


def sample_shape(path: str | os.PathLike) -> tuple[int, int, int]:
    """(height, width, channels) of an example, of the U-Net that `load_unet` reads."""
    return _shape_of(_config_in(path)[1])


def _renamed(name: str) -> str:
    parts = name.split(".")
    return ".".join(_OLD.get(part, part) for part in parts) if "attentions" in parts else name


def _check_shapes(params: Any, wanted: Any, file: Path) -> None:
    given, needed = (
        {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(tree).items()}
        for tree in (params, wanted)
    )
    for path in sorted({*given, *needed}):
        if given.get(path) != needed.get(path):
            raise ValueError(
                f"{file}: {'/'.join(path)} has shape {given.get(path)}, and its config asks for"
                f" {needed.get(path)}"
            )


def _is_learned(config: dict[str, Any]) -> bool:
    return config["time_embedding_type"] == "learned"


def _model_of(config: dict[str, Any], folder: Path) -> UNet:
    file, name = folder / CONFIG, config.get("_class_name")
    if name not in (_CLASS, _OF_TEXT):
        raise ValueError(f"{file}: _class_name is {name!r}, not {_CLASS} or {_OF_TEXT}")
    with_text = name == _OF_TEXT
    for key, allowed in (_ONLY_OF_TEXT if with_text else _ONLY).items():
        if config.get(key, allowed[0]) not in allowed:
            known = " or ".join(map(repr, allowed))
            raise ValueError(f"{file}: {key}={config[key]!r} is not known; only {known} is")
    for way in ("down", "up"):
        prefix = "CrossAttn" if with_text else "Attn"
        kinds = {f"{part}{way.capitalize()}Block2D" for part in ("", prefix)}
        for kind in config[f"{way}_block_types"]:
            if kind not in kinds:
                raise ValueError(
                    f"{file}: {way}_block_types names {kind}; known are {', '.join(sorted(kinds))}"
                )
    attends = [kind.startswith(prefix) for kind in config["down_block_types"]]
    if attends != [kind.startswith(prefix) for kind in config["up_block_types"]][::-1]:
        raise ValueError(f"{file}: up_block_types is not the mirror image of down_block_types")
    widths = config["block_out_channels"]
    if any(width % widths[0] for width in widths):
        raise ValueError(f"{file}: block_out_channels={widths} are no multiples of the first")
    groups = config["norm_num_groups"]
    of_attention = config.get("attn_norm_num_groups")
    scaled = config["resnet_time_scale_shift"] == "scale_shift"
    if of_attention not in ((groups,) if scaled else (None, groups)):
        raise ValueError(
            f"{file}: attn_norm_num_groups={of_attention}; only norm_num_groups={groups} is known"
        )
    half, size = widths[0] // 2, config["sample_size"]
    classes = config.get("num_class_embeds")
    return UNet(
        channels=widths[0],
        channel_mults=tuple(width // widths[0] for width in widths),
        num_blocks=config["layers_per_block"],
        attention_resolutions=tuple(size // 2**level for level, here in enumerate(attends) if here),
        head_width=_width_of_heads(config, widths, attends, file)
        if with_text
        else config["attention_head_dim"] or max(widths),
        dropout=config["dropout"],
        num_classes=classes - 1 if classes else 0,
        attention="transformer" if with_text else "plain",
        text=FrozenFeatures(_TOKENS, _text_width(config, file), jnp.float32) if with_text else None,
        conditioning="step",
        step_rows=config["num_train_timesteps"] if _is_learned(config) else 0,
        embedding={theirs: ours for ours, theirs in _EMBEDDING_OUT.items()}[
            config["resnet_time_scale_shift"]
        ],
        learned_variance=config["out_channels"] == 2 * config["in_channels"],
        num_groups=groups,
        norm_epsilon=config["norm_eps"],
        max_period=float(10_000.0 ** (half / (half - config["freq_shift"]))),
        padding={theirs: ours for ours, theirs in _PADDING_OUT.items()}[
            config["downsample_padding"]
        ],
    )


# Of a caption, of the null text; a network takes any number.
_TOKENS = 77


def _width_of_heads(
    config: dict[str, Any], widths: list[int], attends: list[bool], file: Path
) -> int:
    """The width of all heads; "attention_head_dim" is their number, of all levels or of each."""
    numbers = config["attention_head_dim"]
    numbers = [numbers] * len(widths) if isinstance(numbers, int) else list(numbers)
    here = [*attends[:-1], True]  # the middle is of the last level
    found = {width / num for width, num, there in zip(widths, numbers, here) if there}
    if len(found) > 1 or found != {int(*found)}:
        raise ValueError(
            f"{file}: attention_head_dim={config['attention_head_dim']} makes heads of different"
            f" widths at its levels, {sorted(found)}; diffax has one width for all"
        )
    return int(*found)


def _text_width(config: dict[str, Any], file: Path) -> int:
    width = config["cross_attention_dim"]
    if not isinstance(width, int):
        raise ValueError(f"{file}: cross_attention_dim={width}; only one number is known")
    pooled = config.get("projection_class_embeddings_input_dim")
    if config.get("class_embed_type") and pooled != width:
        raise ValueError(
            f"{file}: projection_class_embeddings_input_dim={pooled}; only that of"
            f" cross_attention_dim={width} is known"
        )
    return width
