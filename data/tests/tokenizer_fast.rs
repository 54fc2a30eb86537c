//! The fast path against the `tokenizers` crate, id by id.
//!
//! Each known composition gets a small vocabulary: merges learnt from the embedded corpus by the
//! crate's own trainer, set into the parts that the real files have. Real files, whole corpora and a
//! million random strings are `esker bench tokenize --tokenizer FILE --text FILE --random 1000000`.

use std::sync::OnceLock;

use esker_data::{Reading, Tokenizer, corpus};
use proptest::prelude::*;
use serde_json::{Value, json};

const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

fn byte_level(own: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": own})
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn sequence(parts: &[Value]) -> Value {
    json!({"type": "Sequence", "pretokenizers": parts})
}

fn token(id: u32, content: &str, flags: &str) -> Value {
    json!({
        "id": id, "content": content, "special": flags.contains('s'), "normalized": flags.contains('n'),
        "single_word": flags.contains('w'), "lstrip": flags.contains('l'), "rstrip": flags.contains('r')
    })
}

/// A learnt byte-level vocabulary in other clothes; `change` gets the whole file.
fn bytes(name: &str, pre: Value, change: impl FnOnce(&mut Value)) -> (String, Tokenizer) {
    static LEARNT: OnceLock<Value> = OnceLock::new();
    let learnt = LEARNT.get_or_init(|| {
        let texts = corpus::embedded().take(12).map(|a| a.text);
        serde_json::from_slice(Tokenizer::train_bpe(texts, 1500).unwrap().json()).unwrap()
    });
    let mut file = learnt.clone();
    file["pre_tokenizer"] = pre;
    change(&mut file);
    (name.into(), Tokenizer::from_json(file.to_string().as_bytes(), name).unwrap())
}

/// Gemma's way: bars for spaces, characters, bytes for what is left. The merges are those of
/// words with a bar before them, and some that reach over spaces and into runs of them.
fn gemma() -> Tokenizer {
    let text: String = corpus::embedded().take(12).map(|a| a.text).collect();
    let mut vocab: Vec<String> = ["<pad>", "<eos>", "<bos>", "<unk>"].map(String::from).to_vec();
    vocab.extend((0..256).map(|b| format!("<{b:#04X}>")));
    let mut merges: Vec<[String; 2]> = Vec::new();
    let mut add = |vocab: &mut Vec<String>, left: &str, right: &str| {
        for part in [left, right, &format!("{left}{right}")] {
            if !vocab.iter().any(|v| v == part) {
                vocab.push(part.into());
            }
        }
        merges.push([left.into(), right.into()]);
    };
    let mut words: std::collections::BTreeMap<&str, usize> = Default::default();
    text.split_whitespace().for_each(|w| *words.entry(w).or_default() += 1);
    let mut words: Vec<_> = words.into_iter().collect();
    words.sort_by_key(|(w, n)| (std::cmp::Reverse(*n), *w));
    for run in 1..6 {
        add(&mut vocab, &"▁".repeat(run), "▁");
    }
    add(&mut vocab, ">", "▁");
    add(&mut vocab, ">▁", "<");
    for (word, _) in words.iter().take(150) {
        let mut left = String::from("▁");
        for c in word.chars() {
            add(&mut vocab, &left, c.encode_utf8(&mut [0; 4]));
            left.push(c);
        }
    }
    for (a, b) in [("t", "h"), ("th", "e"), ("i", "n"), ("日", "本"), ("e", "r"), ("a", "n"), ("é", "e")] {
        add(&mut vocab, a, b);
    }
    let model: serde_json::Map<String, Value> = vocab.iter().enumerate().map(|(i, t)| (t.clone(), i.into())).collect();
    let mut added = vec![token(1, "<eos>", "s"), token(2, "<bos>", "s")];
    let next = vocab.len() as u32;
    let texts = ["\n", "\n\n", "\n\n\n", "\t", "<table>", "▁▁"];
    added.extend(texts.iter().enumerate().map(|(i, t)| token(next + i as u32, t, "")));
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false
        },
        "post_processor": template("<bos>", 2),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": model, "merges": merges
        }
    });
    Tokenizer::from_json(file.to_string().as_bytes(), "gemma").unwrap()
}

fn template(name: &str, id: u32) -> Value {
    json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]}}
    })
}

/// One of each composition.
fn tokenizers() -> &'static [(String, Tokenizer)] {
    static ALL: OnceLock<Vec<(String, Tokenizer)>> = OnceLock::new();
    ALL.get_or_init(|| {
        let nfc = json!({"type": "NFC"});
        let digits = json!({"type": "Digits", "individual_digits": true});
        vec![
            bytes("gpt2", byte_level(true), |_| {}),
            bytes("gpt2 by split", sequence(&[split(GPT2), byte_level(false)]), |_| {}),
            bytes("neox", byte_level(true), |f| {
                f["normalizer"] = nfc.clone();
                let tokens = f["added_tokens"].as_array_mut().unwrap();
                for (i, run) in (2..9).enumerate() {
                    tokens.push(token(1500 + i as u32, &" ".repeat(run), "n"));
                }
                tokens.push(token(1507, "|||IP|||", "n"));
                tokens.push(token(1508, "e\u{301}t\u{e9}", "n"));
            }),
            bytes("smollm2, without some bytes", sequence(&[digits, byte_level(true)]), |f| {
                // Bytes that no UTF-8 has, so that no merge is in the way, and one that text may have.
                let vocab = f["model"]["vocab"].as_object_mut().unwrap();
                for c in ["À", "Á", "õ", "ö", "ÿ", "Ă"] {
                    assert_eq!(vocab.keys().filter(|k| k.contains(c)).count(), 1, "{c}");
                    vocab.remove(c);
                }
            }),
            bytes("llama 3", sequence(&[split(CL100K), byte_level(false)]), |f| {
                f["model"]["ignore_merges"] = true.into();
                let id = f["model"]["vocab"].as_object().unwrap().len() as u32;
                // Tokens that no merge makes.
                f["model"]["vocab"]["Ġzyx"] = id.into();
                f["model"]["vocab"]["qqqq"] = (id + 1).into();
                f["post_processor"] = json!({"type": "Sequence", "processors": [
                    {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
                    template("<|endoftext|>", 0)
                ]});
            }),
            bytes("qwen", sequence(&[split(&CL100K.replace("{1,3}", "")), byte_level(false)]), |f| {
                f["normalizer"] = nfc.clone();
                f["model"]["continuing_subword_prefix"] = "".into();
                f["model"]["end_of_word_suffix"] = "".into();
            }),
            bytes("removed, inverted", sequence(&[split(CL100K), byte_level(false)]), |f| {
                let split = &mut f["pre_tokenizer"]["pretokenizers"][0];
                split["behavior"] = "Removed".into();
                split["invert"] = true.into();
            }),
            bytes("one piece", byte_level(false), |_| {}),
            bytes("flags", byte_level(true), |f| {
                let tokens = f["added_tokens"].as_array_mut().unwrap();
                for (i, (text, flags)) in [
                    ("<a>", "l"),
                    ("<b>", "rs"),
                    ("<ab>", "lr"),
                    ("the", "w"),
                    ("they", ""),
                    ("<a><b>", "n"),
                    ("<ab><", "s"),
                    ("é", "wn"),
                ]
                .into_iter()
                .enumerate()
                {
                    tokens.push(token(1500 + i as u32, text, flags));
                }
            }),
            ("gemma".into(), gemma()),
        ]
    })
}

/// Ids of a document of a corpus.
fn document(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer.encode_document(text, &mut ids).unwrap();
    ids
}

/// Both ways on one text, in every reading. Returns what differs.
fn differs(tokenizer: &Tokenizer, text: &str) -> Option<String> {
    for reading in [Reading::Tokens, Reading::Prompt, Reading::Document] {
        let got = match reading {
            Reading::Tokens => tokenizer.encode(text).unwrap(),
            Reading::Prompt => tokenizer.encode_prompt(text).unwrap(),
            Reading::Document => document(tokenizer, text),
        };
        let want = tokenizer.encode_by_crate(text, reading).unwrap();
        if got != want {
            let at = got.iter().zip(&want).take_while(|(a, b)| a == b).count();
            let near = |ids: &[u32]| format!("{:?}", &ids[at.min(ids.len())..(at + 8).min(ids.len())]);
            let text: String = text.chars().take(300).collect();
            return Some(format!("{reading:?}: from id {at} on {} and not {}, in {text:?}", near(&got), near(&want)));
        }
    }
    None
}

#[track_caller]
fn check(text: &str) {
    for (name, tokenizer) in tokenizers() {
        assert!(tokenizer.is_fast(), "{name} is not recognised");
        assert_eq!(differs(tokenizer, text), None, "{name}");
    }
}

/// Strings that once differed or might.
#[test]
fn edges() {
    let long = ["-".repeat(300), " ".repeat(5000), "ab".repeat(4000), "\n ".repeat(200), "日本".repeat(100)];
    let edges = [
        "",
        " ",
        "  ",
        "\n",
        "a",
        "'",
        "'s",
        "''s",
        " 's",
        "'S's'LL'lL",
        "x'ſ 'ſa",
        "don't we'll I'd've",
        "a  b   c",
        "1 12 123 1234 12345",
        "  12",
        "1'2",
        "x1y22z333",
        "²³ ٣٤ ५ Ⅷ",
        "\u{a0}a",
        "a\u{3000}\u{3000}b",
        "\u{85}x",
        "(foo) ((bar)) “baz” “”q",
        ".\n\n  \n x",
        "a \n b\n\n\tc\r\n  d",
        "\t\tif x:\n\t\t\treturn\n",
        "  \n  a  \n",
        "e\u{301}te\u{301} \u{1100}\u{1161}\u{11a8} \u{212b}",
        "q\u{307}\u{323}",
        "\u{0}\u{7f}\u{ad}\u{feff}",
        "<a>  <b>  <ab> <a><b>",
        "  <ab>  the they them (the) the",
        "x<a> <b> y",
        "<|endoftext|> <|endoftext",
        "<ab><a><b> <ab><b><eos><bos>",
        "\n<eos>\n\n<|endoftext|>\n",
        "▁▁ ▁a ▁",
        "> < >▁< > <",
        "<0x0A>",
        "<table>\n\n\n\n<td>",
        " zyx qqqq zyxqqqq",
        "𝒳𝒴 🏞️👩‍👩‍👧",
        "naïve façade Ĳ ǅ",
        "  |||IP|||  |||IP||",
        "été e\u{301}te\u{301}t\u{e9}",
    ];
    for text in edges.into_iter().map(String::from).chain(long) {
        check(&text);
        check(&format!("word {text} word"));
        check(&format!("{text}{text}"));
    }
    // Every length of a piece around the width of a block.
    for n in 0..140 {
        for c in ["a", " ", "-", "\n", "7", "é", "“", "\u{a0}"] {
            check(&format!("x {}{}y 1", "b".repeat(n % 7), c.repeat(n)));
        }
    }
}

#[test]
fn prose() {
    for address in corpus::embedded().take(3) {
        check(&address.text);
    }
}

/// A document that spells an end mark neither ends there nor loses the letters.
#[test]
fn special_tokens_of_a_document_are_text() {
    let text = "before<|endoftext|> after<eos>";
    for (name, tokenizer) in tokenizers() {
        let end = tokenizer.eos().unwrap();
        let ids = document(tokenizer, text);
        assert!(!ids.contains(&end), "{name}: {ids:?}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{name}");
        assert!(tokenizer.encode(text).unwrap().contains(&end), "{name}");
    }
}

/// The embedded corpus from several threads at once, into vectors that are used again.
#[test]
fn threads_share_a_tokenizer() {
    let (_, tokenizer) = &tokenizers()[4];
    let texts: Vec<String> = corpus::embedded().take(12).map(|a| a.text).collect();
    let alone: Vec<Vec<u32>> = texts.iter().map(|t| tokenizer.encode(t).unwrap()).collect();
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                let mut ids = Vec::new();
                for (text, want) in texts.iter().zip(&alone) {
                    ids.clear();
                    tokenizer.encode_into(text, &mut ids).unwrap();
                    assert_eq!(ids, *want);
                }
            });
        }
    });
}

/// What is not known to the letter is left to the crate, with the same ids.
#[test]
fn others_fall_back() {
    let space = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let odd = [
        bytes("a space before", space, |_| {}),
        bytes("another pattern", sequence(&[split(r"\s+|\S+"), byte_level(false)]), |_| {}),
        bytes("lower case", byte_level(true), |f| f["normalizer"] = json!({"type": "Lowercase"})),
        bytes("two ids alike", byte_level(true), |f| f["model"]["vocab"]["zyxzyx"] = 300.into()),
        bytes("stripped spaces", byte_level(true), |f| {
            let tokens = f["added_tokens"].as_array_mut().unwrap();
            tokens.push(token(1500, "<r>", "r"));
            tokens.push(token(1501, " x", ""));
        }),
    ];
    for (name, tokenizer) in &odd {
        assert!(!tokenizer.is_fast(), "{name}");
        assert_eq!(differs(tokenizer, "The lines,  and <r> x  MORE 123."), None, "{name}");
    }
    // So much white space that the crate's engine gives up: the ids are still the crate's.
    let (_, tokenizer) = &tokenizers()[0];
    let text = format!("a{}b", " ".repeat(1_100_000));
    assert_eq!(differs(tokenizer, &text), None);
}

/// Characters by what they are to a pattern, in short runs, with tokens between.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        6 => "[a-zA-Z]{1,8}",
        5 => " {1,4}",
        2 => "[ \t\r\n\u{b}\u{c}]{1,5}",
        2 => "'[sStTmMdDrRvVlLſ]?[eElL]?",
        2 => "[0-9]{1,9}",
        2 => "[!-/:-@\\[-`{-~]{1,4}",
        1 => "[“”’—é日本\u{a0}\u{3000}\u{85}²٣५Ⅷ\u{301}\u{323}🏞Жक\u{94d}\u{1100}\u{1161}\u{11a8}▁]{1,5}",
        1 => "\\PC{1,6}",
        1 => prop::sample::select(vec![
            "<a>", "<b>", "<ab>", "the", "they", "<|endoftext|>", "|||IP|||", "<table>", "e\u{301}", "▁▁", "<0x0A>", "> <",
        ]).prop_map(String::from),
        1 => any::<String>(),
    ];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_text(text in text()) {
        for (name, tokenizer) in tokenizers() {
            prop_assert_eq!(differs(tokenizer, &text), None, "{}", name);
        }
    }
}

/// The ids that other people's tools gave for real tokenizers. `ESKER_TOKENIZERS` holds folders
/// NAME with a tokenizer.json each; `ESKER_TOKENIZER_GOLDEN` is a file of lines
/// `{"text": .., NAME: {"ids": [..], "ids_with_special": [..]}, ..}`.
#[test]
#[ignore = "needs real tokenizers, which are not in the repository"]
fn real_tokenizers_give_golden_ids() {
    let var = |name| std::env::var(name).unwrap_or_else(|_| panic!("set {name}"));
    let golden = std::fs::read_to_string(var("ESKER_TOKENIZER_GOLDEN")).unwrap();
    let mut compared = 0;
    for folder in std::fs::read_dir(var("ESKER_TOKENIZERS")).unwrap() {
        let path = folder.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let tokenizer = Tokenizer::from_file(&path).unwrap();
        let mut strings = 0;
        for line in golden.lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            let (text, want) = (case["text"].as_str().unwrap(), &case[name]);
            if want.is_null() {
                continue;
            }
            assert_eq!(json!(tokenizer.encode(text).unwrap()), want["ids"], "{name}: {text:?}");
            assert_eq!(json!(tokenizer.encode_prompt(text).unwrap()), want["ids_with_special"], "{name}: {text:?}");
            strings += 1;
        }
        println!("{name}: {strings} strings, {}", if tokenizer.is_fast() { "fast" } else { "by the crate" });
        compared += strings;
    }
    assert!(compared > 0, "no string names one of the tokenizers");
}
