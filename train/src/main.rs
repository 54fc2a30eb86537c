//! The binary: parses, logs, calls, and turns what went wrong into a message and an exit code.

use clap::Parser;
use esker_train::{cli::Cli, commands};
use std::{io::Write, process::ExitCode};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("ESKER_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match commands::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let mut text = String::new();
            if !failure.message.is_empty() {
                text.push_str(&format!("error: {}\n", failure.message));
            }
            for line in &failure.help {
                text.push_str(&format!("help: {line}\n"));
            }
            // With nobody left to read stderr there is nothing more to do.
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::from(failure.exit_code())
        }
    }
}
