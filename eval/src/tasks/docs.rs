//! What each benchmark makes of a row: the question, the answers to weigh, and which is right.
//!
//! ```text
//! arc_easy, arc_challenge   Question: {question}\nAnswer:                      | {choices.text}
//! piqa                      Question: {goal}\nAnswer:                          | {sol1} {sol2}
//! openbookqa                {question_stem}                                    | {choices.text}
//! hellaswag                 {activity_label}: {ctx_a} {ctx_b, capitalized}     | {endings}, all cleaned
//! winogrande                {sentence up to _}{option}                         | the rest of the sentence
//! mmlu                      {question}\nA. ..\nB. ..\nC. ..\nD. ..\nAnswer:    | A B C D
//! boolq                     {passage}\nQuestion: {question}?\nAnswer:          | no yes
//! lambada_openai            all but the last word                              | the last word
//! gsm8k                     Question: {question}\nAnswer:                      generated
//! ifeval                    {prompt}                                           generated
//! hendrycks_math            Problem: {problem}\nAnswer:                        generated
//! minerva_math              Problem:\n{problem}\n\nSolution:                   generated
//! ```
//!
//! Before each answer stands one space. Words are what lies between single spaces. "Cleaned": white space at both ends
//! goes, ` [title]` becomes `. `, what stands in brackets goes, two spaces become one, once.
//! A row of a pool may also be rendered already: `query`, `choices`, `gold` in place of the benchmark's own keys.
//! Source: the task files of lm-evaluation-harness 0.4.13 (MIT), read for what they mean.

use super::rows::{Fault, choice, list, object, text, texts};
use super::text::{capitalize, lstrip, strip};
use crate::graders;
use serde_json::{Map, Value};

type Fields = Map<String, Value>;

/// A row as a question.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    /// One question, some answers.
    Choice { question: String, choices: Vec<String>, gold: usize },
    /// Some beginnings, one end.
    Blank { beginnings: Vec<String>, end: String, gold: usize },
    /// A text without its last word, and that word with the space before it.
    LastWord { text: String, word: String },
    /// A question whose answer is generated. `answer` is what an example shows.
    Open { question: String, answer: String },
}

/// From a row to a question.
pub(super) type Read = fn(&Fields) -> Result<Asked, Fault>;

/// A rendered row of a pool.
pub(super) fn rendered(f: &Fields) -> Result<Asked, Fault> {
    let choices = texts(f, "choices")?;
    let gold = choice(f, "gold", choices.len())?;
    Ok(Asked::Choice { question: text(f, "query")?.into(), choices, gold })
}

pub(super) fn arc(f: &Fields) -> Result<Asked, Fault> {
    let (choices, gold) = lettered(f, text(f, "answerKey")?)?;
    Ok(Asked::Choice { question: format!("Question: {}\nAnswer:", text(f, "question")?), choices, gold })
}

pub(super) fn openbookqa(f: &Fields) -> Result<Asked, Fault> {
    let (choices, gold) = lettered(f, lstrip(text(f, "answerKey")?))?;
    Ok(Asked::Choice { question: text(f, "question_stem")?.into(), choices, gold })
}

/// `choices` as texts beside their labels, and the place of the label `key`.
fn lettered(f: &Fields, key: &str) -> Result<(Vec<String>, usize), Fault> {
    let within = object(f, "choices")?;
    let inside = |Fault(why)| Fault(format!("choices.{why}"));
    let (choices, labels) = (texts(within, "text").map_err(inside)?, texts(within, "label").map_err(inside)?);
    if choices.len() != labels.len() {
        return Err(Fault(format!("choices: {} texts and {} labels", choices.len(), labels.len())));
    }
    let gold = labels.iter().position(|label| label == key);
    let gold = gold.ok_or_else(|| Fault(format!("answerKey: {key:?} is none of {}", labels.join(", "))))?;
    Ok((choices, gold))
}

pub(super) fn piqa(f: &Fields) -> Result<Asked, Fault> {
    Ok(Asked::Choice {
        question: format!("Question: {}\nAnswer:", text(f, "goal")?),
        choices: vec![text(f, "sol1")?.into(), text(f, "sol2")?.into()],
        gold: choice(f, "label", 2)?,
    })
}

pub(super) fn hellaswag(f: &Fields) -> Result<Asked, Fault> {
    let end = capitalize(text(f, "ctx_b")?);
    let question = format!("{}: {} {end}", text(f, "activity_label")?, text(f, "ctx_a")?);
    let choices: Vec<String> = texts(f, "endings")?.iter().map(|ending| cleaned(ending)).collect();
    let gold = choice(f, "label", choices.len())?;
    Ok(Asked::Choice { question: cleaned(&question), choices, gold })
}

/// HellaSwag's texts keep marks of the pages that they were taken from.
fn cleaned(s: &str) -> String {
    let s = strip(s).replace(" [title]", ". ");
    let (mut out, mut rest) = (String::with_capacity(s.len()), s.as_str());
    while let Some(open) = rest.find('[') {
        // A bracket closes on its own line.
        let close = rest[open..].find([']', '\n']).filter(|&at| rest[open + at..].starts_with(']'));
        let (head, tail) = match close {
            Some(at) => (&rest[..open], &rest[open + at + 1..]),
            None => rest.split_at(open + 1),
        };
        out.push_str(head);
        rest = tail;
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

pub(super) fn winogrande(f: &Fields) -> Result<Asked, Fault> {
    let sentence = text(f, "sentence")?;
    let Some((begin, end)) = sentence.split_once('_') else {
        return Err(Fault(format!("sentence: has no _ to fill: {:?}", sentence.chars().take(60).collect::<String>())));
    };
    let gold = match text(f, "answer")? {
        "1" => 0,
        "2" => 1,
        other => return Err(Fault(format!("answer: expected \"1\" or \"2\", found {other:?}"))),
    };
    let beginnings = vec![format!("{begin}{}", text(f, "option1")?), format!("{begin}{}", text(f, "option2")?)];
    Ok(Asked::Blank { beginnings, end: strip(end).into(), gold })
}

pub(super) fn mmlu(f: &Fields) -> Result<Asked, Fault> {
    let choices = texts(f, "choices")?;
    let [a, b, c, d] = choices.as_slice() else {
        return Err(Fault(format!("choices: expected 4 texts, found {}", choices.len())));
    };
    let question = strip(text(f, "question")?);
    Ok(Asked::Choice {
        question: format!("{question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"),
        choices: ["A", "B", "C", "D"].map(String::from).into(),
        gold: choice(f, "answer", 4)?,
    })
}

pub(super) fn boolq(f: &Fields) -> Result<Asked, Fault> {
    Ok(Asked::Choice {
        question: format!("{}\nQuestion: {}?\nAnswer:", text(f, "passage")?, text(f, "question")?),
        choices: vec!["no".into(), "yes".into()],
        gold: choice(f, "label", 2)?,
    })
}

pub(super) fn lambada(f: &Fields) -> Result<Asked, Fault> {
    let whole = text(f, "text")?;
    let (begin, word) = whole.rsplit_once(' ').unwrap_or(("", whole));
    Ok(Asked::LastWord { text: begin.into(), word: format!(" {word}") })
}

pub(super) fn gsm8k(f: &Fields) -> Result<Asked, Fault> {
    let question = format!("Question: {}\nAnswer:", text(f, "question")?);
    Ok(Asked::Open { question, answer: text(f, "answer")?.into() })
}

pub(super) fn ifeval(f: &Fields) -> Result<Asked, Fault> {
    instructions(f, "")?;
    Ok(Asked::Open { question: text(f, "prompt")?.into(), answer: "0".into() })
}

/// Which of a row's instructions a response follows.
pub(super) fn instructions(f: &Fields, response: &str) -> Result<graders::ifeval::Verdict, Fault> {
    let (ids, kwargs) = (list(f, "instruction_id_list")?, list(f, "kwargs")?);
    let ids: Option<Vec<&str>> = ids.iter().map(Value::as_str).collect();
    let ids = ids.ok_or_else(|| Fault("instruction_id_list: expected a list of texts".into()))?;
    graders::ifeval::verdict(&ids, kwargs, response).map_err(|e| Fault(e.to_string()))
}

pub(super) fn hendrycks_math(f: &Fields) -> Result<Asked, Fault> {
    let question = format!("Problem: {}\nAnswer:", text(f, "problem")?);
    Ok(Asked::Open { question, answer: boxed(f)? })
}

pub(super) fn minerva_math(f: &Fields) -> Result<Asked, Fault> {
    let question = format!("Problem:\n{}\n\nSolution:", text(f, "problem")?);
    boxed(f)?;
    Ok(Asked::Open { question, answer: text(f, "solution")?.into() })
}

/// The answer in the last box of a solution.
fn boxed(f: &Fields) -> Result<String, Fault> {
    let boxed = graders::math::last_boxed(text(f, "solution")?);
    let inside = boxed.as_deref().and_then(graders::math::unbox).map(str::to_owned);
    inside.ok_or_else(|| Fault("solution: has no \\boxed{...} that closes, so no answer".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_go_as_the_pattern_would_take_them() {
        for (from, to) in [
            (" a [title] b [x] c  d   e ", "a. b c d  e"),
            ("[a][b]c", "c"),
            ("[a [b] c]", " c]"),
            ("open [ never", "open [ never"),
            ("open [ \n ] closes", "open [ \n ] closes"),
            ("[ \n [x] y", "[ \n y"),
            ("", ""),
        ] {
            assert_eq!(cleaned(from), to, "{from:?}");
        }
    }
}
