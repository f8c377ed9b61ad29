"""Write a student's predictions for GLUE's test rows, as gluebenchmark.com reads them.

    python -m recipes.glue_submission --student out/student --task.name mnli --output_dir submission

Writes submission/MNLI-m.tsv and submission/MNLI-mm.tsv. Of GLUE's own files, in a folder:

    --task.path glue/MNLI --task.text sentence1 --task.pair sentence2
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from functools import partial

from fastdistill import Task


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("recipes.glue_submission", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="folder fine-tuned on the task")
    parser.add_argument("--task.name", required=True, help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli")
    parser.add_argument("--task.path", help="folder with the test file(s), or a single one; default the Hub's")
    parser.add_argument("--task.text", help="column of the (first) texts, default the Hub's")
    parser.add_argument("--task.pair", help="column of the second texts, default the Hub's")
    parser.add_argument("--task.max_length", type=int, help="tokens per example, default the task's")
    parser.add_argument("--output_dir", default="submission", help="where the files go")
    options = vars(parser.parse_args(argv))
    task = Task(**{option.removeprefix("task."): x for option, x in options.items() if option.startswith("task.")})

    from fastdistill.submission import write_submission

    try:
        for path in write_submission(options["student"], task, options["output_dir"], partial(print, file=sys.stderr)):
            print(path)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
