"""`soft_cross_entropy` in plain PyTorch: a few rows at a time, whose logits stay in the cache for loss and gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .numbers import MASKED, Numbers

ROOM = 1 << 17  # logits of each side at a time


class SoftLabels(Numbers):
    """What the Triton kernels' launchers are, with the same arguments and results; `stats` hold nothing."""

    def forward(
        self, z_s: Tensor, z_t: Tensor, labels: Tensor | None, rows: Tensor | None, row_weights: Tensor | None,
        kl: bool, with_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """soft and hard ``()``, out ``(N, width)`` or ``(0,)``, and for `backward` stats and inverse ``()``."""
        counted, weights = self._counted(z_s, labels, rows, row_weights)
        total = weights.sum()
        inverse = torch.where(total != 0, 1 / total, 0.0)
        out = z_s.new_zeros(z_s.shape) if with_gradient else z_s.new_empty(0)
        expected = (self.expected_soft, self.expected_hard) if with_gradient else None
        with torch.autocast(z_s.device.type, enabled=False):  # which would lower the sums
            soft, hard = self._walk(z_s, z_t, labels, counted, weights * inverse, kl, expected, out)
        stats = z_s.new_empty((4 if labels is None else 5, len(z_s if rows is None else rows)), dtype=torch.float32)
        return soft, hard, out, stats, inverse

    def backward(
        self, out: Tensor | None, d_soft: Tensor | None, d_hard: Tensor | None,
        z_s: Tensor, z_t: Tensor, labels: Tensor | None, rows: Tensor | None, row_weights: Tensor | None,
        stats: Tensor, inverse: Tensor,
    ) -> Tensor:  # fmt: skip
        """The gradient for the student's logits, ``(N, width)``: `out` of `forward` set right, or a new one."""
        soft, hard = (0.0 if d is None else float(d) for d in (d_soft, d_hard))
        expected = inverse.new_tensor((self.expected_soft, self.expected_hard)).tolist()  # rounded as what arrives
        as_expected = soft == expected[0] and (hard == expected[1] or labels is None)
        if out is None or not as_expected:
            out = z_s.new_zeros(z_s.shape) if out is None else out
            counted, weights = self._counted(z_s, labels, rows, row_weights)
            self._walk(z_s, z_t, labels, counted, weights * inverse, False, (soft, hard), out)
        return out

    def _counted(
        self, z_s: Tensor, labels: Tensor | None, rows: Tensor | None, row_weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Which rows take part, and the weight of each."""
        dtype = torch.promote_types(z_s.dtype, torch.float32)
        chosen = torch.arange(len(z_s), device=z_s.device) if rows is None else rows
        if rows is not None and len(rows):
            low, high = (int(x) for x in rows.aminmax())
            if low < 0 or high >= len(z_s) or len(rows.unique()) < len(rows):
                raise ValueError(f"rows are from {low} to {high}: pass some of 0 to {len(z_s) - 1}, each once")
        weights = torch.ones_like(chosen, dtype=dtype) if row_weights is None else row_weights[chosen].to(dtype)
        if labels is not None:
            weights = torch.where(labels[chosen] == self.ignore_index, 0.0, weights)
        counts = weights != 0
        if labels is not None and counts.any():
            lowest, highest = (int(x) for x in labels[chosen[counts]].aminmax())
            if lowest < 0 or highest >= self.classes:
                raise IndexError(
                    f"labels are from {lowest} to {highest}: pass classes from 0 to {self.classes - 1}, or "
                    f"{self.ignore_index} for rows to leave out"
                )
        return chosen[counts], weights[counts]

    def _walk(
        self, z_s: Tensor, z_t: Tensor, labels: Tensor | None, counted: Tensor, weights: Tensor, kl: bool,
        arriving: tuple[float, float] | None, out: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """soft and hard; the gradient into the counted rows of `out`, where gradients of the two are given."""
        soft, hard = weights.new_zeros((2,))
        at_once = max(1, ROOM // self.classes)
        for some, w in zip(counted.split(at_once), weights.split(at_once), strict=True):
            x, y = (z[some, : self.classes].to(weights.dtype) for z in (z_s, z_t))
            masks = x.numel() > 0 and bool((torch.minimum(x.amin(), y.amin()) <= MASKED).item())
            if masks:
                x, y = x.clamp_min_(MASKED), y.clamp_min_(MASKED)
            log_p = (x if self.temperature_s == 1 else x / self.temperature_s).log_softmax(-1)
            log_q = y.div_(self.temperature_t).log_softmax(-1)
            q = log_q.exp()
            soft += w @ torch.linalg.vecdot(q, log_q - log_p if kl else -log_p)
            if labels is not None:
                log_p_1 = log_p if self.temperature_s == 1 else x.log_softmax(-1)
                hard += w @ F.nll_loss(log_p_1, labels[some], reduction="none", ignore_index=self.ignore_index)
            if arriving is not None:
                gradient = torch.sub(log_p.exp(), q).mul_(
                    (w * (arriving[0] * self.factor / self.temperature_s))[:, None]
                )
                if labels is not None:
                    p_1 = log_p_1.exp()
                    p_1[torch.arange(len(some)), labels[some]] -= 1
                    gradient += p_1.mul_((w * arriving[1])[:, None])
                if masks:
                    gradient.masked_fill_(x == MASKED, 0.0)
                out[:, : self.classes].index_copy_(0, some, gradient.to(out.dtype))
        return soft * self.factor, hard
