"""Fine-tuning: start where transfer learning ends, and let some or all of the kept layers move.

How many layers (``unfreeze_last``, ``gradual_unfreezing``), how fast (``parameter_groups``), in
what order (``probe_then_tune``), or with how few parameters (``bitfit``, ``lora``). What was
learned before can be held on to (``l2_sp``), and ``trained_parameters`` says what has changed.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mlguide.training import History, ParameterGroup, Penalty, check_labelled, fit
from mlguide.transfer import (
    extract_features,
    find_layers,
    freeze,
    linear_probe,
    replace_head,
    stay_in_eval_mode,
)

__all__ = [
    "LoRA",
    "bitfit",
    "block_names",
    "fisher",
    "gradual_unfreezing",
    "l2_sp",
    "load_checkpoint",
    "lora",
    "merge",
    "parameter_groups",
    "probe_head",
    "probe_then_tune",
    "save_checkpoint",
    "trained_parameters",
    "unfreeze",
    "unfreeze_last",
    "unload",
    "unmerge",
]

Network = TypeVar("Network", bound=nn.Module)


# How many layers, how fast, and in what order


def unfreeze(model: Network, *layers: str) -> Network:
    """Undo ``transfer.freeze`` for layers of ``model`` (all of it if none is named), in place.

    Raises:
        ValueError: if a name is not a layer of the model.
    """
    for layer in find_layers(model, layers):
        layer.requires_grad_(True)
        for part in layer.modules():
            hooks = part._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
            for key in [key for key, hook in hooks.items() if hook is stay_in_eval_mode]:
                del hooks[key]
    return model


def unfreeze_last(model: Network, blocks: int) -> Network:
    """Freeze ``model`` but for its head and the last ``blocks`` blocks of its backbone, in place.

    With 0 the head alone is trained (transfer learning), with all of them everything.

    Raises:
        ValueError: if the backbone has fewer blocks.
    """
    names = block_names(model)
    if not 0 <= blocks <= len(names):
        raise ValueError(f"blocks must be 0 to {len(names)}, one for each of {names}; got {blocks}")
    freeze(model)
    return unfreeze(model, "head", *names[len(names) - blocks :])


def gradual_unfreezing(model: nn.Module, every: int) -> Callable[[int], None]:
    """A schedule for ``fit(..., before_step=)``: a block more, from the top, each ``every`` steps.

    Training starts with the head alone (Howard and Ruder 2018, arXiv:1801.06146).

    Raises:
        ValueError: if ``every`` is less than 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    unfreeze_last(model, 0)

    def before_step(step: int) -> None:
        blocks, rest = divmod(step, every)
        if rest == 0 and blocks <= len(block_names(model)):
            unfreeze_last(model, blocks).train()

    return before_step


def parameter_groups(
    model: nn.Module, learning_rate: float, *, decay: float
) -> list[ParameterGroup]:
    """Layer-wise learning rates: the head has ``learning_rate``, each block below ``decay`` times
    that of the one above it (Howard and Ruder 2018 took 1 / 2.6), for ``fit`` or ``torch.optim``.

    Raises:
        ValueError: if ``learning_rate`` is not above 0, or ``decay`` not in (0, 1].
    """
    if not learning_rate > 0 or not 0 < decay <= 1:
        raise ValueError(
            f"learning_rate must be above 0 and decay in (0, 1]; got {learning_rate} and {decay}"
        )
    layers = ["head", *reversed(block_names(model))]
    return [
        {
            "params": [(n, p) for n, p in model.named_parameters() if n.startswith(layer + ".")],
            "lr": learning_rate * decay**height,
        }
        for height, layer in enumerate(layers)
    ]


def block_names(model: nn.Module) -> list[str]:
    """The blocks of the backbone that have parameters, first to last: ``"backbone.block1"``, …."""
    parts = cast(nn.Module, model.backbone).named_children()
    return [f"backbone.{name}" for name, part in parts if any(True for _ in part.parameters())]


def probe_head(model: Network, inputs: Tensor, labels: Tensor, *, penalty: float = 1.0) -> Network:
    """Put on the head that fits the features of the backbone as it is, in place.

    Raises:
        ValueError: as ``transfer.linear_probe``.
    """
    head = cast(nn.Linear, model.head)
    features = extract_features(cast(nn.Module, model.backbone), inputs)
    return replace_head(model, linear_probe(features, labels, head.out_features, penalty=penalty))


def probe_then_tune(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, penalty: float = 1.0, **settings: Any
) -> History:
    """First the best head for the frozen features, then every weight (LP-FT, Kumar et al. 2022,
    arXiv:2202.10054). ``penalty`` is the probe's, ``settings`` are those of ``training.fit``.

    Raises:
        ValueError: as ``transfer.linear_probe`` and ``training.fit``.
    """
    probe_head(model, inputs, labels, penalty=penalty)
    return fit(unfreeze(model), inputs, labels, **settings)


# With few parameters


def bitfit(model: Network) -> Network:
    """Freeze ``model`` but for its head and its biases, in place (Ben-Zaken et al. 2022,
    arXiv:2106.10199). A BatchNorm's bias is one of them; its statistics stay frozen.
    """
    unfreeze(freeze(model), "head")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.requires_grad_(True)
    return model


class LoRA(nn.Module):
    """A frozen layer, and beside it two small ones whose product is learned (Hu et al. 2022,
    arXiv:2106.09685): ``layer(x) + alpha / rank * up(down(x))``.

    ``down`` has the layer's shape but ``rank`` outputs, drawn at random; ``up`` maps them to the
    layer's outputs and starts at zero, so that a new LoRA changes nothing.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = copy.deepcopy(layer)  # with its stride, its padding, …
        self.down.weight = nn.Parameter(layer.weight.new_empty(rank, *layer.weight.shape[1:]))
        self.down.register_parameter("bias", None)
        if isinstance(layer, nn.Conv2d):
            self.up = nn.Conv2d(rank, layer.out_channels, kernel_size=1, bias=False)
        else:
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        self.up.to(layer.weight)
        self.layer = freeze(layer)
        self.kept: Tensor | None = None  # the layer's own weight, while the product is merged

    def forward(self, x: Tensor) -> Tensor:
        """What the layer answers, with what was learned; merged, one layer does it all."""
        if self.kept is not None:
            return self.layer(x)
        return self.layer(x) + self.scale * self.up(self.down(x))

    def product(self) -> Tensor:
        """What is added to the layer's weight, in its shape."""
        product = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        return self.scale * product.view_as(self.layer.weight)


def lora(
    model: Network,
    rank: int,
    *,
    alpha: float | None = None,
    seed: int,
    layers: tuple[str, ...] = (),
) -> Network:
    """Freeze the backbone and put a ``LoRA`` on its linear and convolution layers, in place.

    The head stays trainable. alpha: strength of what is learned, ``rank`` if not given (then the
    scale is 1). seed: draws the first weights. layers: names of some of the layers, all if empty.

    Raises:
        ValueError: if ``rank`` is below 1 or above what a layer's weight can have, or a name is not
            a linear or ungrouped convolution layer of the backbone.
    """
    fit_for_it = {
        name: part
        for name, part in model.named_modules()
        if name.startswith("backbone.")
        and (isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.groups == 1))
    }
    for name in layers or fit_for_it:
        if name not in fit_for_it:
            raise ValueError(f"layers: {name!r} is none of {', '.join(fit_for_it)}")
        full = min(fit_for_it[name].weight.flatten(1).shape)
        if not 1 <= rank <= full:
            raise ValueError(f"rank must be 1 to {full}, the full rank of {name}; got {rank}")
    unfreeze(freeze(model), "head")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in layers or fit_for_it:
            adapter = LoRA(fit_for_it[name], rank, rank if alpha is None else alpha)
            _replace(model, name, adapter)
    return model


def merge(model: Network) -> Network:
    """Add each LoRA's product to its layer, in place: no extra work is left."""
    for adapter in _adapters(model).values():
        if adapter.kept is None:
            adapter.kept = adapter.layer.weight.detach().clone()
            adapter.layer.weight.data += adapter.product().detach()
    return model


def unmerge(model: Network) -> Network:
    """Undo ``merge``, in place: the layers' weights are bit for bit what they were."""
    for adapter in _adapters(model).values():
        if adapter.kept is not None:
            adapter.layer.weight.data, adapter.kept = adapter.kept, None
    return model


def unload(model: Network) -> Network:
    """Take the LoRAs off, in place: after ``merge`` what was learned stays in the weights, without
    it the backbone is the one that ``lora`` was given."""
    for name, adapter in _adapters(model).items():
        _replace(model, name, adapter.layer)
    return model


def _adapters(model: nn.Module) -> dict[str, LoRA]:
    return {name: part for name, part in model.named_modules() if isinstance(part, LoRA)}


def _replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, part)


# Holding on to what was learned


def l2_sp(
    start: Mapping[str, Tensor],
    strength: float,
    *,
    importance: Mapping[str, Tensor] | None = None,
) -> Penalty:
    """A penalty for ``fit``: ``strength / 2`` times the squared distance from ``start`` (L2-SP, Li
    et al. 2018, arXiv:1802.01483).

    start: parameters by name, such as the backbone's; those of several models may be stacked.
    importance: a factor for each parameter; with ``fisher`` it is EWC (Kirkpatrick et al. 2017,
    arXiv:1612.00796).

    Raises:
        ValueError: if ``strength`` is negative; when called, if nothing of ``start`` is trained.
    """
    if strength < 0:
        raise ValueError(f"strength must not be negative, got {strength}")
    kept = {name: value.detach().clone() for name, value in start.items()}

    def penalty(trained: Mapping[str, Tensor]) -> Tensor:
        distances = [
            (importance[name] if importance else 1) * (trained[name] - value).square()
            for name, value in kept.items()
            if name in trained
        ]
        if not distances:
            raise ValueError(f"start must name what is trained, {list(trained)}; got {list(kept)}")
        return strength / 2 * torch.stack([d.sum() for d in distances]).sum()

    return penalty


def fisher(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """How much each parameter matters for what ``model`` has learned: the diagonal of the Fisher
    information, as the mean squared gradient of the log-likelihood over examples.

    Args:
        inputs: ``(N, ...)``. labels: ``(N,)`` int64.

    Raises:
        ValueError: if inputs and labels do not match or hold NaN.
    """
    check_labelled(inputs, labels)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    model.eval()

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        scores = torch.func.functional_call(model, parameters, (x[None],))
        return F.cross_entropy(scores, y[None])

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, inputs, labels)
    return {name: gradient.square().mean(0) for name, gradient in gradients.items()}


# What changed, and keeping it


def trained_parameters(model: nn.Module, start: Mapping[str, Tensor]) -> dict[str, int]:
    """How many numbers of each tensor of ``model`` differ from ``start``, a ``state_dict``.

    Tensors that are bit for bit the same are left out; those that ``start`` lacks count as new.
    """
    changed = {
        name: value.numel()
        if name not in start or start[name].shape != value.shape
        else int((value != start[name]).sum())
        for name, value in model.state_dict().items()
    }
    return {name: count for name, count in changed.items() if count}


def save_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Write what ``model`` trains, and only that, as safetensors: its trainable parameters, and the
    buffers of parts that are not frozen. The frozen rest is noted as a checksum.

    The file is complete or not there: it is written beside its place and moved.
    """
    learned, rest = _parted(model)
    part = Path(path).with_name(Path(path).name + ".part")
    save_file(learned, part, {"frozen": _checksum(rest)})
    os.replace(part, path)


def load_checkpoint(model: Network, path: str | Path) -> Network:
    """Read a checkpoint into a model that is frozen, and has its head and LoRAs, as it was then.

    Raises:
        ValueError: if the file holds other tensors than the model trains, or the model's frozen
            rest is not the one it was trained on. The model is then as it was.
    """
    learned, rest = _parted(model)
    with safe_open(path, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}
        trained_on = (file.metadata() or {}).get("frozen")
    shapes, wanted = ({n: tuple(v.shape) for n, v in t.items()} for t in (stored, learned))
    if shapes != wanted:
        differ = sorted(n for n in shapes | wanted if shapes.get(n) != wanted.get(n))
        raise ValueError(
            f"the checkpoint {path} does not fit the model: "
            + "; ".join(f"{n} is {shapes.get(n)} there, {wanted.get(n)} here" for n in differ[:3])
        )
    if trained_on != _checksum(rest):
        raise ValueError(f"the checkpoint {path} was trained on another backbone")
    model.load_state_dict(stored, strict=False)
    return model


def _parted(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of a model in two: what training changes, and the frozen rest."""
    kept = {name for name, p in model.named_parameters() if not p.requires_grad}
    for name, part in model.named_modules():
        hooks = part._forward_pre_hooks.values()  # pyright: ignore[reportPrivateUsage]
        if any(hook is stay_in_eval_mode for hook in hooks):
            kept |= {f"{name}.{b}" if name else b for b, _ in part.named_buffers(recurse=False)}
    state = model.state_dict()
    return {n: v for n, v in state.items() if n not in kept}, {n: state[n] for n in sorted(kept)}


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
