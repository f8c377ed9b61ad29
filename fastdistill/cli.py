"""The command line of a recipe: YAML, nested overrides, strict keys. Imports no torch until the recipe is known."""

from __future__ import annotations

import dataclasses
import logging
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jsonargparse import Namespace

from fastdistill.parser import GROUP, Formatter, Parser
from fastdistill.recipe import Recipe, Stage, Student

NONE: Mapping[str, Recipe] = {}
SHAPE = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")  # of a student


def _empty_parser(prog: str, description: str) -> Parser:
    parser = Parser(
        formatter_class=Formatter,
        prog=prog,
        description=description,
        usage=f"python -m {prog} [--config FILE.yaml] [--OPTION VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options below, nested")
    return parser


def make_parser(recipe: Recipe, prog: str, description: str, modes: Mapping[str, Recipe] = NONE) -> Parser:
    """The parser of `recipe`: its values are the defaults, each stage is a group under its own name.

    Each of `modes` is a switch, which `parse` heeds.
    """
    parser = _empty_parser(prog, description)
    parser.add_argument(
        "--resume", type=bool, nargs="?", const=True, default=False, help="continue the run in output_dir"
    )
    parser.add_argument(
        "--overwrite", type=bool, nargs="?", const=True, default=False, help="delete what output_dir holds first"
    )
    parser.add_argument(
        "--from_stage", type=str | None, default=None, help="start at this stage, from the previous stage's directory"
    )
    parser.add_argument(
        "--sweep",
        type=dict[str, list] | None,
        default=None,
        help="run every combination of these values and keep the best on the validation rows, such as "
        "'{\"tsd.losses.temperature\": [1, 2]}'",
    )
    for mode in modes:
        parser.add_argument(
            f"--{mode}", type=bool, nargs="?", const=True, default=False, help="other defaults; see the description"
        )
    parser.add_class_arguments(Recipe, skip={"stages"})
    for name in recipe.stages:
        parser.add_argument(f"--{name}", type=Stage)
    values = dataclasses.asdict(recipe)
    parser.set_defaults(values | values.pop("stages"))
    return parser


def parse(
    recipe: Recipe, argv: list[str] | None, prog: str, description: str, modes: Mapping[str, Recipe] = NONE
) -> tuple[Recipe, Namespace]:
    """The recipe, or that of the mode that `argv` switches on, with the overrides of `argv`; and the run's switches."""
    given = _given(recipe, argv, prog, description, modes)
    if chosen := [mode for mode in modes if given.get(mode)]:
        recipe = modes[chosen[0]]
    recipe = _without_excluded(recipe, given)
    parser = make_parser(recipe, prog, description, modes)
    return _chosen(recipe, parser, _parsed(parser, argv))


def _given(
    recipe: Recipe, argv: list[str] | None, prog: str, description: str, modes: Mapping[str, Recipe]
) -> Namespace:
    """What `argv` says, without the defaults of what it leaves open."""
    argv = sys.argv[1:] if argv is None else argv
    words = [word for word in argv if not word.startswith("--print_config")]
    return _parsed(make_parser(recipe, prog, description, modes), words, defaults=False)


def _parsed(parser: Parser, argv: list[str] | None, *, defaults: bool = True) -> Namespace:
    try:
        return parser.parse_args(argv, defaults=defaults)
    except UnicodeDecodeError as error:
        parser.error(f"the configuration file is not UTF-8 text: {error}")


def overridden(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """`recipe` with the options that `values` holds, nested as in a YAML file.

    Raises:
        ValueError: an option that there is not, or a value that it cannot have.
    """
    parser = make_parser(recipe, "", "")
    parser.exit_on_error = False
    try:
        return _chosen(recipe, parser, parser.parse_object(values))[0]
    except ArgumentError as error:
        raise ValueError(str(error)) from None


def _chosen(recipe: Recipe, parser: Parser, config: Namespace) -> tuple[Recipe, Namespace]:
    """The recipe that the parsed `config` describes, and the run's own switches."""
    config = _instantiated(parser, config)
    names = [f.name for f in dataclasses.fields(Recipe) if f.name != "stages"]
    values = {name: getattr(config, name) for name in names}
    stages = {name: _one_length(getattr(config, name), default) for name, default in recipe.stages.items()}
    values["finetune"] = _one_length(values["finetune"], recipe.finetune)
    return Recipe(**values, stages=stages), config


def _instantiated(parser: Parser, config: Namespace) -> Namespace:
    """Every group of options as the dataclass that it is."""
    groups = {name.rpartition(".")[0] for name in list(parser.get_defaults().keys())} - {""}
    for group in sorted(group for group in groups if not group.endswith("init_args")):  # of an absent assistant
        if not isinstance(value := config.get(group), Namespace):
            parser.error(f"{group} is {value!r}: {GROUP}")
    return parser.instantiate(config)


def _without_excluded(recipe: Recipe, given: Namespace) -> Recipe:
    """`recipe` without its own student options that a given or swept one excludes: a path all others, a preset a
    shape."""
    swept = {name.strip() for names in given.get("sweep") or () for name in names.split(",")}
    student = given.get("student")
    path, preset = (
        f"student.{option}" in swept or (isinstance(student, Mapping | Namespace) and student.get(option) is not None)
        for option in ("path", "preset")
    )
    if path:
        return dataclasses.replace(recipe, student=Student())
    if preset:
        no_shape: dict[str, Any] = dict.fromkeys(SHAPE)
        return dataclasses.replace(recipe, student=dataclasses.replace(recipe.student, **no_shape))
    return recipe


def _one_length(stage: Stage, default: Stage) -> Stage:
    """Epochs and steps exclude each other: where one is given, the other's default goes."""
    if stage.epochs is not None and stage.steps is not None:
        if stage.epochs != default.epochs and stage.steps == default.steps:
            return dataclasses.replace(stage, steps=None)
        if stage.steps != default.steps and stage.epochs == default.epochs:
            return dataclasses.replace(stage, epochs=None)
    return stage


def _raised_here(error: ValueError) -> bool:
    """Whether this package or the recipe itself raised the error, rather than a library that it called."""
    (*_, (frame, _)) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"]).partition(".")[0] in ("fastdistill", "recipes", "__main__")


def main(
    recipe: Recipe,
    description: str | None,
    argv: list[str] | None = None,
    prepare: Callable[[Recipe], Recipe] | None = None,
    modes: Mapping[str, Recipe] = NONE,
) -> Any:
    """Parse the command line and run the recipe; bad input ends with one line on stderr and exit code 2.

    Args:
        recipe: the defaults.
        description: what `--help` says first.
        argv: the command line, default that of the process.
        prepare: completes the recipe once it is parsed, before it runs.
        modes: other defaults by the name of the switch that chooses them.
    """
    recipe, config = parse(recipe, argv, _program(), description or "", modes)

    from fastdistill import ranks

    with _errors_in_one_line("continue with --resume"):
        from fastdistill.runner import run

        ranks.join()
        recipe = ranks.first(lambda: prepare(recipe)) if prepare else recipe
        if config.sweep is not None:
            from fastdistill.sweep import sweep

            if config.from_stage is not None:
                raise ValueError("--sweep and --from_stage exclude each other: give one")
            outcome: Any = sweep(recipe, config.sweep, resume=config.resume, overwrite=config.overwrite)
        else:
            outcome = run(recipe, resume=config.resume, overwrite=config.overwrite, from_stage=config.from_stage)
        ranks.leave()
        return outcome


def command(work: Callable[..., None], description: str | None, argv: list[str] | None = None) -> None:
    """Call `work` with the options of the command line, which are its arguments; bad input ends as in `main`.

    Args:
        work: its docstring describes the options.
        description: what `--help` says first.
        argv: the command line, default that of the process.
    """
    parser = _empty_parser(_program(), description or "")
    names = parser.add_function_arguments(work, as_group=False)
    config = _instantiated(parser, _parsed(parser, argv))
    with _errors_in_one_line("the same command goes on"):
        work(**{name.partition(".")[0]: config[name.partition(".")[0]] for name in names})


def _program() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else "fastdistill"


@contextmanager
def _errors_in_one_line(afterwards: str) -> Iterator[None]:
    """Bad input ends the process with a line on stderr; so does an interruption, and `afterwards` says what then."""
    from fastdistill import ranks
    from fastdistill.machine import lacks_memory

    logging.captureWarnings(True)
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        if isinstance(error, ValueError) and not _raised_here(error):
            raise  # a mistake of ours, not of the input: its traceback is wanted
        if not isinstance(error.__cause__, ranks.ToldError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        if not isinstance(error.__cause__, ranks.ToldError):
            print(
                f"error: out of memory ({error}): lower tokens_per_batch or max_length, or free some", file=sys.stderr
            )
        sys.exit(2)
    except KeyboardInterrupt:
        if ranks.rank() == 0:
            print(f"interrupted: {afterwards}", file=sys.stderr)
        sys.exit(130)
