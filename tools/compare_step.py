#!/usr/bin/env python3
"""Sets whole training steps of esker beside those of another trainer, in turns, on one machine in one sitting.

  python tools/compare_step.py --case stories15M --dtype f32 --threads 2 --rounds 5 -- COMMAND [ARG ...]

COMMAND trains the same shape and prints, as its last line that is JSON, an object with tokens a second under one of the
names `tokens_per_s`, `tok_per_s`, `tokens_per_sec`, `tok_s`, `tokens_per_second` (or --key NAME). Each round runs
`esker bench step --json` and then COMMAND, so that a slow minute of the machine meets both. Printed at the end: medians,
their spread, and the ratio esker : other of each round.
"""
import argparse
import json
import statistics
import subprocess
import sys

KEYS = ("tokens_per_s", "tok_per_s", "tokens_per_sec", "tok_s", "tokens_per_second")


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--esker", default="target/release/esker", help="the binary (cargo build --release)")
    p.add_argument("--case", required=True, help="filter of `esker bench step`; must leave one case")
    p.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seconds", type=float, default=10, help="that esker measures for in each round")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--key", help="where COMMAND's JSON has its tokens a second")
    p.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    a = p.parse_args()
    a.command = a.command[1:] if a.command[:1] == ["--"] else a.command
    if not a.command:
        p.error("give the other trainer's command after --")
    return a


def rows(command):
    """The JSON objects that a command prints, one a line."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}")
    found = []
    for line in done.stdout.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def rate(found, keys, command):
    for row in reversed(found):
        for key in keys:
            if isinstance(row.get(key), (int, float)):
                return float(row[key])
    sys.exit(f"{' '.join(command)}: no JSON line with one of {', '.join(keys)}")


def spread(values):
    return f"{statistics.median(values):10.1f} tok/s  ({min(values):.1f} to {max(values):.1f})"


def main():
    a = arguments()
    own = [a.esker, "bench", "step", "--json", "--case", a.case, "--dtype", a.dtype,
           "--threads", str(a.threads), "--seconds", str(a.seconds)]
    ours, theirs = [], []
    for r in range(a.rounds):
        found = rows(own)
        if len(found) != 1:
            sys.exit(f"--case {a.case} leaves {len(found)} cases: {[row.get('case') for row in found]}")
        ours.append(rate(found, KEYS, own))
        theirs.append(rate(rows(a.command), (a.key,) if a.key else KEYS, a.command))
        print(f"round {r + 1}: esker {ours[-1]:.1f}, other {theirs[-1]:.1f}, ratio {ours[-1] / theirs[-1]:.3f}", flush=True)
    ratios = [o / t for o, t in zip(ours, theirs)]
    print(f"esker  {spread(ours)}\nother  {spread(theirs)}")
    print(f"ratio  {statistics.median(ratios):10.3f}        ({min(ratios):.3f} to {max(ratios):.3f})")
    print(json.dumps({"case": a.case, "dtype": a.dtype, "threads": a.threads, "rounds": a.rounds,
                      "esker_tokens_per_s": statistics.median(ours), "other_tokens_per_s": statistics.median(theirs),
                      "ratio": statistics.median(ratios)}))


if __name__ == "__main__":
    main()
