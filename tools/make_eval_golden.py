#!/usr/bin/env python3
"""Writes what lm-evaluation-harness asks and how it scores, on rows in the files that `esker eval --data` reads.

  python tools/make_eval_golden.py --data eval/tests/data --out eval/tests/golden --docs 4
  python tools/make_eval_golden.py --data DIR --out OUT --docs 0        every row: digests instead of strings

requests.jsonl.gz: a line for each document of each (task, number of shots): the strings of its requests.
results.json: what the harness makes of the answers of a model that exists nowhere (class Fake), by task and group.
With --docs 0, digests.json: for each (task, shots) how many requests, and the SHA-256 of all their strings.
Needs lm-eval 0.4.13 with its math extra, and nltk's punkt for the import of ifeval; esker needs none of them.
"""
import argparse
import copy
import glob
import gzip
import hashlib
import json
import os
import pathlib
import sys
import types

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets

datasets.disable_progress_bars()

# The words that ifeval's own graders need are not needed to ask its questions.
sys.modules.setdefault("lm_eval.tasks.ifeval.instructions_registry", types.ModuleType("instructions_registry"))
sys.modules["lm_eval.tasks.ifeval.instructions_registry"].INSTRUCTION_DICT = {}

from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

STEMS = {
    ("allenai/ai2_arc", "ARC-Easy"): "arc_easy",
    ("allenai/ai2_arc", "ARC-Challenge"): "arc_challenge",
    ("baber/piqa", None): "piqa",
    ("allenai/openbookqa", "main"): "openbookqa",
    ("Rowan/hellaswag", None): "hellaswag",
    ("allenai/winogrande", "winogrande_xl"): "winogrande_xl",
    ("aps/super_glue", "boolq"): "boolq",
    ("EleutherAI/lambada_openai", "default"): "lambada_openai",
    ("openai/gsm8k", "main"): "gsm8k",
    ("google/IFEval", None): "ifeval",
}
MATH = {
    "algebra": "Algebra",
    "counting_and_probability": "Counting & Probability",
    "geometry": "Geometry",
    "intermediate_algebra": "Intermediate Algebra",
    "number_theory": "Number Theory",
    "prealgebra": "Prealgebra",
    "precalculus": "Precalculus",
}
# Task or group, and the numbers of shots; None is the task's own number.
ASKED = [
    ("arc_easy", [None, 5, 25]),
    ("arc_challenge", [None, 25]),
    ("piqa", [None, 3]),
    ("openbookqa", [None, 5]),
    ("hellaswag", [None, 10]),
    ("winogrande", [None, 5]),
    ("boolq", [None, 2]),
    ("lambada_openai", [None, 2]),
    ("mmlu", [None, 2]),
    ("mmlu_abstract_algebra", [5]),
    ("gsm8k", [None, 0, 8]),
    ("ifeval", [None, 3]),
    ("hendrycks_math", [None, 2]),
    ("minerva_math", [None, 0, 2]),
]
DATA = None


def rows_of(stem, split):
    names = [f"{stem}.{split}.jsonl*", f"{stem}.{split}-*.jsonl*", f"{stem}.jsonl*"]
    found = next((sorted(glob.glob(str(DATA / name))) for name in names if glob.glob(str(DATA / name))), None)
    if found is None:
        return None
    opened = gzip.open(found[0], "rt", encoding="utf-8") if found[0].endswith(".gz") else open(found[0], encoding="utf-8")
    with opened as f:
        rows = [json.loads(line) for line in f if line.strip()]
    return [raw(stem, row) for row in rows]


def raw(stem, row):
    """A rendered row of a pool, as the row that renders to it."""
    if "query" not in row:
        return row
    if stem == "hellaswag":
        activity, ctx = row["query"].split(": ", 1)
        return dict(ind=row.get("ind", 0), activity_label=activity, ctx_a=ctx, ctx_b="", ctx=ctx, endings=row["choices"],
                    source_id="", split="train", split_type="", label=str(row["gold"]))
    passage, question = row["query"].removesuffix("?\nAnswer:").split("\nQuestion: ")
    return dict(idx=-1, passage=passage, question=question, label=int(row["choices"][row["gold"]] == "yes"))


def load_dataset(path=None, name=None, **_):
    splits = {}
    for split in ["train", "validation", "test", "dev"]:
        if path == "cais/mmlu":
            rows = rows_of("mmlu", split)
            rows = rows and [{k: r[k] for k in r} for r in rows if r["subject"] == name]
        elif path == "EleutherAI/hendrycks_math":
            rows = rows_of("hendrycks_math", split)
            rows = rows and [r for r in rows if r["type"] == MATH[name]]
        elif path == "google/IFEval" and split == "train":
            rows = rows_of("ifeval", split)
            rows = [dict(r, kwargs=[json.dumps(k) for k in r["kwargs"]]) for r in rows]
        elif path == "google/IFEval":
            rows = None
        else:
            rows = rows_of(STEMS[path, name], split)
        if rows:
            splits[split] = datasets.Dataset.from_list(rows)
    for split in ["train", "validation", "test"]:
        # A split that no file has, but which the harness opens: empty, of the same columns.
        splits.setdefault(split, next(iter(splits.values())).select([]))
    return datasets.DatasetDict(splits)


def fnv(*texts):
    h = 0xCBF29CE484222325
    for byte in "\0".join(texts).encode():
        h = (h ^ byte) * 0x100000001B3 % (1 << 64)
    return h


class Fake(LM):
    """Answers are functions of the strings, so that another program can give the same ones."""

    def loglikelihood(self, requests):
        return [(-((h >> 40) % 50000) / 1000, h % 3 == 0) for h in (fnv(*r.args) for r in requests)]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        out = []
        for r in requests:
            doc = r.doc
            if "solution" in doc:
                texts = [doc["solution"], f"It is ${doc['answer']}$", "none",
                         f"Final Answer: The final answer is ${doc['answer']}$. I hope it is correct."]
            else:
                texts = [doc["answer"], "#### 7 it is, or 12.", "none", doc["answer"].replace("#### ", "it is ")]
            out.append(texts[fnv(r.args[0]) % 4])
        return out


def built(manager, name, shots, docs):
    loaded = manager.load([name])
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if shots is not None and own != 0:
            task.set_config("num_fewshot", shots)
        elif own is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(1234)
        task.build_all_requests(limit=docs or None)
    return loaded


def main():
    global DATA
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=pathlib.Path, required=True)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--docs", type=int, default=4, help="documents a task; 0 = all")
    p.add_argument("--only", default="", help="names of tasks, by comma")
    a = p.parse_args()
    DATA = a.data
    a.out.mkdir(parents=True, exist_ok=True)
    datasets.load_dataset = load_dataset
    manager = TaskManager()
    lines, digests, results = [], [], {}
    for name, counts in ASKED:
        if a.only and name not in a.only.split(","):
            continue
        for shots in counts:
            try:
                loaded = built(manager, name, shots, a.docs)
            except Exception as e:
                print("SKIPPED", name, shots, repr(e)[:200])
                continue
            for task_name, task in loaded["tasks"].items():
                digest, of_doc = hashlib.sha256(), {}
                for r in task.instances:
                    of_doc.setdefault(r.doc_id, []).append([x if isinstance(x, str) else {"until": x["until"], "max_gen_toks": x.get("max_gen_toks", 256)} for x in r.args])
                    for x in r.args:
                        digest.update((x if isinstance(x, str) else "").encode() + b"\0")
                row = {"task": task_name, "shots": shots}
                digests.append(dict(row, requests=len(task.instances), sha256=digest.hexdigest()))
                lines += [dict(row, doc_id=doc, requests=asked) for doc, asked in of_doc.items()]
            if shots is None and name != "ifeval":
                for task in loaded["tasks"].values():
                    # evaluate() draws the examples again.
                    task.set_fewshot_seed(1234)
                scored = evaluator.evaluate(Fake(), loaded, limit=a.docs or None, log_samples=False, bootstrap_iters=1000)
                keep = ["results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples"]
                results[name] = {k: scored[k] for k in keep if k in scored}
    if a.docs:
        with gzip.GzipFile(a.out / "requests.jsonl.gz", "wb", mtime=0) as f:
            f.write("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines).encode())
    else:
        (a.out / "digests.json").write_text(json.dumps(digests, indent=0))
    (a.out / "results.json").write_text(json.dumps(results, indent=0, default=float))


if __name__ == "__main__":
    main()
