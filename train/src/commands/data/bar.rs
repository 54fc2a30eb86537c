//! How far a pass over files is: a bar where stderr is a terminal, nothing elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

pub struct Bar(Option<ProgressBar>);

impl Bar {
    /// Counts bytes.
    pub fn bytes() -> Bar {
        Bar::new("{bar:24.cyan/blue} {bytes}/{total_bytes}  {bytes_per_sec}  eta {eta}")
    }

    /// Counts tokens.
    pub fn tokens() -> Bar {
        Bar::new("{bar:24.cyan/blue} {human_pos}/{human_len} tokens  {per_sec}  eta {eta}")
    }

    fn new(style: &str) -> Bar {
        Bar(std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
            bar.set_style(ProgressStyle::with_template(style).expect("a template of ours").progress_chars("━╸─"));
            bar
        }))
    }

    pub fn set(&self, done: u64, all: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(all);
            bar.set_position(done);
        }
    }

    pub fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
