"""The page of results says what the JSON holds."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench.quality import page


def cell(score: float, sd: float | None, seeds: list[int], verdict: str | None = None) -> dict[str, Any]:
    against = verdict and {"seeds": seeds, "difference": 0.031, "low": 0.012, "high": 0.05, "verdict": verdict}
    return {"seeds": seeds, "rates": 2, "score": score, "sd": sd, "retention": 0.975, "against": against}


FOUND: dict[str, Any] = {
    "experiment": "small",
    "config": {
        "teacher": {"path": "teachers/big", "learning_rates": [2e-5, 1e-4]},
        "learning_rates": [5e-5, 2e-4],
        "general": {"path": "text/wiki.txt"},
        "budget": {
            "general_steps": 1000, "general_tokens": 2048, "task_steps": {"rte": 600, "stsb": 700}, "task_tokens": 512,
        },
        "methods": {"control": {"title": "gold labels"}, "tiny": {}, "other": {}},
    },
    "machines": ["AMD EPYC, 2 threads"],
    "versions": [{"torch": "2.13.0", "transformers": "5.14.0"}],
    "tasks": {
        "rte": {
            "teacher_scores": [0.7, 0.72],
            "metric": "accuracy",
            "test": {"rows": 277, "origin": "validation"},
            "constant": 0.527,
            "teacher": {"score": 0.72, "scores": {}, "learning_rate": 1e-4, "trials": {}},
        },
        "stsb": {
            "teacher_scores": [0.8],
            "metric": "pearson",
            "test": {"rows": 1500, "origin": "test", "in train": 1200},
            "constant": 0.0,
        },
    },
    "tables": {
        "methods": {
            "seeds": [1, 2],
            "against": "control",
            "tasks": ["rte", "stsb"],
            "students": {
                "4x384": {
                    "control": {
                        "parameters": [{"teacher": 33_360_000, "student": 19_160_000}],
                        "steps": [{"general": 0, "task": 600}],
                        "tasks": {"rte": cell(0.6, 0.012, [1, 2]), "stsb": cell(0.7, None, [1])},
                        "average": cell(0.65, None, [1]),
                    },
                    "tiny": {
                        "parameters": [{"teacher": 33_360_000, "student": 19_160_000}],
                        "steps": [{"general": 1000, "task": 600}],
                        "tasks": {
                            "rte": cell(0.631, 0.02, [1, 2], "BEATS"),
                            "stsb": cell(0.731, 0.0, [1, 2], "INCONCLUSIVE"),
                        },
                        "average": cell(0.681, 0.01, [1, 2], "BEATS"),
                    },
                    "other": {"parameters": [], "steps": [], "tasks": {}, "average": None},
                }
            },
        }
    },
    "runs": [],
}  # fmt: skip


SCORES = [
    "| | general steps | rte, accuracy | stsb, Pearson | average |",
    "|---|---:|---:|---:|---:|",
    "| teacher | | 71.0 | 80.0 | 75.5 |",
    "| always the same answer | | 52.7 | 0.0 | 26.4 |",
    "| gold labels | 0 | 60.0 ± 1.2 (97.5 %) | 70.0 (97.5 %; 1 of 2 seeds) | 65.0 (97.5 %; 1 of 2 seeds) |",
    "| tiny | 1,000 | 63.1 ± 2.0 (97.5 %) | 73.1 ± 0.0 (97.5 %) | 68.1 ± 1.0 (97.5 %) |",
]


def test_scores_and_verdicts() -> None:
    text = page.section(FOUND)
    start = text.index("### methods")
    assert text[start:].split("\n") == [
        "### methods, student 4x384",
        "",
        "2 seeds; 19.2M parameters, the teacher has 33.4M.",
        "",
        *SCORES,
        "",
        "| against gold labels | rte | stsb | average |",
        "|---|---|---|---|",
        "| tiny | BEATS +3.1 (+1.2 to +5.0) | INCONCLUSIVE +3.1 (+1.2 to +5.0) | BEATS +3.1 (+1.2 to +5.0) |",
        "",
        "Not run: other.",
        "",
    ]


def test_scores_of_the_methods_alone() -> None:
    some = copy.deepcopy(FOUND)
    rows = some["tables"]["methods"]["students"]["4x384"]
    some["tables"]["methods"]["students"]["4x192"] = {"control": rows["control"], "tiny": rows["other"]}
    assert page.methods(some).split("\n") == [
        "Student 4x384. 2 seeds; 19.2M parameters, the teacher has 33.4M.",
        "",
        *SCORES,
    ]


def test_tasks_that_nobody_ran_have_no_column_and_are_named() -> None:
    part = copy.deepcopy(FOUND)
    for row in part["tables"]["methods"]["students"]["4x384"].values():
        row["tasks"].pop("stsb", None)
    text = page.section(part)
    assert "| | general steps | rte, accuracy |\n|---|---:|---:|\n| teacher | | 71.0 |\n" in text
    assert "| tiny | 1,000 | 63.1 ± 2.0 (97.5 %) |\n\n| against gold labels | rte |\n|---|---|\n" in text
    assert text.endswith("\n\nNot run: stsb; other.\n")


def test_rates_that_came_to_nothing_are_said() -> None:
    part = copy.deepcopy(FOUND)
    part["tables"]["methods"]["students"]["4x384"]["tiny"]["tasks"]["rte"]["rates"] = 1
    assert "| 63.1 ± 2.0 (97.5 %; 1 of 2 rates diverged) |" in page.section(part)


def test_verdicts_of_fewer_seeds_say_so() -> None:
    part = copy.deepcopy(FOUND)
    part["tables"]["methods"]["students"]["4x384"]["tiny"]["tasks"]["rte"]["against"]["seeds"] = [2]
    assert "| BEATS +3.1 (+1.2 to +5.0; 1 of 2 seeds) | INCONCLUSIVE +3.1 (+1.2 to +5.0) |" in page.section(part)


def test_a_table_of_nothing_is_no_table() -> None:
    nothing = copy.deepcopy(FOUND)
    for row in nothing["tables"]["methods"]["students"]["4x384"].values():
        row |= {"steps": [], "tasks": {}, "average": None}
    text = page.section(nothing)
    assert text.endswith("\n\nTables not run: methods with 4x384.\n")
    assert "|" not in text


def test_a_table_of_the_control_alone_is_no_table() -> None:
    alone = copy.deepcopy(FOUND)
    alone["tables"]["methods"]["students"]["4x384"]["tiny"] |= {"steps": [], "tasks": {}, "average": None}
    assert page.section(alone).endswith("\n\nTables not run: methods with 4x384.\n")


def test_the_setting_is_said() -> None:
    text = page.section(FOUND)
    mixed = copy.deepcopy(FOUND) | {
        "versions": [
            FOUND["versions"][0] | {"numpy": "1"},
            *FOUND["versions"],
            {"torch": "2.14.0", "transformers": "5.15.0"},
        ]
    }
    assert "threads; torch 2.13.0, transformers 5.14.0; torch 2.14.0, transformers 5.15.0. Teacher" in page.section(
        mixed
    )
    assert "AMD EPYC, 2 threads; torch 2.13.0, transformers 5.14.0. Teacher big, general text wiki.txt;" in text
    assert "1,000 steps of 2,048 tokens on general text, on the tasks rte 600, stsb 700 of 512 tokens." in text
    assert "Learning rates tried: 2e-05, 0.0001 for teachers, 5e-05, 0.0002 for last stages." in text
    assert "Teachers (and the rate chosen): rte 72.0 (0.0001)." in text
    assert "Scored rows: rte 277 of validation, stsb 1,500 of test, 1,200 of them in train word for word." in text
    assert "The teacher of rte was fine-tuned more than once" in text
    once = copy.deepcopy(FOUND)
    once["tasks"]["rte"]["teacher_scores"] = [0.72]
    assert "more than once" not in page.section(once)
    once["config"]["general"] = {}
    assert "Teacher big; steps on the tasks rte 600, stsb 700 of 512 tokens." in page.section(once)


def test_the_page_holds_every_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    assert page.render().endswith("that were not run: chinese, full, longer, narrow, small.\n")
    for name in ("small", "full"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"quality_{name}.json").write_text(json.dumps(FOUND | {"experiment": name}))
    text = page.render()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## full", "## small"]
    assert "that were not run: chinese, longer, narrow.\n" in text


def test_rates_at_an_end_of_those_tried_are_said() -> None:
    def run(row: str, task: str, rate: float, **other: Any) -> dict[str, Any]:
        return {"row": row, "student": "4x384", "task": task, "seed": 1, "learning_rate": rate} | best | other

    best: dict[str, Any] = {"validation": 0.9, "trials": [{"validation": 0.9}, {"validation": 0.8}]}
    ends = copy.deepcopy(FOUND)
    ends["config"]["learning_rates"] = [5e-5, 1e-4, 2e-4]
    ends["runs"] = [
        run("control", "rte", 1e-4), run("control", "stsb", 2e-4), run("tiny", "rte", 2e-4), run("tiny", "stsb", 5e-5),
        run("tiny", "stsb", 2e-4, student="4x192"), run("control", "rte", 2e-4, seed=3), run("other", "rte", 2e-4),
    ]  # fmt: skip
    assert (
        "\n\nOf the rates tried, on the validation rows the best was the highest in gold labels (stsb); tiny (rte), "
        "and the lowest in tiny (stsb): one beyond might do better.\n\nNot run: other.\n"
    ) in page.section(ends)
    ends["runs"] = [run("control", "rte", 1e-4), run("tiny", "rte", 5e-5, trials=[{"validation": 0.9}] * 2)]
    assert "Of the rates" not in page.section(ends)
