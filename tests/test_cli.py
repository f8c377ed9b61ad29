"""The command line: overrides, YAML, strict keys with a hint, and answers before torch is imported."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdistill import CONTROL, ERNIE_TINY, FINETUNE, Corpus, Recipe, Student, Task, Teacher, cli, ranks
from fastdistill.cli import overridden, parse

ROOT = Path(__file__).parent.parent
RECIPE = Recipe(Teacher(), Student(), Corpus(), Task(), FINETUNE, ERNIE_TINY, CONTROL)


def parsed(*argv: str) -> Recipe:
    return parse(RECIPE, list(argv), "recipes.x", "a test")[0]


def test_defaults_are_the_recipe() -> None:
    assert parsed() == RECIPE


def test_a_lack_of_memory_is_said_in_a_line_and_other_errors_keep_their_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for lacking in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError("no room")):
        with pytest.raises(SystemExit, match="2"), cli._errors_in_one_line("it goes on"):
            raise lacking
        said = f"error: out of memory ({lacking}): lower tokens_per_batch or max_length, or free some\n"
        assert capsys.readouterr().err == said
    with pytest.raises(SystemExit, match="2"), cli._errors_in_one_line("it goes on"):
        raise torch.OutOfMemoryError("CUDA out of memory") from ranks.ToldError()
    assert capsys.readouterr().err == ""  # rank 0 has said it
    with pytest.raises(RuntimeError, match="a mistake of ours"), cli._errors_in_one_line("it goes on"):
        raise RuntimeError("a mistake of ours")


def test_nested_overrides_change_only_what_they_name() -> None:
    recipe = parsed("--tsd.losses.soft", "2.5", "--student.num_hidden_layers", "4", "--output_dir", "elsewhere")
    tsd = dataclasses.replace(ERNIE_TINY["tsd"], losses=dataclasses.replace(ERNIE_TINY["tsd"].losses, soft=2.5))
    expected = dataclasses.replace(
        RECIPE, stages=ERNIE_TINY | {"tsd": tsd}, student=Student(num_hidden_layers=4), output_dir="elsewhere"
    )
    assert recipe == expected


def test_command_line_wins_over_yaml(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 7\ntsd:\n  epochs: 9\n  optim:\n    learning_rate: 1e-3\n")
    recipe = parsed("--config", str(path), "--tsd.epochs", "3")
    assert (recipe.seed, recipe.stages["tsd"].epochs, recipe.stages["tsd"].optim.learning_rate) == (7, 3, 1e-3)


def test_steps_replace_the_default_epochs_and_epochs_the_default_steps() -> None:
    assert (parsed("--gd.steps", "5").stages["gd"].steps, parsed("--gd.steps", "5").stages["gd"].epochs) == (5, None)
    short = dataclasses.replace(RECIPE, stages={"gd": dataclasses.replace(ERNIE_TINY["gd"], epochs=None, steps=5)})
    gd = parse(short, ["--gd.epochs", "2"], "recipes.x", "")[0].stages["gd"]
    assert (gd.steps, gd.epochs) == (None, 2)


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--tsd.epoch", "3"], "tsd.epochs"),
        (["--studnt.hidden_size", "3"], "student.hidden_size"),
        (["--outptu_dir", "x"], "output_dir"),
        (["--tds.losses.soft", "1"], "tsd.losses.soft"),
    ],
)
def test_unknown_option_is_refused_with_the_nearest_name(
    argv: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed(*argv)
    assert stop.value.code == 2
    assert f"did you mean {hint}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("yaml", "hint"),
    [
        ("tsd:\n  epochz: 3\n", "tsd.epochs"),
        ("tsd:\n  losses:\n    sofft: 3\n", "tsd.losses.soft"),
        ("studnt:\n  path: x\n", "student"),
        ("sead: 1\n", "seed"),
    ],
)
def test_unknown_yaml_key_is_refused_with_the_nearest_name(
    yaml: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(yaml)
    with pytest.raises(SystemExit) as stop:
        parsed("--config", str(tmp_path / "run.yaml"))
    assert stop.value.code == 2
    assert f"did you mean {hint}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--task.metric", "acuracy"], "task.metric is 'acuracy': choose from accuracy, .*; did you mean accuracy?"),
        (["--student.init", "teachr"], "student.init is 'teachr': choose from teacher, random; did you mean teacher?"),
        (["--seed", "x"], "seed is 'x': give a whole number"),
        (["--task.max_length", "long"], "task.max_length is 'long': give a whole number"),
        (["--tsd.losses.soft", "a lot"], "tsd.losses.soft is 'a lot': give a number"),
        (["--task.label_names", "3"], "task.label_names is '3': give a list of texts, such as"),
        (["--task.label_names", "a"], "task.label_names is 'a': give a list of texts, such as"),
        (["--task.label_names", "[1, 0]"], r"task.label_names is '\[1, 0\]': give a list of texts, such as"),
        (["--teacher.weights", "[a]"], """teacher.weights is "\\['a'\\]": give a list of numbers"""),
        (["--sweep", "3"], "sweep is '3': give a mapping of names to lists, no name twice, such as {a:"),
        (
            ["--sweep", '{"tsd.epochs": [3], "tsd.epochs": [4]}'],
            r"sweep is '{\"tsd.epochs\": \[3\], .*}': give a mapping of names to lists, no name twice, such as",
        ),
        (
            ["--sweep", "{tsd.epochs: 3}"],
            """sweep is "{'tsd.epochs': 3}": give a mapping of names to lists""",
        ),
        (["--tsd", "5"], "tsd is '5': it is a group of options, give some"),
        (["--assistant", "5"], "assistant is '5': it is a group of options, give some"),
        (["--assistant.num_hidden_layers", "x"], "assistant: num_hidden_layers is 'x': give a whole number"),
        (
            ["--assistant.hiden_size", "3"],
            "assistant: .*'hiden_size' is not accepted; did you mean hidden_size?$",
        ),
    ],
)
def test_a_value_that_an_option_cannot_have_is_told_in_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*argv)
    first, _, rest = capsys.readouterr().err.partition("\n")
    assert re.match(f"error: {said}".replace("?", r"\?"), first)
    assert rest.startswith("see python -m")


@pytest.mark.parametrize(
    ("yaml", "name"),
    [
        ("tsd: {steps: 1}\nseed: 1\ntsd: {epochs: 2}\n", "tsd"),
        ("tsd:\n  losses:\n    soft: 1\n    soft: 2\n", "soft"),
        ('sweep: {"tsd.steps": [3], "tsd.steps": [4]}\n', "tsd.steps"),
    ],
)
def test_a_name_that_a_file_gives_twice_is_refused(
    yaml: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(yaml)
    with pytest.raises(SystemExit):
        parsed("--config", str(tmp_path / "run.yaml"))
    assert f"{name} is given twice: leave one out" in capsys.readouterr().err


@pytest.mark.parametrize("group", ["tsd", "teacher", "gd.losses"])
@pytest.mark.parametrize("value", ["null", "[1, 2]", "3"])
def test_group_that_is_a_value_is_refused(
    group: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outer, _, inner = group.partition(".")
    (tmp_path / "run.yaml").write_text(f"{outer}: {{{inner}: {value}}}" if inner else f"{outer}: {value}")
    with pytest.raises(SystemExit) as stop:
        parsed("--config", str(tmp_path / "run.yaml"))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert group in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "argv", [["--tsd.losses.soft", "abc"], ["--student.preset", "tinybert5"], ["--config", "missing.yaml"]]
)
def test_bad_value_is_refused_and_named(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed(*argv)
    assert stop.value.code == 2
    assert argv[1] in capsys.readouterr().err


def test_overridden_is_what_the_same_yaml_gives(tmp_path: Path) -> None:
    yaml = {"tsd": {"epochs": 2, "losses": {"soft": 0.5}}, "gd": {"steps": 7}, "student": {"init": "random"}, "seed": 3}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(yaml))
    assert overridden(RECIPE, yaml) == parsed("--config", str(path))
    assert overridden(RECIPE, {}) == RECIPE


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tsd": {"losses": {"sofft": 1}}}, "did you mean tsd.losses.soft"),
        ({"tds": {"steps": 1}}, "did you mean tsd"),
        ({"tsd": {"steps": "many"}}, "tsd.steps"),
        ({"student": {"init": "none"}}, "student.init"),
        ({"tsd": 3}, "tsd"),
    ],
)
def test_overridden_refuses_with_an_error_that_can_be_caught(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overridden(RECIPE, values)


def test_print_config_is_a_yaml_that_gives_the_same_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed("--tsd.epochs", "3", "--print_config")
    assert stop.value.code == 0
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    assert parsed("--config", str(tmp_path / "run.yaml")) == parsed("--tsd.epochs", "3")


def test_help_has_a_line_for_every_option_and_imports_no_torch() -> None:
    program = (
        "import sys, runpy\nsys.argv = ['x', '--help']\n"
        "try:\n    runpy.run_module('recipes.ernie_tiny', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "import json; heavy = {'torch', 'transformers', 'datasets', 'sklearn'}\n"
        "print('MODULES', json.dumps(sorted(heavy & sys.modules.keys())))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    text, _, modules = done.stdout.partition("MODULES ")
    assert json.loads(modules) == []
    for option in ("--tsd.losses.soft", "--gd.optim.learning_rate", "--student.preset", "--resume", "--from_stage"):
        line = next(i for i, line in enumerate(text.splitlines()) if line.strip().startswith(option + " "))
        described = " ".join(text.splitlines()[line : line + 3])
        assert len(described.split()) > 4, described


def test_a_mode_brings_other_defaults_and_overrides_win(tmp_path: Path) -> None:
    other = dataclasses.replace(RECIPE, seed=7, precision="fp32")
    recipe, _ = parse(RECIPE, ["--seed", "9", "--paper_mode"], "recipes.x", "", {"paper_mode": other})
    assert recipe == dataclasses.replace(other, seed=9)
    recipe, _ = parse(RECIPE, ["--seed", "9"], "recipes.x", "", {"paper_mode": other})
    assert recipe == dataclasses.replace(RECIPE, seed=9)
    config = tmp_path / "mode.yaml"
    config.write_text("paper_mode: true\n")
    assert parse(RECIPE, ["--config", str(config)], "recipes.x", "", {"paper_mode": other})[0] == other


def test_sweep_is_read(tmp_path: Path) -> None:
    _, config = parse(RECIPE, ["--sweep", '{"tsd.losses.temperature": [1, 2.5]}'], "recipes.x", "")
    assert config.sweep == {"tsd.losses.temperature": [1, 2.5]}
    file = tmp_path / "sweep.yaml"
    file.write_text("sweep:\n  tsd.losses.soft,tsd.losses.hard: [[1, 0], [0.5, 0.5]]\n")
    _, config = parse(RECIPE, ["--config", str(file)], "recipes.x", "")
    assert config.sweep == {"tsd.losses.soft,tsd.losses.hard": [[1, 0], [0.5, 0.5]]}


def test_assistant_is_a_group_of_options() -> None:
    recipe, _ = parse(RECIPE, ["--assistant.num_hidden_layers", "3"], "recipes.x", "")
    assert recipe.assistant == Student(num_hidden_layers=3)


def test_lists_of_teachers() -> None:
    recipe, _ = parse(RECIPE, ["--teacher.others", "[a, b]", "--teacher.weights", "[1, 2, 0.5]"], "recipes.x", "")
    assert (recipe.teacher.others, recipe.teacher.weights) == (("a", "b"), (1.0, 2.0, 0.5))
