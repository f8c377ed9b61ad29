"""Live: a frozen teacher that runs beside the student; Ensemble: several that speak as one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fastdistill.batch import Batch
from fastdistill.models.capture import Captured, Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.layout import find_layout

Multiply = Callable[[Tensor], Tensor]
"""``x W^T + b``."""


def product(weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Multiply:
    """A product whose weight is laid out once as oneDNN multiplies it; with `gelu` its GELU is taken on the way out."""
    epilogue: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, *epilogue)


class Together:
    """Linear layers that are asked about the same states one after the other, multiplied as one.

    oneDNN multiplies one wide matrix up to twice as fast as three narrow ones.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        weights: list[Tensor] = [linear.weight for linear in linears]
        biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
        assert len(biases) in (0, len(linears)), "all of them have a bias, or none"
        self.multiply = product(torch.cat(weights), torch.cat(biases) if biases else None)
        self.sizes = [linear.out_features for linear in linears]
        self.states: Tensor | None = None
        self.waiting: dict[int, Tensor] = {}

    def part(self, number: int, x: Tensor) -> Tensor:
        """What linear layer `number` makes of `x`."""
        if x is not self.states or number not in self.waiting:
            self.states, self.waiting = x, dict(enumerate(self.multiply(x).split(self.sizes, -1)))
        found = self.waiting.pop(number)
        if not self.waiting:
            self.states = None
        return found


class Packed(nn.Module):
    """What takes the place of a linear layer on a CPU; the weights keep their names."""

    def __init__(self, linear: nn.Linear, multiply: Multiply) -> None:
        super().__init__()
        self.weight, self.bias, self.multiply = linear.weight, linear.bias, multiply

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x)


def can_pack() -> bool:
    """Whether there is oneDNN, and it multiplies in bf16 on this CPU."""
    return hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack(encoder: Encoder) -> None:
    """Put `Packed` in the place of every linear layer, and of the GELU that follows the first one of an FFN."""
    layout = find_layout(encoder.model.base_model.state_dict())
    roles = [layout.query, layout.key, layout.value] if layout else []
    attention = [role.rpartition(".")[2] for role in roles]
    for path, module in list(encoder.named_modules()):
        linear = {name: child for name, child in module.named_children() if type(child) is nn.Linear}
        gelus = [name for name, child in module.named_children() if getattr(child, "act", None) is nn.functional.gelu]
        multiply: dict[str, Multiply] = {}
        if attention and linear.keys() >= {*attention}:
            together = Together([linear[name] for name in attention])
            multiply = {name: partial(together.part, number) for number, name in enumerate(attention)}
        for name, child in linear.items():
            activated = layout is not None and f"{path}.{name}".endswith(f".{layout.ffn_in}") and len(gelus) == 1
            alone = None if name in multiply else product(child.weight, child.bias, activated)
            setattr(module, name, Packed(child, alone or multiply[name]))
            if activated:
                setattr(module, gelus[0], nn.Identity())


class Live(nn.Module):
    """An encoder that only teaches: always in eval mode, without gradients, its parameters frozen in place.

    Args:
        encoder: the teacher; it is changed.
        dtype: of its weights and of what it says.
        dropout: leave its dropout on.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype = torch.float32, *, dropout: bool = False) -> None:
        super().__init__()
        self.dropout = dropout
        self.encoder = encoder.requires_grad_(False)
        for parameter in encoder.parameters():  # and no buffers: rotary frequencies need their digits
            parameter.data = parameter.data.to(dtype)
        if self.device.type == "cpu" and dtype == torch.bfloat16 and can_pack():
            pack(encoder)
        self.eval()

    def train(self, mode: bool = True) -> Live:
        """Stays in its mode whatever is asked: a teacher with dropout teaches noise."""
        return super().train(self.dropout)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    @property
    def packs(self) -> bool:
        """Whether it runs padding-free."""
        return self.encoder.packs

    def fingerprint(self, head: bool = True) -> str:
        """Changes when a weight, its dtype or what is computed with it does; without the `head`, one below it.

        A pooler is of the head, for no hidden state depends on it.
        """
        model = self.encoder.model
        names = {"_name_or_path", "transformers_version", "architectures", "id2label", "label2id", "dtype"}
        config = {k: v for k, v in model.config.to_dict().items() if k not in names}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, weight in (self.encoder if head else model.base_model).state_dict().items():
            if head or not name.startswith("pooler."):
                digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
                digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @contextmanager
    def as_deep_as(self, taps: Taps) -> Iterator[None]:
        """Without the layers above the last one that `taps` ask for, for the length of a with statement."""
        layers = self.encoder.layers
        above: list[nn.Module] = []
        if layers is not None and not taps.logits:
            deepest = max(taps.hidden | taps.attention | {1})
            above = list(layers[deepest:])
            del layers[deepest:]
        try:
            yield
        finally:
            if layers is not None:
                layers.extend(above)

    # not inference_mode: what the teacher returns is saved for the student's backward pass
    @torch.no_grad()
    def forward(self, batch: Batch, taps: Taps) -> Captured:
        """What the teacher knows of the batch; see `Encoder.forward`."""
        with torch.autocast(batch.input_ids.device.type, enabled=False), self.as_deep_as(taps):  # it has its dtype
            return self.encoder(batch, taps)


class Ensemble(Live):
    """Teachers that speak as one: logits and hidden states are weighted means, attention is the first's.

    ``z = sum_i w_i z_i / sum_i w_i``, and hidden states alike. There is no mean of q and k
    whose scores would stand for those of several teachers.

    Args:
        encoders: the teachers; they are changed.
        weights: w, one for each.
        dtype, dropout: as in `Live`.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        weights: Sequence[float],
        dtype: torch.dtype = torch.float32,
        *,
        dropout: bool = False,
    ) -> None:
        super().__init__(encoders[0], dtype, dropout=dropout)
        self.others = [Live(encoder, dtype, dropout=dropout) for encoder in encoders[1:]]
        self.weights = [weight / sum(weights) for weight in weights]

    @property
    def packs(self) -> bool:
        """Whether all of them run padding-free."""
        return super().packs and all(other.packs for other in self.others)

    def fingerprint(self, head: bool = True) -> str:
        """Changes when one of the teachers or a weight does; see `Live.fingerprint`."""
        parts = [super().fingerprint(head), *(other.fingerprint(head) for other in self.others), str(self.weights)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @torch.no_grad()
    def forward(self, batch: Batch, taps: Taps) -> Captured:
        """What the teachers know of the batch."""
        said = super().forward(batch, taps)
        mixed = Taps(hidden=taps.hidden, logits=taps.logits)
        if mixed == Taps():
            return said
        everyone = [said, *(other(batch, mixed) for other in self.others)]
        said.hidden = {layer: self._mean([one.hidden[layer] for one in everyone]) for layer in taps.hidden}
        if taps.logits:
            said.logits = self._mean([one.logits for one in everyone if one.logits is not None])
        return said

    def _mean(self, values: list[Tensor]) -> Tensor:
        total = sum(weight * value.float() for weight, value in zip(self.weights, values, strict=True))
        assert isinstance(total, Tensor), "there is one teacher at least"
        return total.to(values[0].dtype)
