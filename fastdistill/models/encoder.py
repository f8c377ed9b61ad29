"""Encoder: a transformers encoder that takes packed batches and returns what the taps ask for."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from fastdistill.batch import Batch
from fastdistill.models.attention import Bounds
from fastdistill.models.capture import ATTENTION, Captured, Recorder, Taps
from fastdistill.models.families import has_token_types, position_offset
from fastdistill.models.heads import AUTO, PROBLEM_TYPES, has_known_head, head_logits, output_layer
from fastdistill.models.layout import find_layout
from fastdistill.models.pretrained import load_headed, load_headless
from fastdistill.recipe import HeadKind

Head = Literal["none", "finetuned", "fresh"]


class Encoder(nn.Module):
    """A transformers encoder, with or without a head.

    Args:
        model: headless (`AutoModel`) or of the Auto class of `kind`, made with ``attn_implementation="fastdistill"``.
        kind: of its head, where it has one.

    `packs` tells whether it runs padding-free and can be captured. A family that computes attention by itself
    (MPNet, DeBERTa) does not; it is run padded, and taps on q, k, v are refused.
    """

    def __init__(self, model: PreTrainedModel, kind: HeadKind = "classification") -> None:
        super().__init__()
        self.model = model
        self.kind: HeadKind | None = None if model.base_model is model else kind
        self.training = model.training
        config = model.config
        needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings")
        if getattr(config, "is_encoder_decoder", False) or not all(hasattr(config, name) for name in needed):
            raise ValueError(f"{config.model_type} is no text encoder of the kind that can be distilled, such as BERT")
        self.num_hidden_layers: int = config.num_hidden_layers
        self.hidden_size: int = config.hidden_size
        self.num_attention_heads: int = config.num_attention_heads
        self.vocab_size: int = config.vocab_size
        self.position_offset = position_offset(model.base_model)
        self.max_length: int = config.max_position_embeddings - self.position_offset
        self.has_token_types = has_token_types(model.base_model)
        self.packs = (self.kind is None or has_known_head(model)) and self._probe()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        head: Head = "none",
        kind: HeadKind = "classification",
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
    ) -> Encoder:
        """An encoder from a Hugging Face folder or Hub id, in float32 and eval mode, from safetensors only.

        Args:
            path: the folder or Hub id.
            head: none; finetuned, the checkpoint's own head; or fresh, a newly initialised one.
            kind: of the head.
            num_labels: outputs of a fresh head; with finetuned, what the checkpoint's head must have.
            id2label: class names of a fresh head.

        Raises:
            ValueError: the checkpoint lacks encoder weights; its own head is asked for and there is none, or one
                with another number of labels; a fresh head without num_labels.
        """
        if head == "finetuned":
            return cls(load_headed(path, kind, num_labels), kind)
        encoder = cls(load_headless(path))
        return encoder if head == "none" else encoder.with_fresh_head(kind, num_labels, id2label)

    def with_fresh_head(
        self, kind: HeadKind, num_labels: int | None = None, id2label: dict[int, str] | None = None
    ) -> Encoder:
        """A copy of this encoder under a newly initialised head (from torch's global generator); one that predicts
        masked words has as many outputs as there are words, and shares the embeddings as the family does.

        Raises:
            ValueError: any other head without num_labels, or with another number of names.
        """
        config = copy.deepcopy(self.model.config)
        if kind != "masked":
            if num_labels is None:
                raise ValueError("a fresh head needs num_labels")
            names = id2label or {i: f"LABEL_{i}" for i in range(num_labels)}
            if len(names) != num_labels:
                raise ValueError(f"id2label names {len(names)} classes, num_labels is {num_labels}")
            config.id2label = names
            config.label2id = {name: i for i, name in names.items()}
            config.problem_type = PROBLEM_TYPES.get(kind)  # not that of an earlier task
        model = AUTO[kind].from_config(config, attn_implementation=ATTENTION)
        # families without a pooler under their head leave the headless model's pooler behind
        missing, _ = model.base_model.load_state_dict(self.model.base_model.state_dict(), strict=False)
        assert not missing, missing
        return Encoder(model.train(self.training), kind)

    @property
    def label_names(self) -> list[str]:
        """What its classes are called, by index."""
        return [str(name) for _, name in sorted((self.model.config.id2label or {}).items())]

    def reach(self, layer: int) -> int | None:
        """How many tokens to each side `layer` (from 1) sees; None where it sees all, as most families do."""
        config = self.model.config
        kinds = getattr(config, "layer_types", None) or []
        sliding = kinds[layer - 1 : layer] == ["sliding_attention"]
        return int(config.sliding_window) if sliding else None

    @torch.no_grad()
    def order_labels(self, names: Sequence[str] | None, num_labels: int) -> str | None:
        """Put the `num_labels` outputs of the head into the order of `names`.

        Upper and lower case are the same here. A model that does not name its classes is taken to have them in this
        order, and so is one that names them where `names` are numbers. Returns what is to be said of it: that they had
        another order, or that this one was taken for granted.

        Raises:
            ValueError: the model has other classes.
        """
        config = self.model.config
        if config.num_labels != num_labels:
            raise ValueError(
                f"{config.name_or_path} was fine-tuned on {config.num_labels} labels, the task has {num_labels}: "
                "take a model of this task, or fine-tune this one (--teacher.path in place of --teacher.finetuned)"
            )
        own = self.label_names
        generic = [f"LABEL_{i}" for i in range(num_labels)]
        if names is None or list(names) in (own, generic):
            return None
        numbered = all(map(str.isdigit, names))
        folded, wanted = ([name.casefold() for name in one] for one in (own, names))
        if own == generic or (numbered and sorted(own) != sorted(names)):
            told = "does not name its classes" if own == generic else f"calls its classes {', '.join(own)}"
            granted = f"{told}: they are taken to be in the task's order, {', '.join(names)}"
            return None if own == generic and numbered else granted
        if sorted(folded) != sorted(wanted) or len(set(folded)) < num_labels:
            raise ValueError(
                f"{config.name_or_path} has the classes {own}, the task {list(names)}: take a model of this task; if "
                "they are the same under other names, write those of the task into id2label of its config.json"
            )
        order = [folded.index(name) for name in wanted]
        for weight in output_layer(self.model, num_labels).parameters():
            weight.copy_(weight[order])
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
        another = f"has its classes in another order: they are put into the task's, {', '.join(names)}"
        return None if folded == wanted else another

    def forward(self, batch: Batch, taps: Taps) -> Captured:
        """Runs the batch and returns what `taps` asks for.

        Raises:
            ValueError: a sequence longer than `max_length`; a layer past the last; logits without a head; q, k or v
                of a family whose attention cannot be captured.
            RuntimeError: the model gave hidden states of more or fewer layers than it ran.
        """
        family = self.model.config.model_type
        if batch.max_seqlen > self.max_length:
            raise ValueError(f"a sequence of {batch.max_seqlen} tokens: this {family} takes {self.max_length} at most")
        if taps.logits and self.kind is None:
            raise ValueError(f"logits are asked for: this {family} was loaded without a head")
        self.check_taps(taps)
        return self._packed(batch, taps) if self.packs else self._padded(batch, taps)

    @cached_property
    def layers(self) -> nn.ModuleList | None:
        """The layers, where each has a module of its own and the output of the last one is the model's."""
        layout = find_layout(self.model.base_model.state_dict())
        if layout is None or not self.packs:
            return None
        found = self.model.base_model.get_submodule(layout.layer.partition(".{}")[0])
        return found if isinstance(found, nn.ModuleList) and len(found) == self.num_hidden_layers else None

    def checkpoint_layers(self) -> bool:
        """Keep of every layer only what goes in; the rest is computed again for the backward pass.

        Returns whether the family's layers are known.
        """
        for layer in self.layers or ():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        return self.layers is not None

    @contextmanager
    def keeping_a_layer(self) -> Iterator[None]:
        """After `checkpoint_layers` the first layer as it was before, for the length of a with statement."""
        assert self.layers is not None
        first = self.layers[0]
        checkpointed = first.forward
        assert isinstance(checkpointed, partial)
        first.forward = checkpointed.args[0]
        try:
            yield
        finally:
            first.forward = checkpointed

    @property
    def bytes_between_layers(self) -> int:
        """Of a token, in float32: what goes into the layers."""
        return 4 * self.num_hidden_layers * self.hidden_size

    def compile_layers(self) -> bool:
        """Let torch.compile fuse what stands between the matrix products of a layer; attention stays as it is.

        Sizes may vary, and layers of one shape share a program: there is one for each of training and evaluation.
        Returns whether the family's layers are known.
        """
        torch._functorch.config.donated_buffer = False  # the alive guard walks a graph several times
        for layer in self.layers or ():
            layer.forward = torch.compile(layer.forward, dynamic=True)
        return self.layers is not None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode for the length of a with statement."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def check_taps(self, taps: Taps) -> None:
        """Raise ValueError where this model has not got the layers or the attention that `taps` asks for."""
        family = self.model.config.model_type
        deepest = max(taps.hidden | taps.attention, default=0)
        if deepest > self.num_hidden_layers:
            raise ValueError(f"layer {deepest} is asked for: this {family} has {self.num_hidden_layers} layers")
        if taps.attention and not self.packs:
            raise ValueError(
                f"the attention of {family} cannot be captured: it, or its head, does not go through transformers' "
                "attention interface as BERT's does. The attention and relation losses need it; hidden, embedding, "
                "soft and hard still work"
            )

    def _packed(self, batch: Batch, taps: Taps) -> Captured:
        recorder = Recorder(Bounds(batch.cu_seqlens, batch.max_seqlen), taps)
        hidden_states = self._run_packed(batch, recorder, output_hidden_states=bool(taps.hidden))
        if taps.hidden and len(hidden_states) != recorder.layers_seen + 1:
            family = self.model.config.model_type
            raise RuntimeError(f"{family} gave {len(hidden_states)} hidden states of {recorder.layers_seen} layers")
        captured = recorder.captured
        captured.hidden = {layer: hidden_states[layer][0] for layer in taps.hidden}
        if taps.logits:
            assert self.kind is not None, "forward refuses logits without a head"
            captured.logits = head_logits(self.kind, self.model, hidden_states[-1][0], recorder.bounds, batch.labelled)
        return captured

    def _run_packed(self, batch: Batch, recorder: Recorder, output_hidden_states: bool) -> tuple[Tensor, ...]:
        """All hidden states ``(1, T, D)``, or the last alone."""
        inputs = {"input_ids": batch.input_ids[None], "position_ids": batch.position_ids[None] + self.position_offset}
        if self.has_token_types:
            inputs["token_type_ids"] = batch.token_type_ids[None]
        output = self.model.base_model(**inputs, output_hidden_states=output_hidden_states, recorder=recorder)
        return output.hidden_states if output_hidden_states else (output.last_hidden_state,)

    def _padded(self, batch: Batch, taps: Taps) -> Captured:
        bounds = Bounds(batch.cu_seqlens, batch.max_seqlen)
        index, real = bounds.padded_index
        pad_token_id = self.model.config.pad_token_id or 0
        inputs = {"input_ids": batch.input_ids[index].masked_fill(~real, pad_token_id), "attention_mask": real.long()}
        if self.has_token_types:
            inputs["token_type_ids"] = batch.token_type_ids[index].masked_fill(~real, 0)
        output = self.model(**inputs, output_hidden_states=bool(taps.hidden))
        rows = bounds.packed_index(batch.num_tokens)
        hidden = {layer: output.hidden_states[layer].flatten(0, 1)[rows] for layer in taps.hidden}
        logits = None
        if taps.logits and self.kind == "span":
            logits = torch.stack([output.start_logits, output.end_logits], dim=-1).flatten(0, 1)[rows]
        elif taps.logits and self.kind in ("tagging", "masked"):
            logits = output.logits.flatten(0, 1)[rows if batch.labelled is None else rows[batch.labelled]]
        elif taps.logits:
            logits = output.logits
        return Captured(hidden=hidden, logits=logits)

    @torch.no_grad()
    def _probe(self) -> bool:
        """Whether every layer calls our attention function, and packing two sequences leaves both as they are alone."""
        parameters = inspect.signature(self.model.base_model.forward).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters) or "position_ids" not in {p.name for p in parameters}:
            return False
        with self.evaluating():
            (together, layers_seen), (first, _), (second, _) = map(self._probe_run, ([[3, 4], [5]], [[3, 4]], [[5]]))
        alone = torch.cat([first, second])
        return layers_seen == self.num_hidden_layers and torch.allclose(together, alone, rtol=1e-2, atol=1e-2)

    def _probe_run(self, texts: list[list[int]]) -> tuple[Tensor, int]:
        """Last hidden states ``(T, D)`` of a packed batch, and how many layers called our attention function."""
        lengths = [len(text) for text in texts]
        ids = torch.cat([torch.tensor(text) for text in texts]) % self.vocab_size
        batch = Batch(
            input_ids=ids,
            position_ids=torch.cat([torch.arange(n) for n in lengths]),
            token_type_ids=torch.zeros_like(ids),
            cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
            max_seqlen=max(lengths),
        ).to(self.model.device)
        recorder = Recorder(Bounds(batch.cu_seqlens, batch.max_seqlen), Taps())
        # transformers hooks into the layers that there are when hidden states are first asked for
        return self._run_packed(batch, recorder, output_hidden_states=True)[-1][0], recorder.layers_seen
