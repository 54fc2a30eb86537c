//! Graders against strings made to hurt: no panic, no stack used up, no work without bound.

use esker_eval::graders::ifeval::{self, IDS, IfevalError};
use esker_eval::graders::math::{hendrycks, minerva};
use esker_eval::graders::{gsm8k, math};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Arguments that suit every instruction, cut to those it takes.
fn arguments(id: &str) -> Value {
    let (bound, n) = ("at least", 2);
    match id {
        "keywords:existence" => json!({ "keywords": ["one", "x"] }),
        "keywords:frequency" => json!({ "keyword": "a", "frequency": n, "relation": bound }),
        "keywords:forbidden_words" => json!({ "forbidden_words": ["two", "\u{939}"] }),
        "keywords:letter_frequency" => json!({ "letter": "q", "let_frequency": n, "let_relation": "less than" }),
        "language:response_language" => json!({ "language": "hi" }),
        "length_constraints:number_sentences" => json!({ "num_sentences": n, "relation": bound }),
        "length_constraints:number_paragraphs" => json!({ "num_paragraphs": n }),
        "length_constraints:number_words" => json!({ "num_words": n, "relation": bound }),
        "length_constraints:nth_paragraph_first_word" => {
            json!({ "num_paragraphs": n, "nth_paragraph": 1, "first_word": "a" })
        }
        "detectable_content:number_placeholders" => json!({ "num_placeholders": n }),
        "detectable_content:postscript" => json!({ "postscript_marker": "P.P.S" }),
        "detectable_format:number_bullet_lists" => json!({ "num_bullets": n }),
        "detectable_format:number_highlighted_sections" => json!({ "num_highlights": n }),
        "detectable_format:multiple_sections" => json!({ "section_spliter": "Section", "num_sections": n }),
        "combination:repeat_prompt" => json!({ "prompt_to_repeat": "Say" }),
        "startend:end_checker" => json!({ "end_phrase": "bye" }),
        "change_case:capital_word_frequency" => json!({ "capital_frequency": n, "capital_relation": bound }),
        _ => json!({ "unused": null }),
    }
}

/// Every grader on a string.
fn grade(text: &str) {
    for extracted in [gsm8k::strict_match(text), gsm8k::flexible_extract(text)] {
        gsm8k::exact_match(&extracted, text);
    }
    let boxed = format!("\\boxed{{{text}}}");
    math::last_boxed(text);
    hendrycks::process_results(text, &boxed);
    minerva::process_results(text, &boxed);
    minerva::process_results(&format!("Final Answer: The final answer is ${text}$. I hope it is correct."), &boxed);
    let kwargs: Vec<Value> = IDS.iter().map(|id| arguments(id)).collect();
    let verdict = ifeval::verdict(&IDS, &kwargs, text).expect("the arguments suit");
    assert_eq!((verdict.strict.len(), verdict.loose.len()), (25, 25));
    assert!(verdict.strict.iter().zip(&verdict.loose).all(|(strict, loose)| *loose || !strict));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_string(text in any::<String>()) {
        grade(&text);
    }

    #[test]
    fn strings_of_what_graders_look_for(
        parts in prop::collection::vec(prop::sample::select(vec![
            "\\frac", "{", "}", "\\sqrt", "[", "]", "(", ")", "1", "23", "x", "f", "^", "_", "\\pm", ",", "=", "\\le", "/", "$",
            "\\boxed{", "\\text{", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\", "!", "|", "\\log", "\\cup", "%", ".",
            "Final Answer: The final answer is", ". I hope it is correct.", "answer:", " ", "\n", "*", "***", "\"", "<<", ">>",
            "```", "-", "P.", "S.", "Mr.", "?", "\u{301}", "\u{3000}", "\u{939}\u{93f}", "\u{1f600}", "http://a", "a@b.c",
        ]), 0..40)
    ) {
        grade(&parts.concat());
    }
}

/// At this length work that grows with the square would take an hour: a test that does not end is one that failed.
#[test]
fn long_strings_take_bounded_time() {
    const LEN: usize = 1_000_000;
    let seeds = [
        "(",
        "{",
        "[",
        "f(",
        "\\frac{",
        "\\sqrt{",
        "1/",
        "x^",
        "1\\pm(",
        "\\left(",
        "$",
        "\\[",
        "\\boxed{",
        "answer: ",
        "1 ",
        "-",
        "*",
        "\n",
        " ",
        "a. ",
        ". ",
        "\"",
        "[\"",
        "{\"a\":",
        "Final Answer: The final answer is",
        "\u{939}\u{93f}",
        "A",
        "@a",
        "http://",
        "***",
    ];
    for seed in seeds {
        let text = seed.repeat(LEN / seed.len());
        gsm8k::exact_match(&gsm8k::flexible_extract(&text), &text);
        hendrycks::process_results(&text, &text);
        minerva::process_results(&text, &format!("\\boxed{{{text}}}"));
        for id in [
            "length_constraints:number_sentences",
            "change_case:capital_word_frequency",
            "detectable_format:json_format",
            "language:response_language",
            "detectable_format:number_bullet_lists",
            "length_constraints:number_paragraphs",
        ] {
            let instruction = ifeval::Instruction::parse(id, &arguments(id)).expect("the arguments suit");
            instruction.is_followed_by(&text);
        }
    }
}

#[test]
fn rows_that_cannot_be_checked_say_why() {
    let error = |id: &str, kwargs: Value| ifeval::verdict(&[id], &[kwargs], "text").expect_err("refused");
    assert!(error("keywords:rhyme", json!({})).to_string().contains("\"keywords:rhyme\" is unknown"));
    let missing = error("keywords:existence", json!({ "keywords": [] }));
    assert!(matches!(missing, IfevalError::Missing { key: "keywords", .. }), "{missing}");
    let stray = error("punctuation:no_comma", json!({ "commas": 3 }));
    assert!(matches!(stray, IfevalError::Invalid { ref key, .. } if key == "commas"), "{stray}");
    for kwargs in [json!({ "num_words": 1.5, "relation": "at least" }), json!({ "num_words": 3, "relation": "around" })]
    {
        let invalid = error("length_constraints:number_words", kwargs);
        assert!(matches!(invalid, IfevalError::Invalid { .. }), "{invalid}");
    }
    let lengths = ifeval::verdict(&["punctuation:no_comma"], &[], "text");
    assert_eq!(lengths, Err(IfevalError::Lengths { ids: 1, kwargs: 0 }));
}
