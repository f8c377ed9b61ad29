"""Layer maps: which teacher layer each student layer learns from. Layers count from 1."""

from __future__ import annotations

from itertools import pairwise

LayerMap = tuple[tuple[int, int], ...]


def uniform_layers(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """Teacher layer ``ceil(m N / M)`` of every student layer m (TinyBERT): 12 to 4 gives 3, 6, 9, 12."""
    return tuple(-(-m * teacher_layers // student_layers) for m in range(1, student_layers + 1))


def choose_layers(text: str, student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """The teacher layer each student layer starts from.

    Args:
        text: uniform, as `uniform_layers`; first, 1..M; last, N-M+1..N; or a list such as "1,3,6".
        student_layers: M.
        teacher_layers: N.

    Raises:
        ValueError: syntax, a layer that does not exist, a list that does not rise or is not M long.
    """
    M, N = student_layers, teacher_layers
    if text == "uniform":
        return uniform_layers(M, N)
    if text in ("first", "last"):
        start = 1 if text == "first" else N - M + 1
        return tuple(range(start, start + M))
    try:
        layers = tuple(int(layer) for layer in text.split(","))
    except ValueError:
        raise ValueError(f'init_layers {text!r} is not uniform, first, last or a list such as "1,3,6"') from None
    if len(layers) != M or any(a >= b for a, b in pairwise(layers)) or not 1 <= layers[0] <= layers[-1] <= N:
        raise ValueError(f"init_layers {text!r} must name {M} of the teacher's {N} layers, in rising order")
    return layers


def parse_layer_map(text: str, student_layers: int, teacher_layers: int) -> LayerMap:
    """Pairs (student layer, teacher layer), from a rule's name or written out.

    Args:
        text: uniform, ``g(m) = ceil(m N / M)`` for m = 1..M (TinyBERT); skip, ``g(m) = m (N // M)`` for m = 1..M-1
            (PKD-Skip: 12 to 6 gives 2, 4, 6, 8, 10); last, ``g(m) = N - M + m`` for m = 1..M-1 (PKD-Last: 7..11);
            top, ``g(m) = N - M + m``, and bottom, ``g(m) = m``, for m = 1..M (TinyBERT, "Effects of Mapping
            Function"); or pairs such as "1:3,2:6".
        student_layers: M.
        teacher_layers: N.

    Raises:
        ValueError: syntax, a layer that does not exist, a student layer named twice, a rule that maps nothing.
    """
    M, N = student_layers, teacher_layers
    inner = range(1, M)
    if text == "uniform":
        pairs = tuple(zip(range(1, M + 1), uniform_layers(M, N), strict=True))
    elif text == "skip":
        pairs = tuple((m, m * (N // M)) for m in inner)
    elif text == "last":
        pairs = tuple((m, N - M + m) for m in inner)
    elif text == "top":
        pairs = tuple((m, N - M + m) for m in range(1, M + 1))
    elif text == "bottom":
        pairs = tuple((m, m) for m in range(1, M + 1))
    else:
        pairs = _parse_pairs(text)
    if not pairs:
        raise ValueError(f"layer map {text!r} maps no layer of a student with {M}: use uniform")
    for student, teacher in pairs:
        if not (1 <= student <= M and 1 <= teacher <= N):
            raise ValueError(
                f"layer map {text!r} pairs {student}:{teacher}, but the student has {M} layers and the teacher {N}"
            )
    named = [student for student, _ in pairs]
    if len(set(named)) < len(named):
        raise ValueError(f"layer map {text!r} names a student layer twice")
    return tuple(sorted(pairs))


def _parse_pairs(text: str) -> LayerMap:
    try:
        split = [pair.split(":") for pair in text.split(",")]
        return tuple((int(student), int(teacher)) for student, teacher in split)
    except ValueError:
        raise ValueError(
            f'layer map {text!r} is not uniform, skip, last, top, bottom or pairs such as "1:3,2:6"'
        ) from None


def format_layer_map(pairs: LayerMap, student_layers: int, teacher_layers: int) -> str:
    """The map as a small table, one line for each student layer, to be read before training starts."""
    teacher_of = dict(pairs)
    lines = [f"student layer (of {student_layers}) <- teacher layer (of {teacher_layers})"]
    lines += [f"{m:>7} <- {teacher_of.get(m, '-')}" for m in range(1, student_layers + 1)]
    return "\n".join(lines)
