"""Where a family keeps its weights: the names of the matrices that read and write the residual stream."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Module names of one layer, relative to `layer`, which has a place for the layer's index (from 0)."""

    layer: str
    query: str
    key: str
    value: str
    attention_out: str
    attention_norm: str
    ffn_in: str
    ffn_out: str
    ffn_norm: str

    def module(self, layer: int, role: str) -> str:
        """Full name of the module in `role` in a layer counted from 0."""
        return f"{self.layer.format(layer)}.{role}"

    def owns(self, name: str) -> bool:
        """Whether `name` is a weight or bias of a layer."""
        before, after = self.layer.split("{}")
        match = re.fullmatch(rf"{re.escape(before)}\d+{re.escape(after)}\.(.+)\.(weight|bias)", name)
        return match is not None and match[1] in astuple(self)[1:]

    def fits(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether the first layer has all these modules."""
        return all(f"{self.module(0, role)}.weight" in weights for role in astuple(self)[1:])


BERT = Layout(
    layer="encoder.layer.{}",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    ffn_norm="output.LayerNorm",
)
DISTILBERT = Layout(
    layer="transformer.layer.{}",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_out="attention.out_lin",
    attention_norm="sa_layer_norm",
    ffn_in="ffn.lin1",
    ffn_out="ffn.lin2",
    ffn_norm="output_layer_norm",
)
ALBERT = Layout(
    layer="encoder.albert_layer_groups.{}.albert_layers.0",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    attention_out="attention.dense",
    attention_norm="attention.LayerNorm",
    ffn_in="ffn",
    ffn_out="ffn_output",
    ffn_norm="full_layer_layer_norm",
)


def find_layout(weights: Mapping[str, Tensor]) -> Layout | None:
    """The layout of these weights, or None for families such as ModernBERT, which fuses its matrices.

    BERT, RoBERTa, XLM-R, ERNIE and ELECTRA share one; DistilBERT and ALBERT have their own.
    """
    return next((layout for layout in (BERT, DISTILBERT, ALBERT) if layout.fits(weights)), None)
