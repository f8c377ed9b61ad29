"""Reduce a teacher's weights to a narrower student: the same computation, seen through a basis of the residual stream.

The student's stream is ``Uᵀ h`` for an orthonormal basis U ``(D_t, D_s)``: matrices that read the stream become
``W U``, those that write it ``Uᵀ W``. Heads and FFN neurons are thinned in the same spirit (below).
Weights are ``(out, in)`` as in `nn.Linear`; suffixes _t and _s mean teacher and student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdistill.batch import Batch
from fastdistill.models.capture import Taps
from fastdistill.models.encoder import Encoder
from fastdistill.models.layout import ALBERT, Layout, find_layout


@torch.no_grad()
def teacher_basis(teacher: Encoder, width: int) -> Tensor:
    """Orthonormal basis U ``(D_t, width)`` of the teacher's residual stream; the identity for the teacher's own width.

    Principal directions (not centred) of all hidden states on random tokens of the vocabulary: they need no text, and
    follow what the layers do; the embedding table alone is nearly isotropic and hardly beats random directions.
    ``Uᵀ`` is the natural start of a projection from student to teacher states.
    """
    if width == teacher.hidden_size:
        return torch.eye(width)
    sequences, length = 100, min(32, teacher.max_length)
    ids = torch.randint(teacher.vocab_size, (sequences * length,), generator=torch.Generator().manual_seed(0))
    batch = Batch(
        input_ids=ids,
        position_ids=torch.arange(length).repeat(sequences),
        token_type_ids=torch.zeros_like(ids),
        cu_seqlens=torch.arange(0, len(ids) + 1, length, dtype=torch.int32),
        max_seqlen=length,
    ).to(teacher.model.device)
    with teacher.evaluating():
        hidden = teacher(batch, Taps(hidden=frozenset(range(teacher.num_hidden_layers + 1)))).hidden
    moment = sum(H.double().T @ H.double() for H in hidden.values())
    assert isinstance(moment, Tensor)
    return torch.linalg.eigh(moment.cpu()).eigenvectors[:, -width:].flip(1).float()


@torch.no_grad()
def reduce_weights(teacher: Encoder, student: Encoder, layers: Sequence[int]) -> None:
    """Overwrites the student's weights with the teacher's, reduced to the student's shape.

    Args:
        teacher, student: of one family; the student at most as wide, with at most as many heads and FFN neurons.
        layers: teacher layer, from 1, of every student layer; without meaning for ALBERT, whose layers are one.

    Raises:
        ValueError: it is not known how to reduce the weights of this family or shape.
    """
    old = {name: weight.float().cpu() for name, weight in teacher.model.base_model.state_dict().items()}
    new = student.model.base_model.state_dict()
    layout = find_layout(old)
    outside = [name for name in new if not (layout and layout.owns(name)) and not lacks_pooler(name, old)]
    factorised = any(name.startswith(PROJECTION) for name in old)
    known = all(name in old and name.startswith(OUTSIDE) for name in outside)
    if layout is None or not known or factorised != any(name.startswith(PROJECTION) for name in new):
        family = teacher.model.config.model_type
        raise ValueError(f"the weights of this {family} cannot be reduced to a smaller shape: use init=random")
    U = teacher_basis(teacher, student.hidden_size)
    for name in outside:
        new[name].copy_(_outside(name, old[name], U, factorised))
    if layout is ALBERT:
        layers = range(1, 1 + teacher.model.config.num_hidden_groups)
    for index, layer in enumerate(layers):
        source, target = Layer(old, layout, layer - 1), Layer(new, layout, index)
        _attention(source, target, U, teacher.num_attention_heads, student.num_attention_heads)
        _ffn(source, target, U)
        for role in (layout.attention_norm, layout.ffn_norm):
            _norm(source, target, role, U)


# modules outside the layers; where embeddings are factorised (ALBERT, small ELECTRA) a projection leads to the stream
PROJECTION = ("embeddings_project.", "encoder.embedding_hidden_mapping_in.")
OUTSIDE = ("embeddings.", "pooler.", *PROJECTION)


@dataclass(frozen=True)
class Layer:
    """The weights of one layer, by role."""

    weights: Mapping[str, Tensor]
    layout: Layout
    index: int

    def __getitem__(self, role: str) -> tuple[Tensor, Tensor]:
        name = self.layout.module(self.index, role)
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]


def lacks_pooler(name: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether `name` is of a pooler that these weights lack: some classifiers have none, the bare model does."""
    return name.startswith("pooler.") and name not in weights


def _gain(g: Tensor, U: Tensor) -> Tensor:
    """Diagonal of ``Uᵀ diag(g) U``: the gains nearest to the teacher's that a LayerNorm can hold."""
    return U.square().T @ g


def _outside(name: str, W: Tensor, U: Tensor, factorised: bool) -> Tensor:
    if name.startswith("embeddings."):
        if factorised:
            return W
        if W.ndim == 2:
            return W @ U
        return _gain(W, U) if name.endswith("weight") else U.T @ W
    W = U.T @ W
    return W @ U if name.startswith("pooler.") and W.ndim == 2 else W


def _norm(source: Layer, target: Layer, role: str, U: Tensor) -> None:
    (g, b), (g_s, b_s) = source[role], target[role]
    g_s.copy_(_gain(g, U))
    b_s.copy_(U.T @ b)


def _ffn(source: Layer, target: Layer, U: Tensor) -> None:
    """Keeps the neurons with the largest product of reading and writing norms."""
    (W, b), (V, c) = source[source.layout.ffn_in], source[source.layout.ffn_out]
    (W_s, b_s), (V_s, c_s) = target[target.layout.ffn_in], target[target.layout.ffn_out]
    W, V = W @ U, U.T @ V
    kept = (W.norm(dim=1) * V.norm(dim=0)).topk(len(b_s)).indices.sort().values
    W_s.copy_(W[kept])
    b_s.copy_(b[kept])
    V_s.copy_(V[:, kept])
    c_s.copy_(U.T @ c)


def _attention(source: Layer, target: Layer, U: Tensor, heads_t: int, heads_s: int) -> None:
    """Keeps the heads that can write most, each by the best approximation of rank d_s of its two bilinear forms.

    A head scores by ``[W_q U, b_q]ᵀ [W_k U, b_k] / sqrt(d_t)`` and writes by ``Uᵀ W_o W_v U``. The value biases reach
    the stream as a constant, since attention weights sum to 1, and move into the output bias.
    """
    layout = source.layout
    roles = (layout.query, layout.key, layout.value, layout.attention_out)
    (Q, q), (K, k), (V, v), (W, b) = (source[role] for role in roles)
    (Q_s, q_s), (K_s, k_s), (V_s, v_s), (W_s, b_s) = (target[role] for role in roles)
    b_s.copy_(U.T @ (b + W @ v))
    v_s.zero_()
    # a head wider than the teacher's has spare rows: random on one side, zero on the other, they wait to be learned
    K_s.zero_()
    W_s.zero_()
    d_t, d_s = len(q) // heads_t, len(q_s) // heads_s
    by_head = (heads_t, d_t)
    scores = [torch.cat([A @ U, a[:, None]], dim=1).unflatten(0, by_head) for A, a in ((Q, q), (K, k))]
    reads, writes = (V @ U).unflatten(0, by_head), (U.T @ W).unflatten(1, by_head).permute(1, 2, 0)
    forms = [_factor(writes[h], reads[h], d_s) for h in range(heads_t)]
    size = torch.stack([write.norm(dim=1).square().mul(read.norm(dim=1).square()).sum() for write, read in forms])
    for position, h in enumerate(size.topk(heads_s).indices.sort().values.tolist()):
        write, read = forms[h]
        query, key = _factor(scores[0][h], scores[1][h], d_s)
        rows = slice(position * d_s, position * d_s + len(query))
        rescale = (d_s / d_t) ** 0.25  # half of it on either side, for the student divides by sqrt(d_s)
        Q_s[rows], q_s[rows] = rescale * query[:, :-1], rescale * query[:, -1]
        K_s[rows], k_s[rows] = rescale * key[:, :-1], rescale * key[:, -1]
        V_s[rows], W_s[:, rows] = read, write.T


def _factor(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """P, R of at most `rank` rows whose ``Pᵀ R`` is nearest to ``Aᵀ B``: a truncated SVD, shared out evenly."""
    (Q_A, R_A), (Q_B, R_B) = torch.linalg.qr(A.T), torch.linalg.qr(B.T)
    left, sizes, right = torch.linalg.svd(R_A @ R_B.T)
    half = sizes[:rank].sqrt()
    return (Q_A @ left[:, :rank] * half).T, (Q_B @ right[:rank].T * half).T
