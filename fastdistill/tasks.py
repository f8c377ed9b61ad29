"""The tasks that have a name, as values: where their data lies, its columns, what the label is, what counts."""

from __future__ import annotations

from fastdistill.recipe import Task

GLUE = "nyu-mll/glue"
CONVERTED = "@refs/convert/parquet"  # of data sets whose main revision is a program, which is never run
NER = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")

SQUAD = Task(
    path="rajpurkar/squad", text="question", pair="context", label="answers", kind="span", metric="f1", max_length=384,
    doc_stride=128,
)  # fmt: skip
SQUAD_V2 = Task(
    path="rajpurkar/squad_v2", text="question", pair="context", label="answers", kind="span", metric="f1",
    max_length=384, doc_stride=128,
)  # fmt: skip

TASKS: dict[str, Task] = {
    "cola": Task(
        path=GLUE, configuration="cola", text="sentence", label="label", kind="classification", metric="matthews",
        label_names=("unacceptable", "acceptable"), max_length=64,
    ),
    "sst2": Task(
        path=GLUE, configuration="sst2", text="sentence", label="label", kind="classification", metric="accuracy",
        label_names=("negative", "positive"), max_length=64,
    ),
    "mrpc": Task(
        path=GLUE, configuration="mrpc", text="sentence1", pair="sentence2", label="label", kind="classification",
        metric="f1", label_names=("not_equivalent", "equivalent"),
    ),
    "stsb": Task(
        path=GLUE, configuration="stsb", text="sentence1", pair="sentence2", label="label", kind="regression",
        metric="pearson",
    ),
    "qqp": Task(
        path=GLUE, configuration="qqp", text="question1", pair="question2", label="label", kind="classification",
        metric="f1", label_names=("not_duplicate", "duplicate"),
    ),
    "mnli": Task(
        path=GLUE, configuration="mnli", text="premise", pair="hypothesis", label="label", kind="classification",
        metric="accuracy", label_names=("entailment", "neutral", "contradiction"),
    ),
    "qnli": Task(
        path=GLUE, configuration="qnli", text="question", pair="sentence", label="label", kind="classification",
        metric="accuracy", label_names=("entailment", "not_entailment"),
    ),
    "rte": Task(
        path=GLUE, configuration="rte", text="sentence1", pair="sentence2", label="label", kind="classification",
        metric="accuracy", label_names=("entailment", "not_entailment"),
    ),
    "wnli": Task(
        path=GLUE, configuration="wnli", text="sentence1", pair="sentence2", label="label", kind="classification",
        metric="accuracy", label_names=("not_entailment", "entailment"), validation_size=100,
    ),
    "squad": SQUAD,
    "squad_v2": SQUAD_V2,
    "conll2003": Task(
        path=f"eriktks/conll2003{CONVERTED}", text="tokens", label="ner_tags", kind="tagging", metric="entity_f1",
        label_names=(*NER, "B-MISC", "I-MISC"),
    ),
    "chnsenticorp": Task(
        path="lansinuote/ChnSentiCorp", text="text", label="label", kind="classification", metric="accuracy",
        label_names=("negative", "positive"), max_length=256,
    ),
    "lcqmc": Task(
        path="C-MTEB/LCQMC", text="sentence1", pair="sentence2", label="score", kind="classification",
        metric="accuracy", label_names=("different", "same"),
    ),
    "xnli": Task(
        path="facebook/xnli", configuration="zh", text="premise", pair="hypothesis", label="label",
        kind="classification", metric="accuracy", label_names=("entailment", "neutral", "contradiction"),
    ),
    "msra_ner": Task(
        path=f"levow/msra_ner{CONVERTED}", text="tokens", label="ner_tags", kind="tagging", metric="entity_f1",
        label_names=NER, max_length=256,
    ),
    "dbqa": Task(
        text="text_a", pair="text_b", label="label", group="qid", kind="classification", metric="mrr",
        label_names=("wrong", "right"), max_length=256,
    ),
}  # fmt: skip
