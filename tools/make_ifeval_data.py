#!/usr/bin/env python3
"""Makes the parameters of IFEval's graders: eval/src/graders/ifeval/*.gz.

  python tools/make_ifeval_data.py --text FILE... --out eval/src/graders/ifeval

Needs nltk 3.10 and langdetect 1.0.9. The files are English texts that Punkt is trained on (.txt, or .jsonl.gz of objects
whose strings are read); those committed came from the State of the Union addresses (CC0) and GSM8K's training questions
(MIT). NLTK's own English model has no clear licence (nltk_data, issue 188), so it is not used. Abbreviations and starters
are the lists below: what the trainer takes for them are names. The language profiles are langdetect's (Apache-2.0).

punkt.gz, text: lines "kind<TAB>value".
  a TYPE            an abbreviation, without its last point
  s TYPE            a word that often starts sentences
  0..3 TYPE         a word seen with a small first letter in training: bit 0 says it was never seen with a capital inside a
                    sentence, bit 1 that it was seen with a capital at all, or never small at the start of a sentence.
                    Words never seen small need no line: Punkt's rules treat them as unknown words.

langdetect.gz, text up to an empty line, then bytes.
  l LANGUAGES       separated by spaces, in alphabetical order
  k CHARACTERS      ideographs that count as the first of them
  1 CHARACTERS      the n-grams of one character
  2 PREFIX+CHARS    n-grams of two: the first character is the prefix of each
  3 PREFIX+CHARS    n-grams of three: the first two are
  then seven bytes an n-gram in that order, little endian: bit l says that language l has it
  then one byte q for each set bit, language by language: its probability in the language is 2^(-q/14)
"""
import argparse
import collections
import gzip
import json
import math
import os
import pathlib

STEPS = 14


# Titles, months, weekdays, firms, states, degrees, measures, Latin.
ABBREVIATIONS = """mr mrs ms dr st prof gen col maj lt capt sgt gov sen rep adm rev hon messrs jan feb mar apr aug sept sep oct
nov dec mon tues wed thurs fri inc ltd corp co bros cos cie vs u.s u.k u.n d.c u.s.a u.s.s.r n.y n.j n.c n.d n.h n.m s.c s.d
r.i l.a p.m a.m ph.d m.d b.a m.a b.c a.d j.d m.b.a d.d.s ave blvd rd ft calif colo conn ariz ala fla ga ill ind kan ky mich
minn miss okla ore pa tenn tex va vt wash wis ok jr sr yr mg pct nev mass s.a n.v n.a a.g e.g i.e""".split()

# Words that open sentences, for a capital one after an abbreviation.
STARTERS = """a accordingly according after all also although among an and another as at because before both but despite during each
even every few finally for from furthermore hence her here his how however i if in indeed instead it its many meanwhile moreover
most my nevertheless no nonetheless nor on once one otherwise our perhaps please several she similarly since so some still such
that the their then there therefore these they this those though thus to today under unless until we what when where whether
which while who why with yet you your he""".split()


def punkt(files):
    from nltk.tokenize.punkt import PunktTrainer

    texts = []
    for file in files:
        if file.suffix == ".gz":
            rows = map(json.loads, gzip.open(file, "rt"))
            texts += [value for row in rows for value in row.values() if isinstance(value, str)]
        else:
            texts.append(file.read_text("utf-8"))
    trainer = PunktTrainer()
    trainer._params.abbrev_types.update(ABBREVIATIONS)
    trainer.train("\n\n".join(texts), finalize=True)
    params = trainer.get_params()
    mid_uc, lc, uc, beg_lc = 1 << 2, 7 << 4, 7 << 1, 1 << 4
    lines = [f"a\t{word}" for word in ABBREVIATIONS]
    lines += [f"s\t{word}" for word in STARTERS]
    for word, bits in params.ortho_context.items():
        if bits & lc and word.isalpha():
            starter = not bits & mid_uc
            inside = bool(bits & uc) or not bits & beg_lc
            lines.append(f"{int(starter) + 2 * int(inside)}\t{word}")
    return "\n".join(sorted(set(lines))).encode()


def langdetect():
    from langdetect.detector_factory import PROFILES_DIRECTORY
    from langdetect.utils.ngram import NGram

    names = sorted(os.listdir(PROFILES_DIRECTORY))
    table = collections.defaultdict(dict)
    for index, name in enumerate(names):
        with open(os.path.join(PROFILES_DIRECTORY, name), encoding="utf-8") as f:
            profile = json.load(f)
        for gram, count in profile["freq"].items():
            # What the reader of texts can never produce is left out: characters that are normalised to others, and
            # n-grams with a space inside, or of nothing but one.
            reachable = len(gram) <= 3 and gram.strip(" ") and (len(gram) < 3 or gram[1] != " ")
            if reachable and all(NGram.normalize(c) == c for c in gram):
                table[gram][index] = count / profile["n_words"][len(gram) - 1]
    lines = ["l " + " ".join(names)] + ["k " + chars for chars in NGram.CJK_CLASS]
    order = []
    for length in (1, 2, 3):
        tails = collections.defaultdict(list)
        for gram in sorted(g for g in table if len(g) == length):
            tails[gram[:-1]].append(gram[-1])
            order.append(gram)
        lines += [f"{length} {prefix}{''.join(chars)}" for prefix, chars in sorted(tails.items())]
    masks = b"".join(sum(1 << i for i in table[g]).to_bytes(7, "little") for g in order)
    steps = bytes(round(-math.log2(table[g][i]) * STEPS) for i in range(len(names)) for g in order if i in table[g])
    return "\n".join(lines).encode() + b"\n\n" + masks + steps


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", type=pathlib.Path, nargs="+", required=True)
    p.add_argument("--out", type=pathlib.Path, required=True)
    a = p.parse_args()
    for name, data in (("punkt.gz", punkt(a.text)), ("langdetect.gz", langdetect())):
        (a.out / name).write_bytes(gzip.compress(data, 9, mtime=0))
        print(name, len(data), "bytes,", (a.out / name).stat().st_size, "packed")


if __name__ == "__main__":
    main()
