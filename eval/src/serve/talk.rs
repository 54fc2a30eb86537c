//! The thread that has the model: prompts to score go through the network in batches, texts to grow grow together.

use super::ask::Ask;
use crate::{
    engine::{
        encode::Row,
        flow::{Flow, Next},
        plan::{Asking, texts},
    },
    sample::{Sampler, likeliest, log_sum_exp},
};
use esker_data::tokenizer::{TextStream, Tokenizer};
use esker_kernels::{DeviceError, device::Stream};
use esker_model::{Config, Weights, score::Scorer};
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::mpsc::{Receiver, UnboundedSender};

/// Tokens of the prompt that decide how the first new ones are spelt.
const CONTEXT_IDS: usize = 16;

/// One prompt of a request.
#[derive(Debug)]
pub(super) struct Job {
    /// Which of the request's.
    pub index: usize,
    /// At least one, each below the vocabulary; they and the new tokens fit.
    pub ids: Vec<u32>,
    pub ask: Arc<Ask>,
    pub events: UnboundedSender<(usize, Event)>,
}

/// What is told of one token.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub logprob: f32,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// What happens to a prompt.
#[derive(Debug)]
pub(super) enum Event {
    /// Its own tokens, scored; nothing is known of the first.
    Prompt(Vec<Option<Said>>),
    /// A new token, and text that is now certain.
    Token { id: u32, text: String, said: Option<Said> },
    /// The last event: the rest of the text, and whether it ended by itself.
    End { text: String, stopped: bool },
    /// The last event: what went wrong.
    Failed(String),
}

/// The model and its memory.
#[derive(Debug)]
pub(super) struct Model<'a> {
    pub stream: &'a Stream,
    pub config: &'a Config,
    pub weights: &'a Weights,
    pub tokenizer: &'a Tokenizer,
    pub eos: Vec<u32>,
    pub flow: Flow<'a>,
    pub scorer: Scorer,
}

/// Prompts that wait. None grows before it was scored, if it is to be.
#[derive(Default)]
struct Waiting {
    score: VecDeque<Job>,
    grow: VecDeque<Job>,
}

impl Waiting {
    fn put(&mut self, job: Job) {
        let scores = job.ask.echo && job.ask.logprobs.is_some();
        if scores { &mut self.score } else { &mut self.grow }.push_back(job);
    }

    fn len(&self) -> usize {
        self.score.len() + self.grow.len()
    }
}

impl Model<'_> {
    /// Works until nobody can ask any more.
    pub fn run(&mut self, mut queue: Receiver<Job>) -> Result<(), DeviceError> {
        let mut waiting = Waiting::default();
        let mut talks: Vec<Option<Talk<'_>>> = (0..self.flow.lanes()).map(|_| None).collect();
        loop {
            if waiting.len() == 0 && self.flow.idle() {
                match queue.blocking_recv() {
                    Some(job) => waiting.put(job),
                    None => return Ok(()),
                }
            }
            while waiting.len() < super::QUEUE
                && let Ok(job) = queue.try_recv()
            {
                waiting.put(job);
            }
            self.score(&mut waiting)?;
            while let Some(lane) = self.flow.free() {
                let Some(job) = waiting.grow.pop_front() else { break };
                let ids = job.ids.clone();
                let mut talk = Talk::new(self.tokenizer, job);
                if talk.job.ask.max_tokens == 0 {
                    talk.tell(vec![Event::End { text: String::new(), stopped: false }]);
                } else {
                    self.flow.start(lane, ids);
                    talks[lane] = Some(talk);
                }
            }
            let (tokenizer, eos) = (self.tokenizer, &self.eos);
            self.flow.step(|lane, logits| {
                let talk = talks[lane].as_mut().expect("serve: a lane without a text");
                let (next, events) = talk.next(tokenizer, eos, logits);
                if talk.tell(events) { next } else { Next::End }
            })?;
        }
    }

    /// Scores the first prompts that are to be scored, as many as make a batch; those that are to go on for more than a
    /// token then wait to grow.
    fn score(&mut self, waiting: &mut Waiting) -> Result<(), DeviceError> {
        let most = self.scorer.size().tokens;
        let (mut talks, mut rows, mut tokens) = (Vec::new(), Vec::new(), 0);
        while waiting.score.front().is_some_and(|job| tokens + job.ids.len() <= most)
            && let Some(job) = waiting.score.pop_front()
        {
            tokens += job.ids.len();
            // What follows the prompt is asked for too; its target is not known and not used.
            rows.push(Row { ids: job.ids.iter().copied().chain([0]).collect(), scored: job.ids.len() });
            talks.push(Talk::new(self.tokenizer, job));
        }
        if rows.is_empty() {
            return Ok(());
        }
        let mut asking = Asking::default();
        texts(&rows, most).iter().for_each(|text| asking.put(&rows, text));
        let mut said: Vec<Vec<Option<Said>>> = rows.iter().map(|row| vec![None; row.scored]).collect();
        let mut behind: Vec<Vec<Event>> = rows.iter().map(|_| Vec::new()).collect();
        let (tokenizer, eos) = (self.tokenizer, &self.eos);
        self.scorer.read(self.stream, self.config, self.weights, &asking.batch, |asked| {
            for target in &asking.asked[asked.index] {
                let talk: &mut Talk<'_> = &mut talks[target.row];
                let ask = talk.job.ask.clone();
                if target.place + 1 < rows[target.row].scored {
                    let k = ask.logprobs.unwrap_or(0);
                    said[target.row][target.place + 1] = Some(tell_of(asked.logits, asked.lse, target.id, k));
                } else if ask.max_tokens == 1 {
                    behind[target.row] = talk.next(tokenizer, eos, asked.logits).1;
                }
            }
        })?;
        for ((mut talk, said), behind) in talks.into_iter().zip(said).zip(behind) {
            talk.tell(vec![Event::Prompt(said)]);
            match talk.job.ask.max_tokens {
                0 => drop(talk.tell(vec![Event::End { text: String::new(), stopped: false }])),
                1 => drop(talk.tell(behind)),
                _ => waiting.grow.push_back(talk.job),
            }
        }
        Ok(())
    }
}

/// A prompt and what has followed it.
struct Talk<'t> {
    job: Job,
    /// `None`: the options were no options, which reading them excludes.
    sampler: Option<Sampler>,
    pieces: TextStream<'t>,
    /// Text that may be the beginning of a stop string.
    held: String,
    made: usize,
}

impl<'t> Talk<'t> {
    fn new(tokenizer: &'t Tokenizer, job: Job) -> Talk<'t> {
        let mut pieces = tokenizer.stream();
        for &id in job.ids.iter().rev().take(CONTEXT_IDS).rev().filter(|&&id| id < tokenizer.vocab_size()) {
            // Text before the new is not shown; ids that do not decode have none.
            let _ = pieces.push(id);
        }
        let sampler = Sampler::new(job.ask.options).ok();
        Talk { job, sampler, pieces, held: String::new(), made: 0 }
    }

    /// Sends events; whether anybody listens.
    fn tell(&mut self, events: Vec<Event>) -> bool {
        events.into_iter().all(|event| self.job.events.send((self.job.index, event)).is_ok())
    }

    /// Chooses the token behind the text, given its logits.
    fn next(&mut self, tokenizer: &'t Tokenizer, eos: &[u32], logits: &[f32]) -> (Next, Vec<Event>) {
        let ask = self.job.ask.clone();
        let Some(sampler) = &mut self.sampler else { return failed("no token could be chosen") };
        let id = match sampler.pick(logits, self.made as u64) {
            Ok(id) => id,
            Err(e) => return failed(e),
        };
        let said = ask.logprobs.map(|k| tell_of(logits, log_sum_exp(logits), id, k));
        self.made += 1;
        if eos.contains(&id) {
            // It shows nothing and counts: who scores a prompt by one token more finds that token told.
            let token = Event::Token { id, text: String::new(), said };
            return (Next::End, vec![token, self.end(tokenizer, true)]);
        }
        if id < tokenizer.vocab_size() {
            match self.pieces.push(id) {
                Ok(piece) => self.held.push_str(&piece.unwrap_or_default()),
                Err(e) => return failed(e),
            }
            // A special token shows nothing, and may yet be what ends the text.
            if !ask.stop.is_empty() && tokenizer.decode(&[id], false).is_ok_and(|text| ask.stop.contains(&text)) {
                let token = Event::Token { id, text: String::new(), said };
                return (Next::End, vec![token, self.end(tokenizer, true)]);
            }
        }
        if let Some(at) = ask.stop.iter().filter_map(|stop| self.held.find(stop)).min() {
            let text = self.held[..at].to_string();
            let token = Event::Token { id, text, said };
            return (Next::End, vec![token, Event::End { text: String::new(), stopped: true }]);
        }
        let sure = self.held.len() - possible(&self.held, &ask.stop);
        let rest = self.held.split_off(sure);
        let token = Event::Token { id, text: std::mem::replace(&mut self.held, rest), said };
        if self.made == ask.max_tokens {
            return (Next::End, vec![token, self.end(tokenizer, false)]);
        }
        (Next::Token(id), vec![token])
    }

    /// The end of the text, cut before a stop string that its last characters complete.
    fn end(&mut self, tokenizer: &'t Tokenizer, stopped: bool) -> Event {
        let pieces = std::mem::replace(&mut self.pieces, tokenizer.stream());
        let mut text = std::mem::take(&mut self.held) + &pieces.finish().unwrap_or_default();
        let stop = self.job.ask.stop.iter().filter_map(|stop| text.find(stop)).min();
        text.truncate(stop.unwrap_or(text.len()));
        Event::End { text, stopped: stopped || stop.is_some() }
    }
}

fn failed(why: impl std::fmt::Display) -> (Next, Vec<Event>) {
    (Next::End, vec![Event::Failed(why.to_string())])
}

/// Bytes at the end of `text` that may be the beginning of one of `stops`.
fn possible(text: &str, stops: &[String]) -> usize {
    let begins = |stop: &String| {
        let ends = stop.char_indices().map(|(at, _)| at).skip(1);
        ends.filter(|&n| text.ends_with(&stop[..n])).max().unwrap_or(0)
    };
    stops.iter().map(begins).max().unwrap_or(0)
}

/// The log-probability of `id` and of the `k` likeliest; of equals the lower id first.
fn tell_of(logits: &[f32], lse: f32, id: u32, k: usize) -> Said {
    let mut top = likeliest(logits, k);
    top.iter_mut().for_each(|(_, z)| *z -= lse);
    Said { logprob: logits[id as usize] - lse, top }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_begin_a_stop_string_is_held() {
        let stops = ["\n\nQ", "né"].map(String::from);
        for (text, held) in [("", 0), ("a", 0), ("a\n", 1), ("a\n\n", 2), ("a\n\nQ", 0), ("xn", 1), ("xné", 0)] {
            assert_eq!(possible(text, &stops), held, "{text:?}");
        }
        assert_eq!(possible("a", &[]), 0);
    }

    #[test]
    fn the_likeliest_come_first_and_of_equals_the_lower_id() {
        let logits = [1.0f32, 3.0, 3.0, -f32::INFINITY, 2.0];
        let said = tell_of(&logits, log_sum_exp(&logits), 4, 3);
        assert_eq!(said.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 4]);
        assert_eq!(said.logprob, said.top[2].1);
        let sum: f32 = tell_of(&logits, log_sum_exp(&logits), 0, 5).top.iter().map(|t| t.1.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert!(tell_of(&logits, 0.0, 0, 0).top.is_empty());
    }
}
