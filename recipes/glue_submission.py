"""Write a student's predictions for GLUE's test rows, as gluebenchmark.com reads them.

    python -m recipes.glue_submission --student out/student --task.name mnli --output_dir submission

Writes submission/MNLI-m.tsv and submission/MNLI-mm.tsv; `--task.path` names local files of the test split(s).
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from fastdistill import Task


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("recipes.glue_submission", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="folder fine-tuned on the task")
    parser.add_argument("--task.name", required=True, help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli")
    parser.add_argument("--task.path", help="folder with the test file(s), default the Hub's data")
    parser.add_argument("--task.max_length", type=int, help="tokens per example, default the task's")
    parser.add_argument("--output_dir", default="submission", help="where the files go")
    options = vars(parser.parse_args(argv))
    task = Task(name=options["task.name"], path=options["task.path"], max_length=options["task.max_length"])

    from fastdistill.submission import write_submission

    try:
        for path in write_submission(options["student"], task, options["output_dir"]):
            print(path)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
