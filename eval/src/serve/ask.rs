//! A request for completions, read with distrust: every key that is known is checked, and those that ask for what is not
//! built are refused by name. Unknown keys are passed over, as OpenAI's clients send many.

use crate::sample::{Options, Sampler};
use serde_json::{Map, Value};

/// Most prompts of a request.
pub(super) const PROMPTS_MAX: usize = 256;
/// Most stop strings, and the longest.
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 256;
/// Most likeliest tokens told of each.
const LOGPROBS_MAX: u64 = 20;

/// What is wrong with a request: message and the key it is about.
#[derive(Debug)]
pub(super) struct Wrong(pub String, pub Option<&'static str>);

/// A prompt.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// A request whose values are in their ranges.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ask {
    pub model: Option<String>,
    pub prompts: Vec<Prompt>,
    pub max_tokens: usize,
    pub options: Options,
    pub stop: Vec<String>,
    pub stream: bool,
    pub echo: bool,
    pub logprobs: Option<usize>,
}

impl Ask {
    /// Reads a body; `seed` serves where it names none.
    pub fn read(body: &[u8], seed: u64) -> Result<Ask, Wrong> {
        let all: Value = serde_json::from_slice(body).map_err(|e| Wrong(format!("the body is not JSON: {e}"), None))?;
        let Value::Object(all) = all else { return Err(Wrong("the body is not a JSON object".into(), None)) };
        let keys = Keys(&all);
        keys.refuse()?;
        let options = Options {
            temperature: keys.real("temperature", 1.0, 0.0..=100.0)?,
            top_p: keys.real("top_p", 1.0, 0.0..=1.0)?,
            top_k: keys.whole("top_k", 0, u64::MAX)?.unwrap_or(0) as usize,
            seed: keys.seed()?.unwrap_or(seed),
        };
        Sampler::new(options).map_err(|e| Wrong(e.to_string(), None))?;
        Ok(Ask {
            model: keys.text("model")?,
            prompts: keys.prompts()?,
            max_tokens: keys.whole("max_tokens", 0, 1 << 24)?.unwrap_or(16) as usize,
            options,
            stop: keys.stops()?,
            stream: keys.flag("stream")?,
            echo: keys.flag("echo")?,
            logprobs: keys.whole("logprobs", 0, LOGPROBS_MAX)?.map(|n| n as usize),
        })
    }
}

struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    /// A value that is there and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// Refuses what is not built, unless it asks for nothing.
    fn refuse(&self) -> Result<(), Wrong> {
        for key in ["n", "best_of"] {
            if self.get(key).is_some_and(|n| *n != 1) {
                return Err(Wrong(format!("{key} must be 1: one completion a prompt is made"), Some(key)));
            }
        }
        for key in ["presence_penalty", "frequency_penalty"] {
            if self.get(key).is_some_and(|x| x.as_f64() != Some(0.0)) {
                return Err(Wrong(format!("{key} must be 0: penalties are not built"), Some(key)));
            }
        }
        for key in ["suffix", "logit_bias"] {
            let empty = |v: &Value| v == "" || v.as_object().is_some_and(Map::is_empty);
            if self.get(key).is_some_and(|v| !empty(v)) {
                return Err(Wrong(format!("{key} is not built; leave it out"), Some(key)));
            }
        }
        Ok(())
    }

    fn text(&self, key: &'static str) -> Result<Option<String>, Wrong> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Wrong(format!("{key} must be a string"), Some(key))),
        }
    }

    fn flag(&self, key: &'static str) -> Result<bool, Wrong> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(Wrong(format!("{key} must be true or false"), Some(key))),
        }
    }

    fn whole(&self, key: &'static str, low: u64, high: u64) -> Result<Option<u64>, Wrong> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().filter(|n| (low..=high).contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(Wrong(format!("{key} must be a whole number from {low} to {high}"), Some(key))),
        }
    }

    fn real(&self, key: &'static str, or: f32, range: std::ops::RangeInclusive<f64>) -> Result<f32, Wrong> {
        let Some(value) = self.get(key) else { return Ok(or) };
        match value.as_f64().filter(|x| range.contains(x)) {
            Some(x) => Ok(x as f32),
            None => Err(Wrong(format!("{key} must be a number from {} to {}", range.start(), range.end()), Some(key))),
        }
    }

    fn seed(&self) -> Result<Option<u64>, Wrong> {
        let Some(value) = self.get("seed") else { return Ok(None) };
        match value.as_u64().or(value.as_i64().map(|n| n as u64)) {
            Some(seed) => Ok(Some(seed)),
            None => Err(Wrong("seed must be a whole number".into(), Some("seed"))),
        }
    }

    fn stops(&self) -> Result<Vec<String>, Wrong> {
        let wrong = || {
            let message = format!("stop must be a string or up to {STOPS_MAX}, each of at most {STOP_BYTES_MAX} bytes");
            Wrong(message, Some("stop"))
        };
        let stops: Vec<String> = match self.get("stop") {
            None => Vec::new(),
            Some(Value::String(stop)) => vec![stop.clone()],
            Some(Value::Array(all)) if all.len() <= STOPS_MAX => {
                all.iter().map(|stop| stop.as_str().map(String::from).ok_or_else(wrong)).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(wrong()),
        };
        if stops.iter().any(|stop| stop.len() > STOP_BYTES_MAX) {
            return Err(wrong());
        }
        Ok(stops.into_iter().filter(|stop| !stop.is_empty()).collect())
    }

    /// A text, a list of texts, a list of ids, or a list of lists of ids.
    fn prompts(&self) -> Result<Vec<Prompt>, Wrong> {
        let wrong = |why: &str| Wrong(format!("prompt {why}"), Some("prompt"));
        let shape = "must be a string, a list of strings, a list of token ids, or a list of lists of token ids";
        let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = |all: &[Value]| all.iter().map(id).collect::<Option<Vec<u32>>>();
        let prompts = match self.get("prompt") {
            None => return Err(wrong("is missing")),
            Some(Value::String(text)) => vec![Prompt::Text(text.clone())],
            Some(Value::Array(all)) if all.first().is_some_and(Value::is_number) => {
                vec![Prompt::Ids(ids(all).ok_or_else(|| wrong(shape))?)]
            }
            Some(Value::Array(all)) => {
                if all.len() > PROMPTS_MAX {
                    return Err(wrong(&format!("has {} entries: at most {PROMPTS_MAX} a request", all.len())));
                }
                let one = |v: &Value| match v {
                    Value::String(text) => Some(Prompt::Text(text.clone())),
                    Value::Array(all) => ids(all).map(Prompt::Ids),
                    _ => None,
                };
                all.iter().map(one).collect::<Option<Vec<_>>>().ok_or_else(|| wrong(shape))?
            }
            Some(_) => return Err(wrong(shape)),
        };
        if prompts.is_empty() {
            return Err(wrong("is an empty list"));
        }
        Ok(prompts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_come_in_four_shapes() {
        let read = |prompt: &str| Ask::read(format!("{{\"prompt\": {prompt}}}").as_bytes(), 1).map(|ask| ask.prompts);
        let text = |t: &str| Prompt::Text(t.into());
        assert_eq!(read("\"a\"").unwrap(), [text("a")]);
        assert_eq!(read("[\"a\", \"\"]").unwrap(), [text("a"), text("")]);
        assert_eq!(read("[1, 2]").unwrap(), [Prompt::Ids(vec![1, 2])]);
        assert_eq!(read("[[1], [2, 3]]").unwrap(), [Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]);
        for bad in ["null", "[]", "1", "{}", "[1, \"a\"]", "[-1]", "[1.5]", "[4294967296]", "[[1], null]", "true"] {
            let Wrong(message, key) = read(bad).unwrap_err();
            assert!(message.starts_with("prompt ") && key == Some("prompt"), "{bad}: {message}");
        }
        assert!(read(&format!("[{}\"\"]", "\"\",".repeat(PROMPTS_MAX))).is_err());
    }

    #[test]
    fn values_are_checked_by_key() {
        let read = |more: &str| Ask::read(format!("{{\"prompt\": \"\", {more}}}").as_bytes(), 7);
        let ask = read("\"logprobs\": null, \"user\": \"x\", \"n\": 1, \"presence_penalty\": 0.0").unwrap();
        assert_eq!((ask.max_tokens, ask.options.seed, ask.logprobs), (16, 7, None));
        let ask = read("\"seed\": -3, \"temperature\": 0, \"stop\": [\"\", \"b\"], \"max_tokens\": 0").unwrap();
        assert_eq!((ask.max_tokens, ask.options.temperature, ask.stop), (0, 0.0, vec!["b".to_string()]));
        for (bad, key) in [
            ("\"temperature\": -1", "temperature"),
            ("\"temperature\": \"hot\"", "temperature"),
            ("\"top_p\": 1.5", "top_p"),
            ("\"max_tokens\": -1", "max_tokens"),
            ("\"max_tokens\": 1e30", "max_tokens"),
            ("\"logprobs\": 21", "logprobs"),
            ("\"logprobs\": true", "logprobs"),
            ("\"stop\": 3", "stop"),
            ("\"stop\": [3]", "stop"),
            ("\"stream\": \"yes\"", "stream"),
            ("\"seed\": 0.5", "seed"),
            ("\"n\": 2", "n"),
            ("\"suffix\": \"x\"", "suffix"),
            ("\"logit_bias\": {\"1\": 2}", "logit_bias"),
            ("\"frequency_penalty\": 1", "frequency_penalty"),
            ("\"model\": 4", "model"),
        ] {
            let Wrong(message, about) = read(bad).unwrap_err();
            assert!(message.contains(key) && about == Some(key), "{bad}: {message}");
        }
        for body in ["", "{", "[]", "nonsense", "\"prompt\""] {
            assert!(Ask::read(body.as_bytes(), 1).is_err(), "{body}");
        }
        assert!(Ask::read(&[b'['; 100_000], 1).is_err(), "nested lists have an end");
    }
}
