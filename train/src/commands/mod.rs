//! What each command does, a file each; [`run`] picks. A command returns what went wrong as a [`Failure`], which knows
//! its exit code.

mod bench;
mod convert;
mod data;
mod doctor;
mod eval;
mod fetch;
mod generate;
mod model;
mod parity;
mod peer;
mod plan;
mod replay;
mod score;
mod serve;
mod sim;
mod study;
mod tasks;
mod tokenize;
mod train;
mod watch;

use crate::cli::Command;
use esker_kernels::DeviceError;
use serde::Serialize;
use std::{error::Error, io::Write, path::Path};

/// Does what was typed.
pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Train(args) => train::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Score(args) => score::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Data(command) => data::run(command),
        Command::Fetch(args) => fetch::run(args),
        Command::Import(args) => convert::import(args),
        Command::Export(args) => convert::export(args),
        Command::Parity(args) => parity::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Study(args) => study::run(args),
        Command::Peer(args) => peer::run(args),
        Command::Peers(command) => peer::several(command),
        Command::Doctor(args) => doctor::run(args),
        Command::Sim(args) => sim::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Watch(args) => watch::run(args),
    }
}

/// Why a command did not end well: decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something was compared and did not agree: 1.
    Check,
    /// The command line, a config or the content of a file: 2.
    Input,
    /// A file or the device could not be used: 3.
    System,
    /// A signal, after saving: 130.
    Stopped,
    /// Whoever read our output is gone (`| head`): 0, in silence.
    Unread,
}

/// What went wrong, for a person.
#[derive(Debug)]
pub struct Failure {
    /// Which exit code.
    pub kind: Kind,
    /// Facts: file, key, value, what was expected.
    pub message: String,
    /// What to do, a line each.
    pub help: Vec<String>,
}

impl Failure {
    /// Content or usage is wrong.
    pub fn input(message: impl Into<String>) -> Failure {
        Failure { kind: Kind::Input, message: message.into(), help: Vec::new() }
    }

    /// A comparison failed.
    pub fn check(message: impl Into<String>) -> Failure {
        Failure { kind: Kind::Check, message: message.into(), help: Vec::new() }
    }

    /// A file could not be used.
    pub fn file(path: &Path, why: &std::io::Error) -> Failure {
        Failure { kind: Kind::System, message: format!("{}: {why}", path.display()), help: Vec::new() }
    }

    /// Adds what to do.
    pub fn help(mut self, line: impl Into<String>) -> Failure {
        self.help.push(line.into());
        self
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Unread => 0,
            Kind::Check => 1,
            Kind::Input => 2,
            Kind::System => 3,
            Kind::Stopped => 130,
        }
    }
}

/// An error of a library is the system's when the system's own error is at its root, and else the input's.
impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Failure {
        let mut system = false;
        let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(e) = cause {
            system |= e.is::<DeviceError>() || e.downcast_ref::<std::io::Error>().is_some_and(is_the_systems);
            cause = e.source();
        }
        let kind = if system { Kind::System } else { Kind::Input };
        Failure { kind, message: error.to_string(), help: Vec::new() }
    }
}

/// Readers report short or garbled content as an io::Error too; that is the file's fault.
fn is_the_systems(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    !matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

/// Writes to stdout. A reader that is gone is no error.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        std::io::ErrorKind::BrokenPipe => Failure { kind: Kind::Unread, message: String::new(), help: Vec::new() },
        _ => Failure::file(Path::new("stdout"), &e),
    })
}

/// Writes one line of JSON to stdout.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut line = serde_json::to_string(value).expect("our own types become JSON");
    line.push('\n');
    print(&line)
}

/// How this program is called again: as cargo runs it, or by its path.
pub(crate) fn program() -> String {
    if std::env::var_os("CARGO").is_some() {
        return "cargo run --release --".into();
    }
    std::env::args().next().unwrap_or_else(|| "esker".into())
}

/// A word for a shell: as it is where that is safe, else quoted.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_an_error_decides_its_exit_code() {
        let missing = std::fs::read("/no/such/file").unwrap_err();
        assert_eq!(Failure::from(missing).exit_code(), 3);
        let garbled = std::io::Error::new(std::io::ErrorKind::InvalidData, "not UTF-8");
        assert_eq!(Failure::from(garbled).exit_code(), 2);
        let json = serde_json::from_str::<u32>("{").unwrap_err();
        assert_eq!(Failure::from(json).exit_code(), 2);
        let memory = DeviceError::Threads { threads: 1, why: String::new() };
        assert_eq!(Failure::from(memory).exit_code(), 3);
    }

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted("runs/a-001"), "runs/a-001");
        assert_eq!(quoted("Fellow citizens"), "'Fellow citizens'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
