"""Make a student: the teacher's architecture in another shape, with random weights or the teacher's own."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig

from fastdistill.models.capture import ATTENTION
from fastdistill.models.encoder import Encoder
from fastdistill.models.families import dropout_names, intermediate_size_name
from fastdistill.models.layermap import choose_layers
from fastdistill.models.reduction import lacks_pooler, reduce_weights
from fastdistill.recipe import Student

PRESETS = {
    None: Student(),
    "tinybert4": Student(num_hidden_layers=4, hidden_size=312, intermediate_size=1200, num_attention_heads=12),
    "tinybert6": Student(num_hidden_layers=6, hidden_size=768, intermediate_size=3072, num_attention_heads=12),
}


def make_student(teacher: Encoder, spec: Student, seed: int) -> Encoder:
    """A headless student of the teacher's family, in the shape that `spec` names and eval mode.

    With init=teacher and a shape that differs in depth alone, layers are copied exactly; else they are reduced.

    Raises:
        ValueError: a width that its heads do not divide; options beside a path; init=teacher for a student larger
            than the teacher, or of a family that cannot be reduced; a vocabulary other than the teacher's.
    """
    if spec.path is not None:
        return _load(teacher, spec, spec.path)
    config = _student_config(teacher, spec)
    if spec.init == "teacher":
        _check_smaller(teacher.model.config, config)
    deeper = config.num_hidden_layers > teacher.num_hidden_layers
    rule = "uniform" if deeper else spec.init_layers
    layers = choose_layers(rule, config.num_hidden_layers, teacher.num_hidden_layers)
    if getattr(config, "layer_types", None):  # ModernBERT: a layer stays local or global where it goes
        config.layer_types = [teacher.model.config.layer_types[layer - 1] for layer in layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = Encoder(AutoModel.from_config(config, attn_implementation=ATTENTION).eval())
    if spec.init == "teacher":
        same_shape = _shape(config)[1:] == _shape(teacher.model.config)[1:]
        (_copy_layers if same_shape else reduce_weights)(teacher, student, layers)
    return student


def _load(teacher: Encoder, spec: Student, path: str) -> Encoder:
    if spec != Student(path=path):
        raise ValueError(f"student.path={path} sets shape and weights: leave the other student options alone")
    student = Encoder.load(path)
    if student.vocab_size != teacher.vocab_size:
        raise ValueError(
            f"the student {path} has a vocabulary of {student.vocab_size}, the teacher one of {teacher.vocab_size}: "
            "both must read the same token ids"
        )
    return student


def _shape(config: PretrainedConfig) -> tuple[int, int, int, int]:
    """Layers, width, FFN width, heads."""
    ffn = getattr(config, intermediate_size_name(config))
    return config.num_hidden_layers, config.hidden_size, ffn, config.num_attention_heads


def _student_config(teacher: Encoder, spec: Student) -> PretrainedConfig:
    preset, config = PRESETS[spec.preset], copy.deepcopy(teacher.model.config)
    layers, width_t, ffn_t, heads = _shape(config)
    width = spec.hidden_size or preset.hidden_size or width_t
    heads = spec.num_attention_heads or preset.num_attention_heads or heads
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"):
        if (value := getattr(spec, name)) is not None and value < 1:
            raise ValueError(f"student.{name} is {value}: it must be 1 or more")
    if width % heads:
        raise ValueError(f"hidden_size {width} is not divisible by num_attention_heads {heads}")
    for name in ("embedding_size", "pooler_hidden_size"):  # of ELECTRA, of DeBERTa: as wide as the model they stay so
        if getattr(config, name, None) == width_t:
            setattr(config, name, width)
    config.num_hidden_layers = spec.num_hidden_layers or preset.num_hidden_layers or layers
    config.hidden_size = width
    config.num_attention_heads = heads
    ffn = spec.intermediate_size or preset.intermediate_size or round(ffn_t / width_t * width)
    setattr(config, intermediate_size_name(config), ffn)
    if spec.dropout is not None:
        if not 0 <= spec.dropout < 1:
            raise ValueError(f"student.dropout is {spec.dropout}: it must be from 0 to below 1")
        for name in dropout_names(config):
            setattr(config, name, spec.dropout)
    return config


def _check_smaller(teacher: PretrainedConfig, student: PretrainedConfig) -> None:
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    for name, theirs, ours in zip(names, _shape(teacher), _shape(student), strict=True):
        if ours > theirs:
            raise ValueError(f"{name} {ours} is larger than the teacher's {theirs}: such a student needs init=random")


@torch.no_grad()
def _copy_layers(teacher: Encoder, student: Encoder, layers: tuple[int, ...]) -> None:
    source = teacher.model.base_model.state_dict()
    stack = _layer_stack(teacher)
    for name, weight in student.model.state_dict().items():
        for position, layer in enumerate(layers):
            if stack is not None and name.startswith(f"{stack}.{position}."):
                name = name.replace(f"{stack}.{position}.", f"{stack}.{layer - 1}.", 1)
                break
        if not lacks_pooler(name, source):
            weight.copy_(source[name])


@torch.no_grad()
def copy_head(teacher: Encoder, student: Encoder) -> None:
    """Start the student's head from the teacher's of the same kind, where the shapes of a weight agree.

    Weights that the head shares with the embeddings stay the student's own.
    """
    own, source = student.model.base_model.state_dict(), teacher.model.state_dict()
    shared = {weight.data_ptr() for weight in own.values()}
    for name, weight in student.model.state_dict().items():
        if weight.data_ptr() not in shared and name in source and source[name].shape == weight.shape:
            weight.copy_(source[name])


def _layer_stack(encoder: Encoder) -> str | None:
    """Name of the list that holds the layers; None for ALBERT, whose layers are one."""
    modules = encoder.model.base_model.named_modules()
    lists = (name for name, module in modules if isinstance(module, nn.ModuleList) and "albert" not in name)
    return next(lists, None)
