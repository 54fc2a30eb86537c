//! The benchmarks by name, and what each of them is made of.
//!
//! ```text
//! name                     version  rows                        examples from               own   metrics
//! arc_easy, arc_challenge  1.0      NAME.test                   NAME.train                  0     acc acc_norm acc_bytes
//! piqa                     1.0      piqa.validation             piqa.train *                0     acc acc_norm acc_bytes
//! openbookqa               1.0      openbookqa.test             openbookqa.train            0     acc acc_norm acc_bytes
//! hellaswag                1.0      hellaswag.validation        hellaswag.train *           0     acc acc_norm acc_bytes
//! winogrande               1.0      winogrande_xl.validation    winogrande_xl.train *       0     acc
//! boolq                    2.0      boolq.validation            boolq.train *               0     acc
//! lambada_openai           1.0      lambada_openai.test         the same                    0     perplexity acc
//! mmlu (57 subjects)       1.0      mmlu.test                   mmlu.dev, the first         0     acc
//! gsm8k                    3.0      gsm8k.test                  gsm8k.train                 5     exact_match, two filters
//! ifeval                   4.0      ifeval                      none, ever                  0     four, strict and loose
//! hendrycks_math (7)       1.0      hendrycks_math.test         hendrycks_math.train        0     exact_match
//! minerva_math (7)         3.1      hendrycks_math.test         four of its own, the first  4     exact_match math_verify
//! ```
//!
//! Rows are files `NAME.SPLIT.jsonl[.gz]` with the keys of the benchmark's own release (`rows.rs` says how they are
//! found). "Own": the number of examples when none is asked for. Examples are drawn with Python's `Random(seed)`, one
//! stream a task that runs on from document to document; where marked *, the document itself may not be among them, so
//! one more is drawn. `acc_bytes` is added to what the harness reports for these tasks.
//! Source: the task files of lm-evaluation-harness 0.4.13 (MIT), read for what they mean.

use super::docs::{self, Read};

/// How answers become numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grade {
    /// Which choice is likeliest; `lengths`: also by character and by byte.
    Choice { lengths: bool },
    /// How likely the last word is.
    LastWord,
    /// A number, found in two ways.
    Gsm8k,
    /// Instructions followed.
    Ifeval,
    /// Equality of repaired strings.
    Hendrycks,
    /// Equality as mathematics.
    Minerva,
}

/// Where examples come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    /// Drawn from this split; `others`: never the document that is asked.
    Drawn { split: &'static str, others: bool },
    /// The first ones of this split.
    First { split: &'static str },
    /// The first ones of [`MINERVA_SHOTS`].
    Written,
    /// There are none.
    Never,
}

/// What a generation may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Until {
    pub stops: &'static [&'static str],
    pub max_tokens: usize,
}

/// A benchmark, without its rows.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub name: String,
    pub alias: String,
    pub version: f64,
    /// What the rows' files are called; the first is the name we give.
    pub stems: &'static [&'static str],
    pub split: &'static str,
    /// The keys of a row, for a person.
    pub fields: &'static str,
    /// Where rows come from, for a person.
    pub origin: &'static str,
    /// Only rows whose key has this value.
    pub only: Option<(&'static str, &'static str)>,
    pub read: Read,
    pub description: String,
    pub pool: Pool,
    /// Examples when no number is given.
    pub shots: usize,
    pub grade: Grade,
    /// Of a generated answer.
    pub until: Until,
}

/// Tasks under a name whose means count together, each by its number of documents.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub name: &'static str,
    pub alias: &'static str,
    pub version: &'static str,
    /// Groups or tasks, in the order of the table.
    pub members: Vec<String>,
}

/// Names that stand for a whole benchmark, for messages and help.
pub const NAMES: [&str; 13] = [
    "arc_easy",
    "arc_challenge",
    "piqa",
    "openbookqa",
    "hellaswag",
    "winogrande",
    "mmlu",
    "boolq",
    "lambada_openai",
    "gsm8k",
    "ifeval",
    "minerva_math",
    "hendrycks_math",
];

const MMLU_GROUPS: [(&str, &str, &[&str]); 4] = [
    ("mmlu_stem", "stem", &STEM),
    ("mmlu_other", "other", &OTHER),
    ("mmlu_social_sciences", "social sciences", &SOCIAL),
    ("mmlu_humanities", "humanities", &HUMANITIES),
];
const STEM: [&str; 19] = [
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "electrical_engineering",
    "elementary_mathematics",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_mathematics",
    "high_school_physics",
    "high_school_statistics",
    "machine_learning",
];
const OTHER: [&str; 13] = [
    "business_ethics",
    "clinical_knowledge",
    "college_medicine",
    "global_facts",
    "human_aging",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "nutrition",
    "professional_accounting",
    "professional_medicine",
    "virology",
];
const SOCIAL: [&str; 12] = [
    "econometrics",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_microeconomics",
    "high_school_psychology",
    "human_sexuality",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
];
const HUMANITIES: [&str; 13] = [
    "formal_logic",
    "high_school_european_history",
    "high_school_us_history",
    "high_school_world_history",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "moral_disputes",
    "moral_scenarios",
    "philosophy",
    "prehistory",
    "professional_law",
    "world_religions",
];
/// The end of a task's name, and the `type` of its rows.
const MATH: [(&str, &str); 7] = [
    ("algebra", "Algebra"),
    ("counting_and_prob", "Counting & Probability"),
    ("geometry", "Geometry"),
    ("intermediate_algebra", "Intermediate Algebra"),
    ("num_theory", "Number Theory"),
    ("prealgebra", "Prealgebra"),
    ("precalc", "Precalculus"),
];

/// The task of that name.
pub(super) fn task(name: &str) -> Option<Spec> {
    if let Some(subject) = name.strip_prefix("mmlu_") {
        let subject = MMLU_GROUPS.iter().flat_map(|g| g.2).find(|s| **s == subject)?;
        return Some(mmlu(subject));
    }
    for (prefix, minerva) in [("hendrycks_math_", false), ("minerva_math_", true)] {
        if let Some(end) = name.strip_prefix(prefix) {
            let &(_, kind) = MATH.iter().find(|(e, _)| *e == end)?;
            return Some(math(name, kind, minerva));
        }
    }
    single(name)
}

/// The group of that name.
pub(super) fn group(name: &str) -> Option<Group> {
    if let Some(&(name, alias, subjects)) = MMLU_GROUPS.iter().find(|g| g.0 == name) {
        let members = subjects.iter().map(|s| format!("mmlu_{s}")).collect();
        return Some(Group { name, alias, version: "2", members });
    }
    let (name, version, members) = match name {
        "mmlu" => ("mmlu", "2", MMLU_GROUPS.iter().map(|g| g.0.to_owned()).collect()),
        "hendrycks_math" => ("hendrycks_math", "1.0", MATH.map(|(e, _)| format!("hendrycks_math_{e}")).into()),
        "minerva_math" => ("minerva_math", "1.0", MATH.map(|(e, _)| format!("minerva_math_{e}")).into()),
        _ => return None,
    };
    Some(Group { name, alias: name, version, members })
}

const NOT_GENERATED: Until = Until { stops: &[], max_tokens: 0 };

fn single(name: &str) -> Option<Spec> {
    let choice = |stems, split, read, others, lengths, fields, origin| Spec {
        name: name.into(),
        alias: name.into(),
        version: 1.0,
        stems,
        split,
        fields,
        origin,
        only: None,
        read,
        description: String::new(),
        pool: Pool::Drawn { split: "train", others },
        shots: 0,
        grade: Grade::Choice { lengths },
        until: NOT_GENERATED,
    };
    const ARC: &str = "id, question, choices {text [..], label [..]}, answerKey";
    Some(match name {
        "arc_easy" => choice(
            &["arc_easy"],
            "test",
            docs::arc,
            false,
            true,
            ARC,
            "allenai/ai2_arc (ARC-Easy) on the Hugging Face hub",
        ),
        "arc_challenge" => choice(
            &["arc_challenge"],
            "test",
            docs::arc,
            false,
            true,
            ARC,
            "allenai/ai2_arc (ARC-Challenge) on the Hugging Face hub",
        ),
        "piqa" => choice(
            &["piqa"],
            "validation",
            docs::piqa,
            true,
            true,
            "goal, sol1, sol2, label (0 or 1)",
            "ybisk/ybisk.github.io (piqa/data) on GitHub, or baber/piqa on the Hugging Face hub",
        ),
        "openbookqa" => choice(
            &["openbookqa"],
            "test",
            docs::openbookqa,
            false,
            true,
            "id, question_stem, choices {text [..], label [..]}, answerKey",
            "allenai/openbookqa (main) on the Hugging Face hub",
        ),
        "hellaswag" => choice(
            &["hellaswag"],
            "validation",
            docs::hellaswag,
            true,
            true,
            "ind, activity_label, ctx_a, ctx_b, ctx, endings [4 texts], label",
            "Rowan/hellaswag on the Hugging Face hub",
        ),
        "winogrande" => choice(
            &["winogrande_xl", "winogrande"],
            "validation",
            docs::winogrande,
            true,
            false,
            "sentence (with _), option1, option2, answer (\"1\" or \"2\")",
            "allenai/winogrande (winogrande_xl) on the Hugging Face hub",
        ),
        "boolq" => Spec {
            version: 2.0,
            ..choice(
                &["boolq"],
                "validation",
                docs::boolq,
                true,
                false,
                "idx, question, passage (beginning with \"Title -- \"), label (0 or 1)",
                "aps/super_glue (boolq) on the Hugging Face hub",
            )
        },
        "lambada_openai" => Spec {
            pool: Pool::Drawn { split: "test", others: false },
            grade: Grade::LastWord,
            ..choice(
                &["lambada_openai"],
                "test",
                docs::lambada,
                false,
                false,
                "text",
                "EleutherAI/lambada_openai on the Hugging Face hub",
            )
        },
        "gsm8k" => Spec {
            version: 3.0,
            shots: 5,
            grade: Grade::Gsm8k,
            until: Until { stops: &["Question:", "</s>", "<|im_end|>"], max_tokens: 256 },
            ..choice(
                &["gsm8k"],
                "test",
                docs::gsm8k,
                false,
                false,
                "question, answer (ending in \"#### N\")",
                "openai/grade-school-math on GitHub, or openai/gsm8k (main) on the Hugging Face hub",
            )
        },
        "ifeval" => Spec {
            version: 4.0,
            pool: Pool::Never,
            grade: Grade::Ifeval,
            until: Until { stops: &[], max_tokens: 1280 },
            ..choice(
                &["ifeval"],
                "",
                docs::ifeval,
                false,
                false,
                "key, prompt, instruction_id_list [..], kwargs [..]",
                "google/IFEval on the Hugging Face hub",
            )
        },
        _ => return None,
    })
}

fn mmlu(subject: &'static str) -> Spec {
    let spoken = subject.replace('_', " ");
    Spec {
        name: format!("mmlu_{subject}"),
        description: format!("The following are multiple choice questions (with answers) about {spoken}.\n\n"),
        alias: subject.into(),
        version: 1.0,
        stems: &["mmlu"],
        split: "test",
        fields: "subject, question, choices [4 texts], answer (0 to 3)",
        origin: "cais/mmlu on the Hugging Face hub, its subjects in one file",
        only: Some(("subject", subject)),
        read: docs::mmlu,
        pool: Pool::First { split: "dev" },
        shots: 0,
        grade: Grade::Choice { lengths: false },
        until: NOT_GENERATED,
    }
}

fn math(name: &str, kind: &'static str, minerva: bool) -> Spec {
    Spec {
        name: name.into(),
        alias: name.into(),
        version: if minerva { 3.1 } else { 1.0 },
        stems: &["hendrycks_math", "math"],
        split: "test",
        fields: "problem, level, type (as \"Algebra\"), solution (with \\boxed{..})",
        origin: "your own copy of the MATH benchmark: its public copies were withdrawn on a claim of rights",
        only: Some(("type", kind)),
        read: if minerva { docs::minerva_math } else { docs::hendrycks_math },
        description: String::new(),
        pool: if minerva { Pool::Written } else { Pool::Drawn { split: "train", others: false } },
        shots: if minerva { 4 } else { 0 },
        grade: if minerva { Grade::Minerva } else { Grade::Hendrycks },
        until: Until { stops: &["Problem:"], max_tokens: 256 },
    }
}

/// minerva_math's examples, problem and solution.
///
/// Source: Lewkowycz et al. 2022, arXiv:2206.14858, appendix D.2, in the spelling of lm-evaluation-harness (MIT).
pub(super) const MINERVA_SHOTS: [(&str, &str); 4] = [
    (
        "Find the domain of the expression  $\\frac{\\sqrt{x-2}}{\\sqrt{5-x}}$.",
        "The expressions inside each square root must be non-negative. Therefore, $x-2 \\ge 0$, so $x\\ge2$, and $5 - x \\ge 0$, so $x \\le 5$. Also, the denominator cannot be equal to zero, so $5-x>0$, which gives $x<5$. Therefore, the domain of the expression is $\\boxed{[2,5)}$.\nFinal Answer: The final answer is $[2,5)$. I hope it is correct.",
    ),
    (
        "If $\\det \\mathbf{A} = 2$ and $\\det \\mathbf{B} = 12,$ then find $\\det (\\mathbf{A} \\mathbf{B}).$",
        "We have that $\\det (\\mathbf{A} \\mathbf{B}) = (\\det \\mathbf{A})(\\det \\mathbf{B}) = (2)(12) = \\boxed{24}.$\nFinal Answer: The final answer is $24$. I hope it is correct.",
    ),
    (
        "Terrell usually lifts two 20-pound weights 12 times. If he uses two 15-pound weights instead, how many times must Terrell lift them in order to lift the same total weight?",
        "If Terrell lifts two 20-pound weights 12 times, he lifts a total of $2\\cdot 12\\cdot20=480$ pounds of weight.  If he lifts two 15-pound weights instead for $n$ times, he will lift a total of $2\\cdot15\\cdot n=30n$ pounds of weight.  Equating this to 480 pounds, we can solve for $n$:\n\\begin{align*}\n30n&=480\\\\\n\\Rightarrow\\qquad n&=480/30=\\boxed{16}\n\\end{align*}\nFinal Answer: The final answer is $16$. I hope it is correct.",
    ),
    (
        "If the system of equations\n\n\\begin{align*}\n6x-4y&=a,\\\\\n6y-9x &=b.\n\\end{align*}has a solution $(x, y)$ where $x$ and $y$ are both nonzero,\nfind $\\frac{a}{b},$ assuming $b$ is nonzero.",
        "If we multiply the first equation by $-\\frac{3}{2}$, we obtain\n\n$$6y-9x=-\\frac{3}{2}a.$$Since we also know that $6y-9x=b$, we have\n\n$$-\\frac{3}{2}a=b\\Rightarrow\\frac{a}{b}=\\boxed{-\\frac{2}{3}}.$$\nFinal Answer: The final answer is $-\\frac{2}{3}$. I hope it is correct.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_tasks() {
        fn leaves(name: &str) -> usize {
            match group(name) {
                Some(g) => g.members.iter().map(|m| leaves(m)).sum(),
                None => usize::from(task(name).is_some_and(|t| t.name == name)),
            }
        }
        let counts: Vec<usize> = NAMES.iter().map(|name| leaves(name)).collect();
        assert_eq!(counts, [1, 1, 1, 1, 1, 1, 57, 1, 1, 1, 1, 7, 7]);
        for wrong in ["", "mmlu_", "mmlu_stemm", "hendrycks_math_", "minerva_math_x", "arc"] {
            assert!(task(wrong).is_none() && group(wrong).is_none(), "{wrong}");
        }
    }
}
