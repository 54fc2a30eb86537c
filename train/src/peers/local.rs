//! Several owners as processes of one machine, over real QUIC on loopback; then the same tokens trained by one owner.
//!
//! ```text
//! <out>/<name>-001/
//!   config.toml    what all of them run            data/   the packed corpus
//!   owner-1/ ..    key, state, journal, log and a copy of the corpus, a folder each
//!   rounds.jsonl   a line a round                  report.html
//! ```
//!
//! The first owner also validates and is whom the others dial. Each tells its rounds as JSON on stdout; what all said of
//! a round makes a row, and roots that differ end everything.

use super::page::{self, Outcome};
use super::peer::{Event as Told, KEY};
use super::{PeersError, spec};
use crate::config::Run;
use crate::folder::{self, Folder};
use crate::outer::OuterError;
use crate::outer::inner::Inner;
use crate::source::{self, Opened};
use esker_comms::Key;
use esker_kernels::device::Stream;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// What it tells while it goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// All owners are on the network.
    Ready {
        /// The run's folder.
        folder: &'a Path,
        /// Rounds of the run.
        rounds: u64,
        /// Bytes of an update.
        update_bytes: u64,
        /// How many times less that is than the model in f32.
        compression: f64,
    },
    /// All owners have applied a round.
    Round(&'a Row),
    /// All rounds are done; one owner trains the same tokens now.
    Alone,
}

/// A round, as all owners saw it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Which, from 1.
    pub round: u64,
    /// Mean training loss of the owners in it, nats a token.
    pub loss: f64,
    /// Bytes that an owner sent in it, in the mean.
    pub up_bytes: f64,
    /// Bytes that an owner received in it.
    pub down_bytes: f64,
    /// Whose updates counted, owner by owner.
    pub counted: Vec<bool>,
    /// Root of the weights after it, everybody's.
    pub root: String,
    /// Seconds since the first round began.
    pub seconds: f64,
}

/// Ends the processes, whatever happens.
struct Owners(Vec<Child>);

impl Drop for Owners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended already cannot be ended; there is nothing else to do here.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Trains `run` with `n` owners as processes of `program`, then with one, in a new folder of `out`.
pub fn run(
    run: &Run,
    n: usize,
    out: &Path,
    program: &Path,
    stop: &AtomicBool,
    sink: &mut dyn FnMut(Event<'_>),
) -> Result<(Outcome, PathBuf), PeersError> {
    spec::peers(run)?;
    run.shared()?;
    let folder = Folder::create(out, run)?;
    let opened = source::open(run, folder.path())?;
    let dirs: Vec<PathBuf> = (1..=n).map(|i| folder.path().join(format!("owner-{i}"))).collect();
    for dir in &dirs {
        copy_data(folder.path(), dir)?;
    }
    let validator = Key::load_or_create(&dirs[0].join(KEY))?.id();
    let shared = run.varied(|file| {
        if let (Some(peers), Some(outer)) = (&mut file.peers, &mut file.outer) {
            (peers.validators, peers.owners_min, outer.slots) = (vec![validator], n as u32, n as u64);
        }
    });
    let refused = || PeersError::Spec { name: run.name.clone(), why: format!("{n} owners are too many or too few") };
    let shared = shared.ok_or_else(refused)?;
    let config = folder.path().join(folder::CONFIG);
    folder::write(&config, shared.to_toml().as_bytes())?;
    let start = Instant::now();
    let mut rounds = Rounds::new(&shared, dirs);
    rounds.spawn(program, &config, 0, None)?;
    let first = rounds.listening(stop)?;
    for i in 1..n {
        rounds.spawn(program, &config, i, Some(first))?;
    }
    let (rows, nll) = rounds.collect(folder.path(), stop, sink)?;
    let seconds = start.elapsed().as_secs_f64();
    sink(Event::Alone);
    let begin = Instant::now();
    let alone = alone(&shared, n, &opened, stop)?;
    let (update_bytes, compression) = (rounds.update_bytes, rounds.compression);
    let alone_seconds = begin.elapsed().as_secs_f64();
    let outcome = Outcome { owners: n, rows, nll, alone, update_bytes, compression, seconds, alone_seconds };
    let report = page::write(folder.path(), &shared, &outcome)?;
    Ok((outcome, report))
}

/// What the owners' processes tell, and what comes of it.
struct Rounds {
    owners: Owners,
    dirs: Vec<PathBuf>,
    told: Receiver<(usize, Option<Told>)>,
    tell: Sender<(usize, Option<Told>)>,
    rounds: u64,
    update_bytes: u64,
    compression: f64,
}

impl Rounds {
    fn new(run: &Run, dirs: Vec<PathBuf>) -> Rounds {
        let (tell, told) = channel();
        let rounds = run.outer.as_ref().map_or(0, |outer| run.rounds(outer));
        Rounds { owners: Owners(Vec::new()), dirs, told, tell, rounds, update_bytes: 0, compression: 0.0 }
    }

    /// Starts owner `i`, and a thread that reads what it tells; its end is told too.
    fn spawn(&mut self, program: &Path, config: &Path, i: usize, join: Option<SocketAddr>) -> Result<(), PeersError> {
        let log = self.log(i);
        let stderr = File::create(&log).map_err(system(&log, "cannot be written"))?;
        let mut command = Command::new(program);
        command.arg("peer").arg(config).arg("--dir").arg(&self.dirs[i]).args(["--listen", "127.0.0.1:0", "--json"]);
        command.args(["--role", if i == 0 { "all" } else { "peer" }, "--linger", "3600"]);
        if let Some(addr) = join {
            command.arg("--join").arg(addr.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().map_err(system(program, "cannot be started"))?;
        let stdout = BufReader::new(child.stdout.take().expect("local: a pipe"));
        self.owners.0.push(child);
        let tell = self.tell.clone();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(told) => drop(tell.send((i, Some(told)))),
                    Err(e) => tracing::warn!(target: "esker::peer", owner = i + 1, error = %e, "a line that is none"),
                }
            }
            let _ = tell.send((i, None));
        });
        Ok(())
    }

    fn log(&self, i: usize) -> PathBuf {
        self.dirs[i].join("log")
    }

    /// The next thing that an owner tells.
    fn next(&self, stop: &AtomicBool) -> Result<(usize, Told), PeersError> {
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(PeersError::Stopped);
            }
            match self.told.recv_timeout(Duration::from_millis(100)) {
                Ok((i, Some(told))) => return Ok((i, told)),
                // Ctrl-C reaches the owners too, and one may be gone before we look at the flag again.
                Ok((_, None)) if stop.load(Ordering::Relaxed) => return Err(PeersError::Stopped),
                Ok((i, None)) => {
                    let log = self.log(i);
                    return Err(PeersError::Ended { owner: i + 1, why: last_words(&log), log });
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("local: we hold a sender"),
            }
        }
    }

    /// Waits for the first owner to be on the network.
    fn listening(&mut self, stop: &AtomicBool) -> Result<SocketAddr, PeersError> {
        loop {
            if let (0, Told::Listening { addr, update_bytes, compression, .. }) = self.next(stop)? {
                (self.update_bytes, self.compression) = (update_bytes, compression);
                return Ok(addr);
            }
        }
    }

    /// Rows of all rounds, and the loss of the weights at the end.
    fn collect(
        &mut self,
        folder: &Path,
        stop: &AtomicBool,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(Vec<Row>, Option<f64>), PeersError> {
        let n = self.dirs.len();
        let (mut lines, mut done) = (vec![Vec::new(); n], vec![None; n]);
        let path = folder.join("rounds.jsonl");
        let mut file = File::create(&path).map_err(system(&path, "cannot be created"))?;
        let mut rows = Vec::<Row>::new();
        let (mut ready, begin) = (1, Instant::now());
        while done.iter().any(Option::is_none) {
            match self.next(stop)? {
                (_, Told::Listening { .. }) => {
                    ready += 1;
                    if ready == n {
                        let (rounds, update_bytes, compression) = (self.rounds, self.update_bytes, self.compression);
                        sink(Event::Ready { folder, rounds, update_bytes, compression });
                    }
                }
                (i, Told::Done { nll, .. }) => done[i] = Some(nll),
                (i, Told::Round(line)) => lines[i].push(line),
            }
            // One that came late has no line for what it skipped: a round is whole when all are past it.
            while let Some(row) = row(&lines, rows.len() as u64 + 1, begin)? {
                let mut text = serde_json::to_string(&row).expect("our own types become JSON");
                text.push('\n');
                file.write_all(text.as_bytes()).map_err(system(&path, "cannot be written"))?;
                sink(Event::Round(&row));
                rows.push(row);
            }
        }
        Ok((rows, done.into_iter().flatten().next().flatten()))
    }
}

/// What an owner that ended said last: its error, or else its last line.
fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines = || text.lines().rev().filter(|line| !line.trim().is_empty());
    let error = lines().find_map(|line| line.strip_prefix("error: "));
    error.or_else(|| lines().next()).unwrap_or("it said nothing").to_string()
}

/// The row of `round`, once every owner has applied it.
fn row(lines: &[Vec<super::peer::Line>], round: u64, begin: Instant) -> Result<Option<Row>, PeersError> {
    if lines.iter().any(|own| own.last().is_none_or(|line| line.round < round)) {
        return Ok(None);
    }
    let at = |own: &'_ Vec<super::peer::Line>, round: u64| own.iter().find(|line| line.round == round).cloned();
    let these: Vec<_> = lines.iter().map(|own| at(own, round)).collect();
    let roots: Vec<&String> = these.iter().flatten().map(|line| &line.root).collect();
    let root = roots.first().map_or_else(String::new, |root| root.to_string());
    if roots.iter().any(|other| **other != root) {
        return Err(PeersError::Roots { round });
    }
    let losses: Vec<f64> = these.iter().flatten().filter_map(|line| line.loss).map(f64::from).collect();
    let moved = |bytes: fn(&super::peer::Line) -> u64| {
        let of = |own: &Vec<super::peer::Line>| {
            let now = at(own, round).map_or(0, |line| bytes(&line));
            now.saturating_sub(at(own, round - 1).map_or(0, |line| bytes(&line))) as f64
        };
        lines.iter().map(of).sum::<f64>() / lines.len() as f64
    };
    Ok(Some(Row {
        round,
        loss: losses.iter().sum::<f64>() / losses.len().max(1) as f64,
        up_bytes: moved(|line| line.up_bytes),
        down_bytes: moved(|line| line.down_bytes),
        counted: these.iter().map(|line| line.as_ref().is_some_and(|line| line.counted == Some(true))).collect(),
        root,
        seconds: begin.elapsed().as_secs_f64(),
    }))
}

/// What one owner comes to with the tokens of all: mean training loss of each round, and the loss at the end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alone {
    /// Its highest learning rate.
    pub lr: f64,
    /// A round's steps each.
    pub losses: Vec<f64>,
    /// Loss on the validation set.
    pub nll: Option<f64>,
}

/// The same tokens by one owner: as many steps, each on the batch of all. That is plain AdamW, data-parallel: what the
/// owners would come to if every gradient crossed the network, whole, at every step. So the difference is what rounds,
/// sparse updates and two bits cost. More steps on the batch of one owner would be a longer training, not the same one.
///
/// Its learning rate is `lr / √n`. AdamW divides a gradient by its own size, noise and all: an owner's noise is √n times
/// that of the batch of all, so what the mean of n owners moves by is as much shorter, and the rate that suits them is
/// as much higher (the square-root rule: Malladi et al. 2022, arXiv:2205.10287). At the owners' own rate one owner fares
/// worse; `train/benches/record/sparseloco` has both.
fn alone(run: &Run, n: usize, opened: &Opened, stop: &AtomicBool) -> Result<Alone, PeersError> {
    let outer = run.shared()?.clone();
    let single = run.varied(|file| {
        (file.outer, file.peers) = (None, None);
        file.optim.lr /= (n as f64).sqrt();
        file.batch.tokens_per_step *= n;
        file.batch.virtual_ranks = if n.is_power_of_two() { n } else { 1 };
        file.train.threads = 0;
    });
    let refused = || PeersError::Spec { name: run.name.clone(), why: format!("a batch of {n} owners' is none") };
    let single = single.ok_or_else(refused)?;
    let (stream, lr) = (Stream::cpu(0).map_err(OuterError::from)?, single.optim.lr);
    let mut inner = Inner::open(Arc::new(stream), single, opened)?;
    let mut losses = Vec::new();
    for round in 0..run.rounds(&outer) {
        if stop.load(Ordering::Relaxed) {
            return Err(PeersError::Stopped);
        }
        let (first, steps) = (round * outer.inner_steps, run.steps_of(&outer, round));
        let trained = inner.train(first, steps, first * inner.run.rows_per_step() as u64)?;
        losses.push(trained.ok_or(OuterError::Diverged { round, step: first })?.loss);
    }
    Ok(Alone { lr, losses, nll: inner.score(run.train.steps)?.map(|v| v.nll) })
}

/// The packed corpus of the run for one of its owners.
fn copy_data(from: &Path, to: &Path) -> Result<(), PeersError> {
    let (from, to) = (from.join("data"), to.join("data"));
    fs::create_dir_all(&to).map_err(system(&to, "cannot be created"))?;
    if !from.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(&from).map_err(system(&from, "cannot be listed"))?.flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).map_err(system(&to, "cannot be filled"))?;
    }
    Ok(())
}

fn system(path: &Path, what: &str) -> impl FnOnce(std::io::Error) -> PeersError {
    let what = format!("{} {what}", path.display());
    move |source| PeersError::System { what, source }
}
