#!/usr/bin/env python3
"""Asks lm-evaluation-harness 0.4.13 for verdicts, so that eval/src/graders can be held against them.

  python tools/make_grader_cases.py gsm8k|hendrycks|minerva|ifeval --count N [--seed S] [--rows FILE] [--responses FILE]
         [--plain] --out CASES.jsonl.gz

needs `pip install lm-eval[ifeval,math]==0.4.13` and, for ifeval, nltk's punkt_tab. Rows are JSON lines: for gsm8k with
answer and generation, for hendrycks and minerva with solution_boxed and generation (without --rows: pairs made up here),
for ifeval the data set's rows; --responses gives real responses (key, response) to start from. Texts are mutated unless
--plain. The file written has one case a line and is read by eval/tests/graders.rs: the fixtures beside it, and any file
that the variable ESKER_GRADER_CASES names.
"""
import argparse
import gzip
import json
import random
import sys

ATOMS = r"""1 2 3 7 10 12 0.5 .5 1,000 10,000 -3 \frac{1}{2} \frac12 \frac{3}{4} \frac34 \dfrac{5}{6} \tfrac{2}{3} 3/4 -\frac{1}{2}
\sqrt{2} \sqrt2 2\sqrt{3} \sqrt[3]{8} \pi 2\pi 3\pi/4 x x^2 x+1 2x+3 x^{2}-1 (x-1)(x+1) (1,2) [0,1) (-\infty,3] \{1,2,3\} 5\% 50\%
30^\circ 90^{\circ} 12\text{ cm} 7\text{ inches} \text{east} \text{(A)} x=5 y=2x+1 \begin{pmatrix}1\\2\end{pmatrix} 2i+3 e^2
\log 2 \sin x \cos\theta 10^{10} 2^{-3} a^2+b^2 \$5 5.00 \left(3,4\right) 0 -1 100 \infty \frac{x+1}{x-1} \frac{\sqrt{3}}{2}
3+2i \binom{5}{2} 5! |x| \cot x 6\sqrt{2}+1 \frac{a}{b} 1.5 2.25 1:2 k=3 \boxed{4} 3\frac{1}{2} \sqrt{50} 5\sqrt{2} \frac{10}{20}
\frac{2}{4} 0.25 x^2+2x+1 (x+1)^2 \frac{\pi}{4} \sin^2 x+\cos^2 x \ln e \log_2 8 \emptyset \text{even} x\le3 x\in[1,2] 1,2,3 1,-2
\frac{1}{\sqrt{2}} \frac{\sqrt{2}}{2} \mathrm{no} 11_2 2\cdot3 2\times3 6\div2 \overline{AB} \angle{ABC} 8\text{ units}^2""".split()
BITS = ["\\frac", "\\sqrt", "{", "}", "/", "=", "$", "\\$", "\\%", " ", ".", ",", "\\text{ m}", "\\left", "\\right", "\\!", "\\\\",
        "^\\circ", "\n", "-", "1", "2", "x", "\\text{", "0", "(", ")", "\\boxed{", "boxed ", "é", "٣", " .", "{.", "_", "^"]
FRAMES = ["{a}", "${a}$", "The answer is ${a}$.", "x={a}", "We get {a}", "$1+1=2$, so ${a}$",
          "Final Answer: The final answer is ${a}$. I hope it is correct.",
          "Final Answer: The final answer is {a}. I hope it is correct.", "so \\boxed{{{a}}}",
          "Thus the answer is $\\boxed{{{a}}}$."]
SCRAPS = ["*", "**", "***", "******", "* * *", "\n", "\n\n", " ", ".", "!", "?", ",", "\"", "'", "P.S.", "P.P.S", "p. s. ", "[name]",
          "<<Title>>", "- ", "* ", "SECTION 1", "Section 2", "PARAGRAPH 1", "```json", "```", "{}", "My answer is no.", "Mr. Smith",
          "U.S. Army", "e.g. this", "NASA", "I", "don't", "CAN'T", "CANNOT", "\u201cquoted.\u201d", "\u2026", "...", ". . .", "Dr. A. Jones",
          "No. 5", "\u2014", "\u3002", "\u0939\u093f\u0928\u094d\u0926\u0940", "caf\u00e9", "\x1c", "\u00a0", "\u200b", "\U0001f600",
          "Any other questions?", "3.5", "1.", "a.m.", "Inc. The", "(see above.)", "St. Peter", "#", "@", "http://a.b/c", "a@b.cd"]


def rows_of(path):
    with (gzip.open(path, "rt") if path.endswith(".gz") else open(path)) as f:
        return [json.loads(line) for line in f]


def mutate(rng, text, bits, rounds):
    chars = list(text)
    for _ in range(rounds):
        at = rng.randrange(len(chars) + 1)
        kind = rng.randrange(5)
        if kind == 0 and chars:
            del chars[min(at, len(chars) - 1)]
        elif kind == 1:
            end = at + rng.randrange(1, 12)
            chars[at:at] = chars[at:end]
        elif kind == 2 and chars:
            del chars[at : at + rng.randrange(1, 9)]
        else:
            chars[at:at] = list(rng.choice(bits))
    return "".join(chars)


def lines_changed(rng, text):
    lines = text.split("\n")
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(lines))
        kind = rng.randrange(6)
        lines[at : at + 1] = {
            0: [], 1: [lines[at].upper()], 2: [lines[at].lower()], 3: [lines[at], lines[at]],
            4: ["* " + lines[at]], 5: ['"' + lines[at] + '"'],
        }[kind]
        lines = lines or [""]
    return "\n".join(lines)


def pairs(a, rng):
    """Solution and generation of an answer to mathematics."""
    if a.rows:
        for row in rows_of(a.rows):
            yield row.get("solution_boxed") or row["solution"], row["generation"]
    while True:
        gold, got = rng.choice(ATOMS), rng.choice(ATOMS)
        if rng.random() < 0.4:
            got = gold
        if rng.random() < 0.2:
            gold, got = gold + "+" + rng.choice(ATOMS), got + "+" + rng.choice(ATOMS)
        yield "so $\\boxed{" + gold + "}$.", rng.choice(FRAMES).format(a=got)


def gsm8k(a, rng):
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    strict = RegexFilter(r"#### (\-?[0-9\.\,]+)")
    flexible = RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    rows = rows_of(a.rows)

    def equal(x, y):
        drop = [",", "\\$", "(?s).*#### ", "\\.$"]
        return bool(exact_match_hf_evaluate([x], [y], regexes_to_ignore=drop, ignore_case=True)["exact_match"])

    for i in range(a.count):
        row = rows[i] if i < len(rows) else rng.choice(rows)
        text, answer = row["generation"], row["answer"]
        if not a.plain:
            text = mutate(rng, text, ["#### ", "####", "$", ",", ".", "-", "1", "007", " ", "\n", "\0", "é", "٣"], rng.randrange(6))
        s, f = strict.apply([[text]], None)[0][0], flexible.apply([[text]], None)[0][0]
        yield {"grader": "gsm8k", "answer": answer, "generation": text, "strict": s, "flexible": f,
               "strict_match": equal(s, answer), "flexible_match": equal(f, answer)}


def hendrycks(a, rng):
    from lm_eval.tasks.hendrycks_math import utils

    source = pairs(a, rng)
    done = 0
    while done < a.count:
        solution, text = next(source)
        if not a.plain:
            text = mutate(rng, text, BITS, rng.randrange(4))
            solution = mutate(rng, solution, BITS, rng.choice([0, 0, 0, 1]))
        try:
            match = utils.process_results({"solution": solution}, [text])["exact_match"]
        except (AssertionError, TypeError, IndexError):
            match = 0
        done += 1
        yield {"grader": "hendrycks", "solution": solution, "generation": text, "exact_match": bool(match)}


def minerva(a, rng):
    from lm_eval.tasks.minerva_math import utils

    source = pairs(a, rng)
    done = 0
    while done < a.count:
        solution, text = next(source)
        if not a.plain:
            text = mutate(rng, text, BITS, rng.choice([0, 0, 0, 1, 2]))
        try:
            answer = utils.normalize_final_answer(utils.remove_boxed(utils.last_boxed_only_string(solution)))
        except (AssertionError, TypeError, IndexError):
            continue
        result = utils.process_results({"solution": solution, "answer": answer}, [text])
        done += 1
        got = utils.normalize_final_answer(utils.get_unnormalized_answer(text))
        yield {"grader": "minerva", "solution": solution, "generation": text, "gold": answer, "answer": got,
               "exact_match": bool(result["exact_match"]), "math_verify": bool(result["math_verify"])}


def ifeval(a, rng):
    import langdetect
    from lm_eval.tasks.ifeval import utils

    langdetect.DetectorFactory.seed = 0
    rows = rows_of(a.rows)
    responses = {r["key"]: r["response"] for r in rows_of(a.responses)} if a.responses else {}
    texts = list(responses.values()) or [r["prompt"] for r in rows]
    rows = [r for r in rows if r["key"] in responses] if a.plain else rows
    for i in range(a.count):
        row = rows[i % len(rows)]
        text = responses.get(row["key"]) if a.plain or rng.random() < 0.6 else rng.choice(texts)
        text = text or rng.choice(texts)
        if not a.plain:
            kind = rng.randrange(20)
            text = "" if kind == 0 else text.upper() if kind == 1 else text.lower() if kind == 2 else text
            text = text[: rng.randrange(1, 200)] if kind == 3 else lines_changed(rng, text)
            text = mutate(rng, text, SCRAPS, rng.randrange(12))
        result = utils.process_results(row, [text])
        yield {"grader": "ifeval", "key": row["key"], "instruction_id_list": row["instruction_id_list"], "kwargs": row["kwargs"],
               "response": text, "strict": result["inst_level_strict_acc"], "loose": result["inst_level_loose_acc"]}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("grader", choices=("gsm8k", "hendrycks", "minerva", "ifeval"))
    p.add_argument("--count", type=int, required=True)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--rows")
    p.add_argument("--responses")
    p.add_argument("--plain", action="store_true")
    p.add_argument("--out", required=True)
    a = p.parse_args()
    with open(a.out, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, 0) as f:
        for n, case in enumerate(globals()[a.grader](a, random.Random(a.seed))):
            f.write((json.dumps(case, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
            if n % 500 == 499:
                print(n + 1, file=sys.stderr)


if __name__ == "__main__":
    main()
