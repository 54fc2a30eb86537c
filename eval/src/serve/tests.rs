//! A server on loopback, asked by plain sockets.

use super::*;
use crate::{
    engine::{Engine, tests::model},
    request::{Answer, Request},
};
use esker_kernels::tensor::DType;
use esker_model::Family;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

/// Runs `client` against a server of a small model on bytes.
fn served(client: impl FnOnce(SocketAddr, &dyn Fn(Request) -> Answer)) {
    served_until(vec![], client);
}

/// The same with tokens that end a text.
fn served_until(eos: Vec<u32>, client: impl FnOnce(SocketAddr, &dyn Fn(Request) -> Answer)) {
    let (s, config, w) = model(Family::Llama, DType::F32);
    let tokenizer = Tokenizer::bytes();
    let options = Options { name: "small".into(), max_batch: 3, max_length: 96, eos };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::new(&s, &config, &w, &tokenizer, options, any).unwrap();
    let (addr, stop) = (server.addr(), server.stop());
    let other = model(Family::Llama, DType::F32);
    let engine = |request: Request| {
        let mut engine = Engine::new(&other.0, &other.1, &other.2, &tokenizer, Default::default()).unwrap();
        engine.answer(&[request]).unwrap().remove(0)
    };
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.run());
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client(addr, &engine)));
        stop.notify_one();
        running.join().unwrap().unwrap();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Sends bytes and reads until the connection ends.
fn send(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut wire = TcpStream::connect(addr).unwrap();
    // Against waiting for ever, and no more: an answer takes as long as the machine makes it.
    wire.set_read_timeout(Some(Duration::from_secs(900))).unwrap();
    // The server may refuse before it has read all.
    let _ = wire.write_all(bytes);
    let mut answer = Vec::new();
    let _ = wire.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(addr: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer = send(addr, (head + body).as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, if chunked { unchunked(body) } else { body.into() })
}

fn unchunked(mut body: &str) -> String {
    let mut all = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        all.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    all
}

fn complete(addr: SocketAddr, ask: Value) -> Value {
    let (status, body) = request(addr, "POST", "/v1/completions", &ask.to_string());
    assert_eq!(status, 200, "{ask}: {body}");
    serde_json::from_str(&body).unwrap()
}

#[test]
fn completions_are_those_of_the_engine() {
    served(|addr, engine| {
        let text = |prompt: &str, max_tokens| {
            let request = Request::Generate { context: prompt.into(), until: vec![], max_tokens };
            match engine(request) {
                Answer::Generate { text } => text,
                other => panic!("{other:?}"),
            }
        };
        let prompts = ["Once", "upon a time", "Once", "x", "the end"];
        let answer = complete(addr, json!({"prompt": prompts, "max_tokens": 12, "temperature": 0}));
        assert_eq!(answer["object"], "text_completion");
        assert_eq!(answer["usage"]["prompt_tokens"], 27);
        for (choice, prompt) in answer["choices"].as_array().unwrap().iter().zip(prompts) {
            assert_eq!(choice["text"], text(prompt, 12), "{prompt}");
        }
        let ids: Vec<u8> = b"Once".to_vec();
        let by_ids = complete(addr, json!({"prompt": ids, "max_tokens": 12, "temperature": 0, "echo": true}));
        assert_eq!(by_ids["choices"][0]["text"], "Once".to_string() + &text("Once", 12));
        // A stop string in the middle of what would come.
        let whole: Vec<char> = text("upon a time", 12).chars().collect();
        let stop: String = whole[3..5].iter().collect();
        let cut = text("upon a time", 12).find(&stop).unwrap();
        let ask = json!({"prompt": "upon a time", "max_tokens": 12, "temperature": 0, "stop": [stop, "zzz"]});
        let stopped = complete(addr, ask);
        assert_eq!(stopped["choices"][0]["text"], text("upon a time", 12)[..cut]);
        assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
        // The same seed, the same draws, alone or among others.
        let draw =
            |prompts: Value| complete(addr, json!({"prompt": prompts, "max_tokens": 9, "seed": 5, "top_p": 0.9}));
        assert_eq!(draw(json!("Once"))["choices"][0]["text"], draw(json!(["Once", "a"]))["choices"][0]["text"]);
    });
}

#[test]
fn prompts_are_scored_as_by_the_engine() {
    served(|addr, engine| {
        let ask = |max_tokens: usize, k: usize| {
            let prompts = ["The rain falls", "The rain flies", "The"];
            complete(
                addr,
                json!({"prompt": prompts, "max_tokens": max_tokens, "logprobs": k, "echo": true, "temperature": 0}),
            )
        };
        let (none, one, some) = (ask(0, 1), ask(1, 1), ask(3, 4));
        for (i, tail) in [" falls", " flies"].into_iter().enumerate() {
            let request = Request::LogLikelihood { context: "The rain".into(), continuation: tail.into() };
            let Answer::LogLikelihood { sum, greedy, tokens } = engine(request) else { panic!() };
            for answer in [&none, &one, &some] {
                let told = &answer["choices"][i]["logprobs"];
                let numbers = &told["token_logprobs"].as_array().unwrap()[8..8 + tokens];
                let got: f64 = numbers.iter().map(|x| x.as_f64().unwrap()).sum();
                assert!((got - sum).abs() < 1e-3, "{got} {sum}");
                let best =
                    |top: &Value| top.as_object().unwrap().values().map(|x| x.as_f64().unwrap()).fold(-1e9, f64::max);
                let tops = &told["top_logprobs"].as_array().unwrap()[8..8 + tokens];
                let all = numbers.iter().zip(tops).all(|(x, top)| x.as_f64().unwrap() == best(top));
                assert_eq!(all, greedy);
            }
        }
        let lengths = |answer: &Value| answer["choices"][2]["logprobs"]["tokens"].as_array().unwrap().len();
        assert_eq!((lengths(&none), lengths(&one), lengths(&some)), (3, 4, 6));
        assert!(one["choices"][2]["logprobs"]["token_logprobs"][0].is_null());
        assert_eq!(one["choices"][1]["text"].as_str().unwrap().find("The rain flies"), Some(0));
        assert_eq!(none["choices"][0]["text"], "The rain falls");
        // Four and the chosen one, fewer where several are spelt alike.
        let tops = some["choices"][0]["logprobs"]["top_logprobs"][5].as_object().unwrap().len();
        assert!((1..=5).contains(&tops), "{tops}");
    });
}

/// More prompts than a batch of 512 tokens holds: those that had to wait once grew without being scored, and
/// lm-evaluation-harness took the nothing that it was told for certainty.
#[test]
fn prompts_that_wait_for_a_batch_are_scored_too() {
    served(|addr, engine| {
        let context = "The rain in the north falls on stones and goes down to the sea.".to_string();
        let tails: Vec<String> = (0..24).map(|i| format!(" {i} drops fell")).collect();
        let prompts: Vec<String> = tails.iter().map(|tail| format!("{context}{tail}")).collect();
        let n = context.len();
        for max_tokens in [0, 1, 2] {
            let ask = json!({"prompt": prompts, "max_tokens": max_tokens, "logprobs": 1, "echo": true});
            let answer = complete(addr, ask);
            for (i, tail) in tails.iter().enumerate() {
                let told = answer["choices"][i]["logprobs"]["token_logprobs"].as_array().unwrap();
                assert_eq!(told.len(), n + tail.len() + max_tokens, "prompt {i}, {max_tokens} new");
                let got: f64 = told[n..n + tail.len()].iter().map(|x| x.as_f64().unwrap()).sum();
                let request = Request::LogLikelihood { context: context.clone(), continuation: tail.clone() };
                let Answer::LogLikelihood { sum, .. } = engine(request) else { panic!() };
                assert!((got - sum).abs() < 1e-3, "prompt {i}: {got} and not {sum}");
            }
        }
    });
}

#[test]
fn a_token_that_ends_the_text_is_told_and_not_shown() {
    // lm-evaluation-harness leaves out the last token told, which is the new one, whatever it is.
    served_until((0..260).collect(), |addr, _| {
        for max_tokens in [1, 5] {
            let ask = json!({"prompt": "The", "max_tokens": max_tokens, "logprobs": 1, "echo": true});
            let answer = complete(addr, ask);
            let choice = &answer["choices"][0];
            assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("The"), &json!("stop")));
            assert_eq!(choice["logprobs"]["token_logprobs"].as_array().unwrap().len(), 4);
            assert_eq!(answer["usage"]["completion_tokens"], 1);
        }
    });
}

#[test]
fn a_stream_brings_the_same_text_in_pieces() {
    served(|addr, _| {
        let ask = |stream: bool| json!({"prompt": ["Once", "b"], "max_tokens": 20, "temperature": 0, "stream": stream, "logprobs": 1, "echo": true});
        let whole = complete(addr, ask(false));
        let (status, body) = request(addr, "POST", "/v1/completions", &ask(true).to_string());
        assert_eq!(status, 200);
        let mut events: Vec<&str> = body.split("\n\n").filter(|e| !e.is_empty()).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"));
        let events: Vec<Value> =
            events.iter().map(|e| serde_json::from_str(e.strip_prefix("data: ").unwrap()).unwrap()).collect();
        assert!(events.len() > 20, "{} pieces", events.len());
        for index in 0..2 {
            let of: Vec<&Value> = events.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == index).collect();
            let text: String = of.iter().map(|c| c["text"].as_str().unwrap()).collect();
            assert_eq!(whole["choices"][index]["text"], text);
            let tokens: Vec<&Value> = of.iter().flat_map(|c| c["logprobs"]["tokens"].as_array().unwrap()).collect();
            assert_eq!(json!(tokens), whole["choices"][index]["logprobs"]["tokens"]);
            assert_eq!(of.last().unwrap()["finish_reason"], whole["choices"][index]["finish_reason"]);
        }
    });
}

#[test]
fn what_is_wrong_is_refused_in_openais_form_and_harms_nobody() {
    served(|addr, _| {
        assert_eq!(request(addr, "GET", "/health", "").0, 200);
        let models: Value = serde_json::from_str(&request(addr, "GET", "/v1/models", "").1).unwrap();
        assert_eq!(models["data"][0]["id"], "small");
        let post = |body: &str| request(addr, "POST", "/v1/completions", body);
        let long = json!({"prompt": vec![1; 96], "max_tokens": 2}).to_string();
        let just = json!({"prompt": vec![1; 96], "max_tokens": 1}).to_string();
        assert_eq!(post(&just).0, 200);
        for (status, body, says) in [
            (400, "{", "not JSON"),
            (400, "\u{0}\u{1}", "not JSON"),
            (400, "[]", "object"),
            (400, "{}", "prompt is missing"),
            (400, r#"{"prompt": [[]], "n": 3}"#, "n must be 1"),
            (400, r#"{"prompt": [999]}"#, "token id 999"),
            (400, r#"{"prompt": "a", "max_tokens": 97}"#, "more than this model's 96"),
            (400, &long, "more than this model's 96"),
            (404, r#"{"prompt": "a", "model": "other"}"#, "no model \"other\""),
        ] {
            let (got, answer) = post(body);
            let error: Value = serde_json::from_str(&answer).unwrap();
            let message = error["error"]["message"].as_str().unwrap();
            assert!(got == status && message.contains(says), "{body}: {got} {message}");
            assert_eq!(error["error"]["type"], "invalid_request_error");
        }
        assert_eq!(request(addr, "GET", "/v1/completions", "").0, 405);
        assert_eq!(request(addr, "POST", "/elsewhere", "").0, 404);
        let many = json!({"prompt": vec!["a"; 257]}).to_string();
        assert!(post(&many).1.contains("at most 256"));
        // A body that says it is huge, one that is, one that ends early, and no HTTP at all.
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: ";
        assert!(send(addr, format!("{head}99999999999\r\n\r\n{{").as_bytes()).contains(" 413 "));
        let huge = format!("{head}9000000\r\n\r\n{}", " ".repeat(9_000_000));
        let refused = send(addr, huge.as_bytes());
        assert!(refused.is_empty() || refused.contains(" 413 "), "{refused:?}");
        drop(TcpStream::connect(addr).unwrap().write_all(format!("{head}500\r\n\r\n{{\"prompt\"").as_bytes()));
        assert!(send(addr, b"\x16\x03\x01 nonsense\r\n\r\n").contains(" 400 "));
        let header = format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
        assert!(!send(addr, header.as_bytes()).contains(" 200 "));
        // Clients that leave, and some that say nothing.
        let ask = json!({"prompt": "a", "max_tokens": 90, "stream": true}).to_string();
        for _ in 0..5 {
            let mut wire = TcpStream::connect(addr).unwrap();
            wire.write_all(format!("{head}{}\r\n\r\n{ask}", ask.len()).as_bytes()).unwrap();
        }
        let _silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(addr).unwrap()).collect();
        let answer = complete(addr, json!({"prompt": "still here", "max_tokens": 3}));
        assert_eq!(answer["choices"][0]["index"], 0);
    });
}
