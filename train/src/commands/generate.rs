//! `esker generate`: continues a prompt, token by token as they come.

use super::{Failure, model::Opened, print, print_json};
use crate::cli;
use esker_data::tokenizer::Tokenizer;
use esker_eval::{
    generate::{Generated, Request, generate},
    sample::Options,
};
use esker_kernels::tensor::Arena;
use esker_model::Decoder;
use serde::Serialize;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    prompt: &'a str,
    prompt_ids: &'a [u32],
    ids: &'a [u32],
    text: &'a str,
    /// A stop token ended the text.
    ended: bool,
    prompt_ms: f64,
    /// New tokens after the first, a second.
    tokens_per_s: f64,
}

pub fn run(args: cli::model::Generate) -> Result<(), Failure> {
    let model = Opened::new(&args.model)?;
    let tokenizer = model.tokenizer()?;
    let options = if args.greedy {
        Options::greedy()
    } else {
        Options { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed }
    };
    let prompt = prompt_ids(&model, &tokenizer, &args.prompt)?;
    if !args.json {
        print(&args.prompt)?;
    }
    let mut failure = None;
    let (text, made) = continue_text(&model, &tokenizer, &prompt, args.tokens, options, |piece| {
        if args.json {
            return true;
        }
        failure = print(piece).err();
        failure.is_none()
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let rate = if made.passes > 0 { made.passes as f64 / made.decode_s } else { 0.0 };
    if args.json {
        return print_json(&Answer {
            prompt: &args.prompt,
            prompt_ids: &prompt,
            ids: &made.tokens,
            text: &text,
            ended: made.ended,
            prompt_ms: made.prompt_s * 1e3,
            tokens_per_s: rate,
        });
    }
    print("\n")?;
    let (n, m, ms) = (made.tokens.len(), prompt.len(), made.prompt_s * 1e3);
    eprintln!("{n} tokens, {rate:.1} tok/s; prompt of {m} tokens in {ms:.0} ms");
    Ok(())
}

/// The ids of a prompt; an empty one begins with the start mark, or the end mark where there is none.
pub fn prompt_ids(model: &Opened, tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>, Failure> {
    let mut ids = tokenizer.encode_prompt(prompt)?;
    if ids.is_empty() {
        let end = model.card.eos.first().copied();
        ids.extend(tokenizer.bos().or(model.card.bos).or(tokenizer.eos()).or(end));
    }
    Ok(ids)
}

/// Continues `prompt`; `each` sees the text piece by piece, cut between characters, and may end it by saying false.
pub fn continue_text(
    model: &Opened,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    tokens: usize,
    options: Options,
    mut each: impl FnMut(&str) -> bool,
) -> Result<(String, Generated), Failure> {
    let (config, stream) = (model.config(), &model.stream);
    let Some(capacity) = prompt.len().checked_add(tokens).filter(|&n| n <= 1 << 24) else {
        return Err(Failure::input(format!("--tokens is {tokens}; expected at most {}", 1 << 24)));
    };
    model.warn_past_context(capacity);
    let prefill_rows = prompt.len().clamp(1, 512);
    let layout =
        |arena: &mut Arena| Decoder::layout(arena, config, model.weights.embed.dtype(), capacity, prefill_rows);
    let mut decoder = Arena::build(stream, layout)?.0;
    decoder.ready(stream, config)?;
    let stop: Vec<u32> = model.card.eos.iter().copied().chain(tokenizer.eos()).collect();
    let request = Request { prompt, tokens, options, stop: &stop };
    let mut pieces = tokenizer.stream();
    // Whether a word begins with a space depends on what stands before it.
    for &id in prompt {
        pieces.push(id)?;
    }
    let (mut text, mut broken) = (String::new(), None);
    let made = generate(stream, config, &model.weights, &mut decoder, request, |id| match pieces.push(id) {
        Ok(None) => true,
        Ok(Some(piece)) => {
            text.push_str(&piece);
            each(&piece)
        }
        Err(e) => {
            broken = Some(e);
            false
        }
    });
    let made = made?;
    if let Some(e) = broken {
        return Err(e.into());
    }
    let rest = pieces.finish()?;
    if !rest.is_empty() {
        text.push_str(&rest);
        each(&rest);
    }
    Ok((text, made))
}
