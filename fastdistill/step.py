"""One step of training: the losses of a batch, their gradients, the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastdistill import ranks
from fastdistill.batch import Batch
from fastdistill.graphs import Graphs
from fastdistill.losses.objective import Objective
from fastdistill.machine import bytes_kept, free_bytes, lacks_memory, processors
from fastdistill.models.capture import Captured
from fastdistill.models.dropout import draw_faster
from fastdistill.models.encoder import Encoder
from fastdistill.models.teacher import Live
from fastdistill.recipe import Optim, Recipe, Stage
from fastdistill.teacher_cache import Cached

T = TypeVar("T")


@dataclass(frozen=True)
class Runtime:
    """Where and how a run computes; a teacher has a `teacher_dtype` of its own where the GPU has no bf16."""

    device: torch.device
    dtype: torch.dtype
    logging_steps: int
    save_steps: int
    cuda_graphs: bool = False
    teacher_dtype: torch.dtype | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Runtime:
        """Resolve what the recipe left to the hardware; on a GPU that only emulates bf16 the teacher computes in fp16,
        the student in fp32.

        Raises:
            ValueError: the GPU asked for is not there, or not every rank has one; CUDA graphs without a GPU.
        """
        name = recipe.device if recipe.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is cuda, but torch sees no GPU: use --device cpu or auto")
        on_gpu = name == "cuda"
        if recipe.cuda_graphs and not on_gpu:
            raise ValueError("cuda_graphs is true, but the run is on the CPU: leave it out, or use a GPU")
        if on_gpu:
            ranks.take_gpu()
        else:
            torch.set_num_threads(processors())
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _cpu_has_bf16()
        wanted = recipe.precision == "bf16" and not on_gpu or recipe.precision != "fp32" and bf16
        dtype = torch.bfloat16 if wanted else torch.float32
        fp16 = on_gpu and not wanted and recipe.precision != "fp32"
        return cls(
            torch.device(name), dtype, recipe.logging_steps, recipe.save_steps, recipe.cuda_graphs,
            torch.float16 if fp16 else None,
        )  # fmt: skip

    def describe(self, precision: str) -> str:
        """Where and in which precision a run computes that asked for `precision`."""
        on_gpu = self.device.type == "cuda"
        where = (
            f"GPU {torch.cuda.get_device_name(self.device)}" if on_gpu else f"CPU, {torch.get_num_threads()} threads"
        )
        lacking = self.dtype == torch.float32 and precision != "fp32"
        times = f"{ranks.world_size()} x " if ranks.world_size() > 1 else ""
        teacher = ", the teacher in fp16" if self.teacher_dtype else ""
        dtype = f"fp32, for it has no bf16{teacher}" if lacking else str(self.dtype).removeprefix("torch.")
        return f"{times}{where}: {dtype}"

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in the run's precision; weights, norms and losses stay in fp32."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def make_optimizer(optim: Optim, *modules: nn.Module) -> torch.optim.AdamW:
    """AdamW; weight decay acts on matrices and embeddings, not on biases and norms."""
    parameters = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.learning_rate, fused=True)


MEASURED = 1024  # tokens, from whose forward pass it is estimated how many fit into memory
ROOM = 2.0  # times what that keeps for the backward pass: 1.3 at most to work in, and what allocators cannot hand out


class Step:
    """What `train` repeats: `backward`, then `update`.

    Args:
        student, objective: what is trained.
        teacher: None for training on gold labels alone.
        stage: its optimiser.
        runtime: where, and in which precision.
        say: takes what the user should know.
    """

    def __init__(
        self,
        student: Encoder,
        teacher: Live | Cached | None,
        objective: Objective,
        stage: Stage,
        runtime: Runtime,
        say: Callable[[str], None] = print,
    ) -> None:
        self.student, self.teacher, self.objective, self.runtime, self.say = student, teacher, objective, runtime, say
        self.most_tokens: float = math.inf  # that memory has room for, as far as is known; with padding, if there is
        self.recomputes = False  # activations inside layers, in the backward pass
        self.graphs: Graphs | None = None
        self.lacks_room_for_graphs = False
        self.max_grad_norm = stage.optim.max_grad_norm or math.inf
        self.optimizer = make_optimizer(stage.optim, student, objective)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.tables: dict[nn.Parameter, Tensor] = {}
        if runtime.device.type == "cpu":
            draw_faster(student)
            # elsewhere how many rows there are would have to be waited for
            multiplied = {module.weight for module in student.modules() if isinstance(module, nn.Linear)}
            for module in student.modules():  # a head that predicts words may share the embeddings' weights
                if isinstance(module, nn.Embedding) and module.weight not in multiplied:
                    module.sparse = True

    def teach(self, batch: Batch) -> Captured | None:
        """What the teacher has to say of a batch, if there is a teacher."""
        return self.teacher(batch, self.objective.teacher_taps) if self.teacher is not None else None

    def forward(self, batch: Batch, whole: Batch | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and its terms, unweighted; of a piece of a batch, its share of them."""
        batch = batch.to(self.runtime.device)
        with self.runtime.autocast():
            target = self.teach(batch)
            output = self.student(batch, self.objective.student_taps)
            loss, values = self.objective(output, target, batch, whole)
        return loss, values

    def make_room(self, batch: Batch) -> None:
        """Before the first step of a run: go on in pieces where memory would not suffice for batches like this one.

        Estimated from what the piece of the longest sequences keeps for its backward pass. Where a single sequence
        would not fit, activations inside the student's layers are not kept. What is known already is not forgotten.
        """
        moments = 0 if self.optimizer.state else 2
        copies = 1 + moments + (ranks.world_size() > 1)  # gradients, AdamW's moments, what ranks send each other
        states = copies * sum(p.nbytes for p in self.parameters)
        room = max(0.0, free_bytes(self.runtime.device) - states)

        def measure() -> float:
            pieces = batch.split(min(MEASURED, self.most_tokens), self.padded)
            longest = max(pieces, key=lambda piece: int(piece.num_pairs))
            forward, places = partial(self.forward, longest), longest.num_places(self.padded)
            if not self.recomputes:
                return bytes_kept(forward, self.parameters) / places
            with self.student.keeping_a_layer():  # as the backward pass does, beside what goes into every layer
                return bytes_kept(forward, self.parameters) / places + self.student.bytes_between_layers

        while True:
            kept = self.with_room(batch.split(MEASURED, self.padded), measure)
            kept = max(1.0, kept)  # a dead loss keeps nothing, and is refused elsewhere
            fits = room / (ROOM * kept)
            if fits >= batch.max_seqlen or not self.recompute():
                break
        if fits < min(batch.num_places(self.padded), self.most_tokens):
            self.most_tokens = min(self.most_tokens, max(int(fits), batch.max_seqlen))
            self.say(
                f"memory has room for some {fits:,.0f} tokens at once, batches have {batch.num_places(self.padded):,}: "
                f"going on with {self.most_tokens:,}"
            )

    @property
    def padded(self) -> bool:
        """Whether sequences are filled up to the longest of a batch, by the student or the teacher."""
        return not self.student.packs or (isinstance(self.teacher, Live) and not self.teacher.packs)

    def sample(self, batch: Batch) -> Batch:
        """The piece of a batch with most tokens to predict, of which a piece may have none."""
        return max(self.pieces(batch), key=lambda piece: 0 if piece.labelled is None else len(piece.labelled))

    def pieces(self, batch: Batch) -> list[Batch]:
        """It, or pieces of it that memory has room for."""
        return batch.split(self.most_tokens, self.padded)

    def recompute(self) -> bool:
        """Compute activations inside the student's layers again in the backward pass; whether that is news."""
        if self.recomputes or not self.student.checkpoint_layers():
            return False
        self.recomputes = True
        self.say("memory has no room for a single sequence: activations are not kept, but computed again")
        return True

    def with_room(self, batches: Sequence[Batch], work: Callable[[], T]) -> T:
        """What `work` returns; where memory does not suffice, it begins again with pieces of half as many tokens.

        Raises:
            ValueError: a single sequence does not fit into memory.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
            self._halve(batches)  # out here, where nothing holds on to the tensors of the failed pass

    def backward(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Leave the mean gradient of the batches of a step; returns their mean loss and terms, on the device.

        Every rank gives as many batches and gets the means over those of all ranks. Pieces, where memory lacks
        (`with_room`), have the outcome of the whole, but for what dropout draws.

        Raises:
            ValueError: a single sequence does not fit into memory.
        """
        totals = self.with_room(batches, lambda: self._backward(batches))
        if len(batches) > 1:  # not the losses: ops have made their gradients for the weights of the recipe
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            torch._foreach_div_([g._values() if g.is_sparse else g for g in gradients], len(batches))
        ranks.mean_([*(p.grad for p in self.parameters if p.grad is not None), *totals.values()])
        return totals

    def _backward(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        totals: dict[str, Tensor] = {}
        for batch in batches:
            if batch.seed is not None:
                torch.manual_seed(batch.seed)
            pieces = self.pieces(batch)
            whole = batch.to(self.runtime.device) if len(pieces) > 1 else None
            for piece in pieces:
                if self.graphs is not None and whole is None:
                    found = self.graphs(piece.to(self.runtime.device))
                else:
                    found = self.passes(piece, whole)
                for name, value in found.items():
                    totals[name] = totals.get(name, 0) + value / len(batches)
        return totals

    def passes(self, batch: Batch, whole: Batch | None = None) -> dict[str, Tensor]:
        """Add the gradient of a batch, or of a piece of one; returns its terms and loss, as `forward` does."""
        loss, values = self.forward(batch, whole)
        loss.backward()
        return {name: value.detach() for name, value in (values | {"loss": loss}).items()}

    def use_graphs(self, longest: int, most: int) -> None:
        """From here on record the passes of whole batches, and the update, as CUDA graphs, if all that they do lies on
        the GPU.

        Args:
            longest: tokens of the longest sequence.
            most: sequences of a batch.
        """
        if (
            not isinstance(self.teacher, Live)
            or self.objective.counts_sequences
            or not (self.student.packs and self.teacher.packs)
        ):
            self.say(
                "no CUDA graphs: they need a teacher that runs beside the student, models that run padding-free, and "
                "losses that count tokens"
            )
            return
        self.graphs = Graphs(self.passes, self.parameters, longest, most)
        for group in self.optimizer.param_groups:  # a graph reads the rate from where it lies
            group["lr"] = torch.zeros((), device=self.runtime.device)

    def _halve(self, batches: Sequence[Batch]) -> None:
        recorded, self.graphs = self.graphs is not None, None  # they write to gradients that are given up here
        self.optimizer.zero_grad(set_to_none=True)
        if self.runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        if recorded:
            self.lacks_room_for_graphs = True
            self.say("out of memory: going on without CUDA graphs, which hold some")
            return
        pieces = [piece for batch in batches for piece in self.pieces(batch)]
        largest = max(pieces, key=lambda piece: piece.num_places(self.padded))
        size = largest.num_places(self.padded)
        if largest.num_sequences == 1 and self.recompute():
            return
        if largest.num_sequences == 1:
            raise ValueError(
                f"a single sequence of {largest.num_tokens} tokens does not fit into memory: lower max_length"
            )
        self.most_tokens = size // 2
        self.say(f"out of memory with {size:,} tokens at once: going on with {self.most_tokens:,}")

    def update(self, learning_rate: float) -> Tensor:
        """Clip the gradients, move the weights, and return the norm that the gradients had, on the device."""
        for group in self.optimizer.param_groups:
            group["capturable"] = self.graphs is not None and self.graphs.norm is not None  # from when it is recorded
            if self.graphs is not None:
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate
        return self._update() if self.graphs is None else self.graphs.update(self._update)

    def _update(self) -> Tensor:
        sparse = [p for p in self.parameters if p.grad is not None and p.grad.is_sparse]
        for p in sparse:
            p.grad = p.grad.coalesce()
        gradients = [p.grad.values() if p.grad.is_sparse else p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        rows = [self._lay_out(p) for p in sparse]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.graphs is None)
        for p, touched in zip(sparse, rows, strict=True):
            self.tables[p].index_fill_(0, touched, 0.0)
        return norm

    def _lay_out(self, p: nn.Parameter) -> Tensor:
        """Give a sparse gradient, of the few embeddings that a batch has, the form that the optimiser wants.

        It is laid out in a table of zeros that is kept from step to step, for to make a new one of 30,522 rows takes
        longer than all else that an embedding's gradient needs. Returns the rows that were written.
        """
        assert p.grad is not None
        (rows,) = p.grad.indices()
        if p not in self.tables:
            self.tables[p] = torch.zeros_like(p)
        p.grad = self.tables[p].index_copy_(0, rows, p.grad.values())
        return rows
