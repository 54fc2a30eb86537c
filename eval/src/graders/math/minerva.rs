//! minerva_math (version 3.1): equality of meaning, measured twice.
//!
//! *exact_match*: the answer stands between "Final Answer: The final answer is" and ". I hope it is correct."; it and
//! the gold are rewritten by [`normalize_final_answer`] and compared by [`is_equiv`]: the same string, or the same
//! value read as sympy's `parse_latex` reads them. *math_verify*: the answer is looked for in all of the text
//! (`extract`), and read and compared with more kinds of values (`compare`).
//!
//! What is equal here: fractions exactly; everything else by value at fixed points (`expr`), where the harness asks
//! sympy to simplify a difference, for at most 5 seconds. We need no clock: texts, nesting and candidates are bounded.
//! Where the two part: sympy gives up on some differences that are zero; expressions with an infinity, an integral, a
//! limit or a derivative are equal here only as strings; numbers of more than 38 digits too; math_verify solves
//! equations, we compare them up to a constant factor.
//! Source: Lewkowycz et al. 2022, "Solving Quantitative Reasoning Problems with Language Models", appendix D;
//! lm-evaluation-harness 0.4.13, tasks/minerva_math/utils.py (MIT); math_verify 0.9; read for what they mean.

use std::sync::LazyLock;

use regex::Regex;

use super::{last_boxed, unbox};

mod compare;
mod expr;
mod extract;
mod latex;
mod number;
mod token;

/// What a generation without a final answer answers.
pub const INVALID: &str = "[invalidanswer]";

/// What one generation is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scores {
    /// of the final answer, as a string or as sympy would read it
    pub exact_match: bool,
    /// of the answer that math_verify would find
    pub math_verify: bool,
}

/// Both metrics of a generation, against the answer boxed in the row's solution.
///
/// False where the solution has no box that closes (the harness fails on such a row).
pub fn process_results(generation: &str, solution: &str) -> Scores {
    let boxed = last_boxed(solution);
    let Some(gold) = boxed.as_deref().and_then(unbox) else {
        return Scores { exact_match: false, math_verify: false };
    };
    let answer = normalize_final_answer(&unnormalized_answer(generation));
    Scores { exact_match: is_equiv(&answer, &normalize_final_answer(gold)), math_verify: verify(solution, generation) }
}

/// What stands after "The final answer is", or [`INVALID`].
pub fn unnormalized_answer(generation: &str) -> String {
    // The end is written after the text too, so an answer that the generation was cut off in counts up to its last
    // character; any one character stands where a full stop should.
    const START: &str = "Final Answer: The final answer is";
    const END: &str = " I hope it is correct";
    let text = format!("{generation}{}.", &END[1..]);
    for line in text.split('\n') {
        for (at, _) in line.match_indices(START) {
            let rest = &line[at + START.len()..];
            let mut ends = rest.match_indices(END).map(|(end, _)| end).peekable();
            if ends.peek().is_none() {
                break;
            }
            // The first end with a character before it and one after.
            if let Some(end) = ends.find(|end| *end > 0 && end + END.len() < rest.len()) {
                let last = rest[..end].chars().next_back().map_or(0, char::len_utf8);
                return crate::graders::python::strip(&rest[..end - last]).to_owned();
            }
        }
    }
    INVALID.to_owned()
}

/// Words for units and the like that an answer is rid of.
const REMOVED_WORDS: [&str; 26] = [
    "square",
    "ways",
    "integers",
    "dollars",
    "mph",
    "inches",
    "ft",
    "hours",
    "km",
    "units",
    "sue",
    "points",
    "feet",
    "minutes",
    "digits",
    "cents",
    "degrees",
    "cm",
    "gm",
    "pounds",
    "meters",
    "meals",
    "edges",
    "students",
    "childrentickets",
    "multiples",
];
/// The rest of what is removed, with the place in the list of words before which it stands.
const REMOVED_SIGNS: [(usize, &str); 15] = [
    (10, "\\ldots"),
    (26, "\\text{s}"),
    (26, "\\text{.}"),
    (26, "\\text{\ns}"),
    (26, "\\text{}^2"),
    (26, "\\text{}^3"),
    (26, "\\text{\n}"),
    (26, "\\text{}"),
    (26, "\\mathrm{th}"),
    (26, "^\\circ"),
    (26, "^{\\circ}"),
    (26, "\\;"),
    (26, ",\\!"),
    (26, "{,}"),
    (26, "\""),
];

fn constant(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant pattern")
}

/// An answer without units, spaces and shorthand, as appendix D of the paper rewrites it.
pub fn normalize_final_answer(answer: &str) -> String {
    const REPLACED: [(&str, &str); 10] = [
        ("an ", ""),
        ("a ", ""),
        (".$", "$"),
        ("\\$", ""),
        ("\\ ", ""),
        (" ", ""),
        ("mbox", "text"),
        (",\\text{and}", ","),
        ("\\text{and}", ","),
        ("\\text{m}", "\\text{}"),
    ];
    static SHORTHAND: LazyLock<[(Regex, &str); 9]> = LazyLock::new(|| {
        [
            (constant(r"(.*?)(\$)(.*?)(\$)(.*)"), "$$$3$$"),
            (constant(r"(\\text\{)(.*?)(\})"), "$2"),
            (constant(r"(\\textbf\{)(.*?)(\})"), "$2"),
            (constant(r"(\\overline\{)(.*?)(\})"), "$2"),
            (constant(r"(\\boxed\{)(.*)(\})"), "$2"),
            (constant(r"(frac)([^{])(.)"), "frac{$2}{$3}"),
            (constant(r"(sqrt)(\[[^\]]*\])([\p{L}\p{N}_])"), "$1$2{$3}"),
            // The harness looks ahead for a "[", which the class leaves out as well.
            (constant(r"(sqrt)([^{\[])"), "sqrt{$2}"),
            (constant(r"\$"), ""),
        ]
    });
    static THOUSANDS: LazyLock<Regex> = LazyLock::new(|| constant(r"\A-?\d{1,3}(,\d{3})+\z"));
    let mut s = answer.rsplit('=').next().unwrap_or(answer).to_owned();
    for word in REMOVED_WORDS {
        s = without_word(&s, word);
    }
    for (from, to) in REPLACED {
        s = s.replace(from, to);
    }
    for (i, word) in REMOVED_WORDS.iter().map(Some).chain([None]).enumerate() {
        for (_, sign) in REMOVED_SIGNS.iter().filter(|(before, _)| *before == i) {
            s = s.replace(sign, "");
        }
        if let Some(word) = word {
            s = outside_commands(&s, word);
        }
    }
    s = s.replace("\\dots", "");
    for (pattern, to) in SHORTHAND.iter() {
        s = pattern.replace_all(&s, *to).into_owned();
    }
    if THOUSANDS.is_match(&s) { s.replace(',', "") } else { s }
}

/// A text without a word that stands alone and is no command.
fn without_word(text: &str, word: &str) -> String {
    static WORD: LazyLock<Regex> = LazyLock::new(|| constant(r"[\p{L}\p{N}_]+"));
    if !text.contains(word) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for found in WORD.find_iter(text).filter(|m| m.as_str() == word && !text[..m.start()].ends_with('\\')) {
        out.push_str(&text[from..found.start()]);
        from = found.end();
    }
    out + &text[from..]
}

/// A text without a word, save in the names of commands.
fn outside_commands(text: &str, word: &str) -> String {
    static COMMAND: LazyLock<Regex> = LazyLock::new(|| constant(r"\\[a-zA-Z]+"));
    if !text.contains(word) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for command in COMMAND.find_iter(text) {
        out.push_str(&text[from..command.start()].replace(word, ""));
        out.push_str(command.as_str());
        from = command.end();
    }
    out + &text[from..].replace(word, "")
}

/// Whether two normalised answers are the same string, or the same value.
pub fn is_equiv(a: &str, b: &str) -> bool {
    if !a.is_empty() && a == b {
        return true;
    }
    match (latex::parse(a, true), latex::parse(b, true)) {
        (Some(a), Some(b)) => a.equals(&b, true),
        _ => false,
    }
}

/// Whether math_verify would find the solution's answer in the generation.
pub fn verify(solution: &str, generation: &str) -> bool {
    let (gold, given) = (extract::answer(solution), extract::answer(generation));
    let exprs = match (&gold.expr, &given.expr) {
        (Some(gold), Some(given)) => compare::equal(gold, given),
        _ => false,
    };
    exprs || gold.text.is_some_and(|gold| given.text.is_some_and(|given| gold.trim() == given.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_answers_are_found_and_rewritten() {
        let answer = |s: &str| normalize_final_answer(&unnormalized_answer(s));
        assert_eq!(answer("Final Answer: The final answer is $\\frac12$. I hope it is correct."), "\\frac{1}{2}");
        assert_eq!(answer("Final Answer: The final answer is $x = 12 \\text{ cm}$. I hope it is correct."), "12");
        assert_eq!(answer("The answer is 3."), INVALID);
        assert_eq!(normalize_final_answer("1,234,567 dollars"), "1234567");
        assert_eq!(normalize_final_answer("0,1"), "0,1");
        assert_eq!(normalize_final_answer("\\sqrt[3]8 + \\sqrt2"), "\\sqrt[3]{8}+\\sqrt{2}");
    }

    #[test]
    fn equal_as_sympy_reads() {
        for (a, b) in [
            ("\\frac{1}{2}", "\\frac{2}{4}"),
            ("(x+1)^2", "x^2+2x+1"),
            ("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}"),
            ("1,2,3", "1"),
            ("(1,2)", "(1,2)"),
            ("\\log_{2}{8}", "3"),
        ] {
            assert!(is_equiv(a, b), "{a} {b}");
        }
        for (a, b) in
            [("(1,2)", "(1,3)"), ("\\pi", "3.14159"), ("x", "y"), ("", ""), ("50\\%", "50"), ("x\\le1", "x\\le 1+0")]
        {
            assert!(!is_equiv(a, b), "{a} {b}");
        }
    }

    #[test]
    fn equal_as_math_verify_finds() {
        let gold = |s: &str| format!("So it is $\\boxed{{{s}}}$.");
        for (solution, generation) in [
            ("\\frac{1}{2}", "The answer is 1/2"),
            ("[0,1)", "thus $x \\in [0,1)$"),
            ("(1,2)", "we get $1, 2$"),
            ("\\{1,2\\}", "either $2$ or $1$"),
            ("x=5", "the result: $5$."),
            ("1000", "That makes 1,000 in all"),
            ("\\text{east}", "$\\text{East}$"),
            ("50\\%", "so \\boxed{50\\%}"),
            ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\[\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}\\]"),
        ] {
            assert!(verify(&gold(solution), generation), "{solution} {generation}");
        }
        for (solution, generation) in
            [("5", "no number here"), ("(1,2)", "$(2,1)$"), ("x+1", "$x-1$"), ("3", "first 3, then 4")]
        {
            assert!(!verify(&gold(solution), generation), "{solution} {generation}");
        }
    }
}
