"""Bad input: one clear line that names the value and the remedy, exit code 2, before any work, nothing left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdistill import Recipe, main, run
from tests.bad_cases import CASES, with_stage
from tests.tiny import tiny_recipe

ROOT = Path(__file__).parent.parent
replace = dataclasses.replace


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = CASES[case]
    if case == "no GPU":
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    recipe = change(tiny_recipe(world, tmp_path / "out"), tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(recipe, "", argv=[])
    error = capsys.readouterr().err.splitlines()[-1]  # before it, transformers shows that it saved a case's teacher
    assert stop.value.code == 2, error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert all(word in error for word in expected), error
    assert not (tmp_path / "out").exists(), "something was written before the input was checked"


def test_occupied_output_directory(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    recipe = tiny_recipe(world, tmp_path)
    for argv, expected in (([], "--resume, --overwrite"), (["--overwrite"], "not a run"), (["--resume"], "not a run")):
        with pytest.raises(SystemExit) as stop:
            main(recipe, "", argv=argv)
        assert stop.value.code == 2
        assert expected in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_unwritable_output_directory(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(tiny_recipe(world, Path("/proc/out")), "", argv=[])
    assert stop.value.code == 2
    assert "/proc/out" in capsys.readouterr().err


def test_nan_loss_stops_names_term_stage_and_step_and_keeps_the_checkpoint(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(world, tmp_path / "out")
    recipe = with_stage(recipe, "ged", optim=replace(recipe.stages["ged"].optim, learning_rate=1e25, warmup_ratio=0.0))
    with pytest.raises(SystemExit) as stop:
        main(recipe, "", argv=[])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "stage ged, step 2: the attention loss is" in error
    assert (tmp_path / "out" / "stages" / "gd" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "stages" / "ged").exists()
    # as the message says: a lower learning rate may go on, other changes of what has run may not
    sane = with_stage(recipe, "ged", optim=replace(recipe.stages["ged"].optim, learning_rate=1e-3))
    main(sane, "", argv=["--resume"])
    assert (tmp_path / "out" / "report.json").exists()


FULL_DISK = """
import resource, sys
from pathlib import Path
from fastdistill import main
from tests.tiny import tiny_recipe
from tests.killed_run import kill_at
import fastdistill.checkpoint as checkpoint

limit = int(sys.argv[3])
save = checkpoint.TrainingState.save
def limited(state, folder):
    if state.progress.step == limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    save(state, folder)
checkpoint.TrainingState.save = limited
main(tiny_recipe(Path(sys.argv[1]), Path(sys.argv[2])), "", argv=["--resume"])
"""


def test_full_disk_keeps_the_last_good_checkpoint(world: Path, tmp_path: Path) -> None:
    """A file may not grow past 2,000 bytes when the second checkpoint is written: what a full disk does."""
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}

    def start(limit: int) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", FULL_DISK, str(world), str(out), str(limit)]
        return subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)

    full = start(limit=8)
    assert full.returncode == 2, full.stderr
    assert "could not be written" in full.stderr
    assert "--resume" in full.stderr
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["finetune-00000004"]
    again = start(limit=-1)
    assert again.returncode == 0, again.stderr
    assert json.loads((out / "report.json").read_text())["stages"][-1]["name"] == "tsd"


def test_a_mistake_of_ours_is_not_taken_for_bad_input(world: Path, tmp_path: Path) -> None:
    """What a library raises, without a word of ours, keeps its traceback."""

    def broken(recipe: Recipe) -> Recipe:
        json.loads("{")
        return recipe

    with pytest.raises(json.JSONDecodeError):
        main(tiny_recipe(world, tmp_path / "out"), "", argv=[], prepare=broken)


def test_a_recipe_may_refuse_too() -> None:
    program = (
        "from fastdistill import main\nfrom recipes.ernie_tiny import RECIPE\n"
        "def prepare(recipe):\n    raise ValueError('not this one')\n"
        "main(RECIPE, '', argv=[], prepare=prepare)"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: not this one\n")


@pytest.mark.parametrize("name", ["init", "control", "finetune", "teacher", "Tsd", "a-b"])
def test_reserved_and_odd_names_of_stages(world: Path, tmp_path: Path, name: str) -> None:
    recipe = tiny_recipe(world, tmp_path / "out")
    with pytest.raises(ValueError, match=f"a stage cannot be called '{name}'"):
        run(replace(recipe, stages={name: recipe.stages["tsd"]}))
