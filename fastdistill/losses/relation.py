"""The relation term: attention and relations of queries, keys and values of one layer, for any two head counts."""

from __future__ import annotations

from torch import Tensor

from fastdistill.batch import Batch
from fastdistill.models.capture import Captured, Taps
from fastdistill_kernels import attention_kl


class Relation:
    """``sum over pairs (X, Y) of mean rows KL(softmax(X_t Y_t^T / sqrt(d)) || softmax(X_s Y_s^T / sqrt(d)))``.

    The pairs are (Q, Q), (K, K), (V, V) in MiniLMv2 (arXiv 2012.15828, equations 5 to 7), (Q, K) and (V, V) in MiniLM
    (arXiv 2002.10957, equations 3 to 8). Heads are re-split into `heads` relation heads on both sides, so that the
    models' own head counts may differ. With `pad_to` L the sum over real rows is divided by ``B heads L``.

    Raises:
        ValueError: `pairs` is not a list such as "qk,vv".
    """

    def __init__(self, layers: tuple[int, int], *, pairs: str, heads: int, pad_to: int | None) -> None:
        self.layers, self.heads, self.pad_to = layers, heads, pad_to
        self.pairs = [pair.strip() for pair in pairs.split(",")]
        if any(len(pair) != 2 or not set(pair) <= set("qkv") for pair in self.pairs):
            raise ValueError(f'relation_pairs is {pairs!r}: give pairs of q, k and v such as "qq,kk,vv" or "qk,vv"')
        self.student_taps, self.teacher_taps = map(self._taps, layers)

    def _taps(self, layer: int) -> Taps:
        q, k, v = (frozenset({layer} if any(x in pair for pair in self.pairs) else ()) for x in "qkv")
        return Taps(q=q, k=k, v=v)

    def __call__(self, student: Captured, teacher: Captured, batch: Batch) -> dict[str, Tensor]:
        (a_s, b_s), (a_t, b_t) = map(self._operands, (student, teacher), self.layers)
        loss = attention_kl(
            a_s, b_s, a_t, b_t, batch.cu_seqlens, self.pad_to or batch.max_seqlen,
            num_relation_heads=self.heads, normalize="padded" if self.pad_to else "tokens",
        )  # fmt: skip
        return {"relation": loss}

    def _operands(self, captured: Captured, layer: int) -> tuple[list[Tensor], list[Tensor]]:
        states = {"q": captured.q, "k": captured.k, "v": captured.v}
        return [states[pair[0]][layer] for pair in self.pairs], [states[pair[1]][layer] for pair in self.pairs]

    def entries(self, batch: Batch) -> int:
        """Tokens, or sequences, each of as many."""
        return batch.num_sequences if self.pad_to else batch.num_tokens
