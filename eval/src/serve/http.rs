//! The thread that speaks HTTP: from bodies to jobs, from events to answers.
//!
//! Limits: [`BODY_BYTES_MAX`] a body, [`PATIENCE`] for all of it, [`CLOSING`] for what is under way when the server stops.

use super::{
    ask::{Ask, Prompt, Wrong},
    talk::{Event, Job, Said},
    wire::{Answering, Busy, CONNECTIONS_MAX, Door, PATIENCE},
};
use axum::{
    Json, Router,
    body::{Body, Bytes, HttpBody, to_bytes},
    extract::{ConnectInfo, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use esker_data::tokenizer::Tokenizer;
use futures_core::Stream;
use serde_json::{Map, Value, json};
use std::{
    convert::Infallible,
    future::IntoFuture,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{
        Notify,
        mpsc::{self, UnboundedReceiver},
    },
    time::timeout,
};

/// Largest body of a request.
const BODY_BYTES_MAX: usize = 8 << 20;
/// How long requests under way may take to end once the server stops.
const CLOSING: Duration = Duration::from_secs(5);

/// What all requests share.
#[derive(Debug)]
pub(super) struct House {
    pub name: String,
    pub vocab: usize,
    pub max_length: usize,
    pub tokenizer: Tokenizer,
    pub created: u64,
    pub jobs: mpsc::Sender<Job>,
    /// Requests so far: their numbers, and seeds where they name none.
    pub served: AtomicU64,
}

/// An error in OpenAI's form.
struct Refusal {
    status: StatusCode,
    message: String,
    param: Option<&'static str>,
    code: Option<&'static str>,
}

/// A request under way.
struct Under {
    house: Arc<House>,
    ask: Arc<Ask>,
    id: String,
    created: u64,
    /// By prompt.
    choices: Vec<Choice>,
    events: UnboundedReceiver<(usize, Event)>,
    /// Prompts that have not ended.
    open: usize,
    _answering: Answering,
}

/// One prompt and what has come of it.
#[derive(Default)]
struct Choice {
    ids: Vec<u32>,
    /// The prompt as it is echoed.
    prompt: String,
    text: String,
    /// Tokens of which something is told, with it.
    told: Vec<(u32, Option<Said>)>,
    made: usize,
    finish: Option<&'static str>,
    /// Characters of tokens told in chunks before.
    offset: usize,
}

/// Serves until `stop` is notified; returns when all is closed.
pub(super) fn serve(listener: std::net::TcpListener, house: House, stop: Arc<Notify>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let door = Door::new(listener, CONNECTIONS_MAX);
        let router = Router::new()
            .route("/v1/completions", post(completions))
            .route("/v1/models", get(models))
            .route("/health", get(async || "ok\n"))
            .fallback(async || {
                refused(StatusCode::NOT_FOUND, "no such path: POST /v1/completions, GET /v1/models, GET /health")
            })
            .method_not_allowed_fallback(async || refused(StatusCode::METHOD_NOT_ALLOWED, "wrong method for this path"))
            .with_state(Arc::new(house));
        let closing = Arc::new(Notify::new());
        let told = closing.clone();
        let service = router.into_make_service_with_connect_info::<Busy>();
        let serving = axum::serve(door, service).with_graceful_shutdown(async move {
            stop.notified().await;
            told.notify_one();
        });
        tokio::select! {
            ended = serving.into_future() => ended,
            () = async { closing.notified().await; tokio::time::sleep(CLOSING).await } => Ok(()),
        }
    });
    // Answers still under way lose their listeners, and so their texts end.
    runtime.shutdown_background();
    outcome
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

async fn models(State(house): State<Arc<House>>) -> Json<Value> {
    let model = json!({
        "id": house.name,
        "object": "model",
        "created": house.created,
        "owned_by": "esker",
        "max_model_len": house.max_length,
    });
    Json(json!({"object": "list", "data": [model]}))
}

async fn completions(
    State(house): State<Arc<House>>,
    ConnectInfo(busy): ConnectInfo<Busy>,
    body: Body,
) -> Result<Response, Refusal> {
    let large = || {
        let message = format!("the body was cut short or is larger than {BODY_BYTES_MAX} bytes");
        refused(StatusCode::PAYLOAD_TOO_LARGE, &message)
    };
    // A length that is told is believed where it is too much.
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(large());
    }
    let body = match timeout(PATIENCE, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return Err(large()),
        Err(_) => return Err(refused(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive")),
    };
    let answering = busy.answering();
    let number = house.served.fetch_add(1, Relaxed);
    let seed = house.created.wrapping_mul(1_000_003).wrapping_add(number);
    let ask = Ask::read(&body, seed)
        .map_err(|Wrong(message, param)| Refusal { param, ..refused(StatusCode::BAD_REQUEST, &message) })?;
    drop(body);
    if ask.model.as_ref().is_some_and(|model| *model != house.name) {
        let message = format!("there is no model {:?} here, only {:?}", ask.model.unwrap_or_default(), house.name);
        let code = Some("model_not_found");
        return Err(Refusal { param: Some("model"), code, ..refused(StatusCode::NOT_FOUND, &message) });
    }
    let choices = ask.prompts.iter().map(|p| choice(&house, &ask, p)).collect::<Result<Vec<_>, _>>()?;
    let (sender, events) = mpsc::unbounded_channel();
    let ask = Arc::new(ask);
    let Ok(places) = house.jobs.try_reserve_many(choices.len()) else {
        let busy = refused(StatusCode::SERVICE_UNAVAILABLE, "too many prompts are waiting; try again a little later");
        return Err(Refusal { code: Some("overloaded"), ..busy });
    };
    for ((index, choice), place) in choices.iter().enumerate().zip(places) {
        place.send(Job { index, ids: choice.ids.clone(), ask: ask.clone(), events: sender.clone() });
    }
    drop(sender);
    let (id, open) = (format!("cmpl-{}-{number}", house.created), choices.len());
    let under = Under { house, ask, id, created: now(), choices, events, open, _answering: answering };
    if under.ask.stream { Ok(under.stream()) } else { under.whole().await }
}

/// The ids of a prompt, with the tokenizer's own marks around a text; checked to fit.
fn choice(house: &House, ask: &Ask, prompt: &Prompt) -> Result<Choice, Refusal> {
    let bad = |message: &str| Refusal { param: Some("prompt"), ..refused(StatusCode::BAD_REQUEST, message) };
    let mut ids = match prompt {
        Prompt::Text(text) => house.tokenizer.encode_prompt(text).map_err(|e| bad(&e.to_string()))?,
        Prompt::Ids(ids) => ids.clone(),
    };
    if ids.is_empty() {
        let mark = house.tokenizer.bos().or(house.tokenizer.eos());
        ids.push(mark.ok_or_else(|| bad("prompt is empty, and the tokenizer has no mark to begin with"))?);
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= house.vocab) {
        return Err(bad(&format!("prompt has token id {id}; the model's end at {}", house.vocab - 1)));
    }
    let (most, asked) = (house.max_length, ask.max_tokens);
    // One token behind a prompt needs no place of its own.
    if ids.len() + asked.saturating_sub(1) > most {
        let n = ids.len();
        let code = Some("context_length_exceeded");
        let message = format!("{n} tokens of prompt and {asked} to make are more than this model's {most}");
        return Err(Refusal { code, ..bad(&message) });
    }
    let echoed = || match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Ids(ids) => spelt(&house.tokenizer, ids, true),
    };
    let prompt = if ask.echo { echoed() } else { String::new() };
    Ok(Choice { ids, prompt, ..Choice::default() })
}

/// The text of ids; those that only the model has show nothing.
fn spelt(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let known: Vec<u32> = ids.iter().copied().filter(|&id| id < tokenizer.vocab_size()).collect();
    tokenizer.decode(&known, skip_special).unwrap_or_default()
}

impl Under {
    /// Waits for all prompts.
    async fn whole(mut self) -> Result<Response, Refusal> {
        while self.open > 0 {
            let Some((index, event)) = self.events.recv().await else {
                return Err(refused(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping"));
            };
            if let Err(message) = self.take(index, event) {
                return Err(refused(StatusCode::INTERNAL_SERVER_ERROR, &message));
            }
        }
        let choices: Vec<Value> = (0..self.choices.len()).map(|index| self.tell(index)).collect();
        let prompt: usize = self.choices.iter().map(|choice| choice.ids.len()).sum();
        let made: usize = self.choices.iter().map(|choice| choice.made).sum();
        let mut all = self.frame(choices);
        all["usage"] = json!({"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made});
        Ok(Json(all).into_response())
    }

    /// Sends what comes as it comes.
    fn stream(self) -> Response {
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        (headers, Body::from_stream(Chunks { under: self, done: false })).into_response()
    }

    /// Adds an event to its choice.
    fn take(&mut self, index: usize, event: Event) -> Result<(), String> {
        let (echo, choice) = (self.ask.echo, &mut self.choices[index]);
        if echo && choice.made == 0 && choice.finish.is_none() {
            choice.text.push_str(&std::mem::take(&mut choice.prompt));
        }
        match event {
            Event::Prompt(said) => choice.told.extend(choice.ids.iter().copied().zip(said)),
            Event::Token { id, text, said } => {
                choice.made += 1;
                choice.text.push_str(&text);
                if said.is_some() {
                    choice.told.push((id, said));
                }
            }
            Event::End { text, stopped } => {
                choice.text.push_str(&text);
                choice.finish = Some(if stopped { "stop" } else { "length" });
                self.open -= 1;
            }
            Event::Failed(message) => return Err(message),
        }
        Ok(())
    }

    /// What is new of a choice, which then is old.
    fn tell(&mut self, index: usize) -> Value {
        let choice = &mut self.choices[index];
        let text = std::mem::take(&mut choice.text);
        let told = std::mem::take(&mut choice.told);
        let logprobs = self.ask.logprobs.map(|_| logprobs(&self.house.tokenizer, &told, &mut choice.offset));
        json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": choice.finish})
    }

    fn frame(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.house.name,
            "choices": choices,
        })
    }
}

/// Tokens with their log-probabilities, the chosen one among the likeliest.
fn logprobs(tokenizer: &Tokenizer, told: &[(u32, Option<Said>)], offset: &mut usize) -> Value {
    let (mut tokens, mut numbers, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (id, said) in told {
        let token = spelt(tokenizer, &[*id], false);
        offsets.push(*offset);
        *offset += token.chars().count();
        numbers.push(said.as_ref().map(|said| said.logprob));
        tops.push(said.as_ref().map(|said| {
            let mut top = Map::new();
            for &(other, logprob) in said.top.iter().chain([&(*id, said.logprob)]) {
                // Two ids may be spelt alike; the likelier one is told.
                top.entry(spelt(tokenizer, &[other], false)).or_insert_with(|| json!(logprob));
            }
            top
        }));
        tokens.push(token);
    }
    json!({"tokens": tokens, "token_logprobs": numbers, "top_logprobs": tops, "text_offset": offsets})
}

/// A request's server-sent events: one for what is new of a choice, at last `[DONE]`.
struct Chunks {
    under: Under,
    done: bool,
}

impl Stream for Chunks {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let event = |text: String| Poll::Ready(Some(Ok(Bytes::from(format!("data: {text}\n\n")))));
        if this.done {
            return Poll::Ready(None);
        }
        if this.under.open == 0 {
            this.done = true;
            return event("[DONE]".into());
        }
        loop {
            match this.under.events.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    this.done = true;
                    return event(
                        error_json("the server is stopping", StatusCode::SERVICE_UNAVAILABLE, None, None).to_string(),
                    );
                }
                Poll::Ready(Some((index, said))) => {
                    if let Err(message) = this.under.take(index, said) {
                        this.done = true;
                        return event(error_json(&message, StatusCode::INTERNAL_SERVER_ERROR, None, None).to_string());
                    }
                    let choice = &this.under.choices[index];
                    if choice.text.is_empty() && choice.told.is_empty() && choice.finish.is_none() {
                        continue;
                    }
                    let told = this.under.tell(index);
                    return event(this.under.frame(vec![told]).to_string());
                }
            }
        }
    }
}

fn refused(status: StatusCode, message: &str) -> Refusal {
    Refusal { status, message: message.into(), param: None, code: None }
}

fn error_json(message: &str, status: StatusCode, param: Option<&str>, code: Option<&str>) -> Value {
    let kind = if status.is_client_error() { "invalid_request_error" } else { "server_error" };
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Refusal { status, message, param, code } = self;
        let mut response = (status, Json(error_json(&message, status, param, code))).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}
