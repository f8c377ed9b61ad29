"""Whole training loops over one workload: as published programs have them, and ours.

Each runs a number of optimiser steps and calls `after` with every one's lengths of sequences, ``(B,)``, and its losses.
Tensors among them may lie on a device that has not come so far yet: read them at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, BertForSequenceClassification, BertModel, PreTrainedModel

from bench.timing import forget_peak
from bench.workload import Workload
from fastdistill.batch import Batch, ahead
from fastdistill.data.packing import Loader, Sequences
from fastdistill.losses.objective import Objective
from fastdistill.models.capture import ATTENTION
from fastdistill.models.encoder import Encoder
from fastdistill.models.teacher import Live
from fastdistill.recipe import Optim, Stage
from fastdistill.stages import LATENT
from fastdistill.step import Runtime, Step, make_optimizer
from fastdistill.teacher_cache import Cached, cached

After = Callable[[Tensor, Mapping[str, float | Tensor]], None]
Loop = Callable[[Workload, Sequences, Runtime, int, After], None]
OPTIM = Optim(learning_rate=1e-4)
SCORES = "fastdistill_bench_scores"


def attention_scores(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    scores: list[Tensor] | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention that writes its maps out, and keeps the scores as they are before the softmax."""
    raw = query @ key.mT * scaling
    if scores is not None:
        scores.append(raw)
    masked = raw if attention_mask is None else raw + attention_mask
    return (masked.softmax(-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(SCORES, attention_scores)


Output = tuple[tuple[Tensor, ...], list[Tensor], Tensor | None]


class WithScores(nn.Module):
    """A padded BERT that returns all hidden states, all raw scores, and logits where it has a head."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, mask: Tensor) -> Output:
        scores: list[Tensor] = []
        additive = torch.where(mask[:, None, None, :], 0.0, torch.finfo(torch.float32).min)
        output = self.model(input_ids, attention_mask=additive, output_hidden_states=True, scores=scores)
        return output.hidden_states, scores, getattr(output, "logits", None)


def models(work: Workload, attention: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Teacher and student with the same random weights in every loop."""
    made: list[PreTrainedModel] = []
    for seed, name in enumerate((work.teacher, work.student)):
        torch.manual_seed(seed)
        config = work.config(name)
        if work.soft:
            made.append(BertForSequenceClassification._from_config(config, attn_implementation=attention))
        else:
            made.append(BertModel._from_config(config, attn_implementation=attention, add_pooling_layer=False))
    return made[0].eval(), made[1].train()


def projection(work: Workload) -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(work.config(work.student).hidden_size, work.config(work.teacher).hidden_size)


def padded(work: Workload, sequences: Sequences, steps: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and mask ``(B, length)``, sequence after sequence."""
    places = torch.arange(work.length)
    for step in range(steps):
        rows = np.arange(step * work.batch_size, (step + 1) * work.batch_size)
        taken = sequences.take(rows)
        mask = places < torch.from_numpy(taken.lengths)[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.int64)
        ids[mask] = torch.from_numpy(taken.input_ids)
        yield ids.to(device), mask.to(device)


def masked_mse(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """The mean over places that hold a token; maps ``(B, H, S, S)`` or states ``(B, S, D)``."""
    if x.dim() == 4:
        real = (mask[:, None, :, None] & mask[:, None, None, :]).to(x.dtype)
        return ((x - y) * real).square().sum() / (real.sum() * x.shape[1])
    return ((x - y) * mask[..., None]).square().sum() / (mask.sum() * x.shape[-1])


def latent(work: Workload, project: nn.Linear, student: Any, teacher: Any, mask: Tensor) -> dict[str, Tensor]:
    """TinyBERT's losses of padded models, a sum over mapped layers; with heads, soft cross-entropy beside them."""
    (hidden_s, scores_s, logits_s), (hidden_t, scores_t, logits_t) = student, teacher
    pairs = work.layer_map
    attention = [masked_mse(scores_s[m - 1], scores_t[n - 1], mask) for m, n in pairs]
    hidden = [masked_mse(project(hidden_s[m]), hidden_t[n], mask) for m, n in ((0, 0), *pairs)]
    soft = {} if logits_s is None else {"soft": F.cross_entropy(logits_s.float(), logits_t.float().softmax(-1))}
    return {
        "attention": torch.stack(attention).sum(),
        "hidden": torch.stack(hidden[1:]).sum(),
        "embedding": hidden[0],
        **soft,
    }


def published(
    work: Workload, sequences: Sequences, runtime: Runtime, steps: int, after: After, fast: bool = False
) -> None:
    """Padded to the greatest length, fp32, maps written out, all layers kept, one `.item()` a term and step.

    With `fast`, bf16 autocast and torch.compile.
    """
    teacher, student = (WithScores(model).to(runtime.device) for model in models(work, SCORES))
    project = projection(work).to(runtime.device)
    optimizer = make_optimizer(OPTIM, student, project)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def losses(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            target = teacher(ids, mask)
        return latent(work, project, student(ids, mask), target, mask)

    if fast:
        losses = torch.compile(losses, dynamic=False)
    for ids, mask in padded(work, sequences, steps, runtime.device):
        with torch.autocast(runtime.device.type, torch.bfloat16, enabled=fast):
            terms = losses(ids, mask)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after(mask.sum(1), {name: value.item() for name, value in terms.items()})


def compiled(work: Workload, sequences: Sequences, runtime: Runtime, steps: int, after: After) -> None:
    """`published` with bf16 autocast and torch.compile."""
    published(work, sequences, runtime, steps, after, fast=True)


def textbrewer(work: Workload, sequences: Sequences, runtime: Runtime, steps: int, after: After) -> None:
    """TextBrewer's GeneralDistiller (PyPI `textbrewer` and `tensorboard`), which logs every loss of every step.

    It has a projection for each pair of layers, and averages attention over real places in its own way.
    """
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig  # type: ignore[import-not-found,import-untyped,unused-ignore]

    teacher, student = (WithScores(model).to(runtime.device) for model in models(work, SCORES))
    sizes = [work.config(name).hidden_size for name in (work.student, work.teacher)]
    matches: list[dict[str, Any]] = [
        {"layer_S": m - 1, "layer_T": n - 1, "feature": "attention", "loss": "attention_mse", "weight": 1}
        for m, n in work.layer_map
    ]
    for m, n in ((0, 0), *work.layer_map):
        way = ["linear", *sizes]
        matches.append(
            {"layer_S": m, "layer_T": n, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": way}
        )

    def adaptor(batch: tuple[Tensor, Tensor], output: Output) -> dict[str, Any]:
        hidden, scores, logits = output
        found = {"hidden": hidden, "attention": scores, "inputs_mask": batch[1].long()}
        return found if logits is None else found | {"logits": (logits,)}

    class Logged(GeneralDistiller):  # type: ignore[misc,unused-ignore]
        def write_loss(
            self, total_loss: Tensor, writer_step: int, losses_dict: dict[str, Tensor] | None = None
        ) -> None:
            super().write_loss(total_loss, writer_step, losses_dict)
            self.found = {name: value.item() for name, value in (losses_dict or {}).items()}

        def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
            for ids, mask in padded(work, sequences, steps + 1, runtime.device):
                yield ids, mask
                after(mask.sum(1), self.found)  # the distiller asks for the next batch when a step is done

    with TemporaryDirectory() as folder:
        training = TrainingConfig(device=runtime.device, output_dir=folder, log_dir=folder, ckpt_steps=10**9)
        distillation = DistillationConfig(
            temperature=1, kd_loss_weight=int(work.soft), hard_label_weight=0, intermediate_matches=matches
        )
        distiller = Logged(training, distillation, teacher, student, adaptor, adaptor)
        optimizer = make_optimizer(OPTIM, student)
        with distiller:
            distiller.train(optimizer, distiller.batches(), num_steps=steps + 1, max_grad_norm=1.0)


def our_step(work: Workload, runtime: Runtime, cache: tuple[Path, Sequences] | None = None) -> Step:
    """The engine's step on the same models; with a teacher that answers from files where there is a folder for them."""
    teacher, student = (Encoder(model) for model in models(work, ATTENTION))
    losses = replace(LATENT, soft=float(work.soft))
    objective = Objective(losses, work.layer_map, student, teacher)
    shared = objective.projections["shared"]
    assert isinstance(shared, nn.Linear)
    shared.load_state_dict(projection(work).state_dict())
    live = Live(teacher.to(runtime.device), runtime.dtype)
    taught_by: Live | Cached = live
    if cache is not None:
        taught_by = cached(
            cache[0], live, cache[1], objective.teacher_taps,
            tokens_per_batch=4096, epochs=2, verify=0, say=lambda _: None,
        )  # fmt: skip
    stage = Stage(losses=losses, optim=OPTIM)
    return Step(student.to(runtime.device).train(), taught_by, objective.to(runtime.device), stage, runtime)


def our_loader(work: Workload, sequences: Sequences) -> Loader:
    """As many tokens as the other loops have in a batch on average."""
    tokens = max(work.batch_size * int(sequences.offsets[-1]) // len(sequences), int(sequences.lengths.max()))
    return Loader(sequences, tokens, seed=0)


def our_batches(work: Workload, sequences: Sequences) -> Iterator[Batch]:
    """As the engine draws them."""
    return (batch for _, batch in our_loader(work, sequences).batches())


def ours(work: Workload, sequences: Sequences, runtime: Runtime, steps: int, after: After) -> None:
    """The engine."""
    _run(our_step(work, runtime), work, sequences, steps, after)


def ours_fused(work: Workload, sequences: Sequences, runtime: Runtime, steps: int, after: After) -> None:
    """The engine with layers under torch.compile and, on a GPU, passes launched as CUDA graphs."""
    step = our_step(work, runtime)
    assert isinstance(step.teacher, Live)
    for encoder in (step.student, step.teacher.encoder):
        encoder.compile_layers()
    if runtime.device.type == "cuda":
        most = max(map(len, our_loader(work, sequences).plan(0)))
        step.use_graphs(int(sequences.lengths.max()), most)
    _run(step, work, sequences, steps, after)


def ours_cached(work: Workload, sequences: Sequences, runtime: Runtime, steps: int, after: After) -> None:
    """The engine in later epochs: the teacher has said all that it has to say, and is gone.

    That took time and memory that do not count. On a CPU the files that are mapped count as memory of the process,
    though the system may take it back.
    """
    with TemporaryDirectory() as folder:
        step = our_step(work, runtime, (Path(folder), sequences))
        forget_peak(runtime.device)
        _run(step, work, sequences, steps, after)


def _run(step: Step, work: Workload, sequences: Sequences, steps: int, after: After) -> None:
    """As the engine trains: batches are copied ahead, and what a step has found stays on the device.

    Before the first step the passes of thrice as many other batches run, and move nothing: a long training meets nearly
    all shapes that graphs record, or torch.compile and oneDNN compile for, in its first few hundred steps.
    """

    def batches(first: int, last: int) -> Iterator[Batch]:
        return ahead(islice(our_batches(work, sequences), first, last), step.runtime.device)

    step.make_room(next(our_batches(work, sequences)))
    for batch in batches(steps, 4 * steps):
        step.backward([batch])
    step.optimizer.zero_grad(set_to_none=step.graphs is None)
    for batch in batches(0, steps):
        values = step.backward([batch])
        step.update(OPTIM.learning_rate)
        after(batch.cu_seqlens.diff(), {name: values[name] for name in step.objective.weights})


LOOPS: dict[str, Loop] = {
    "published": published,
    "compiled": compiled,
    "textbrewer": textbrewer,
    "ours": ours,
    "fused": ours_fused,
    "cached": ours_cached,
}


def chosen(text: str, work: Workload) -> list[str]:
    """The loops that `text` names, one after the other; ends the program where one, or the workload, is not known."""
    names = text.split(",")
    try:
        if unknown := [name for name in names if name not in LOOPS]:
            raise ValueError(f"--loops {unknown[0]}: choose from {', '.join(LOOPS)}")
        work.check()
    except ValueError as error:
        sys.exit(f"error: {error}")
    return names
