//! `esker peer` and `esker peers`: an owner of a shared run, several on one machine, keys and invitations.

use super::{Failure, Kind, print, print_json};
use crate::cli::peers as cli;
use crate::config;
use crate::peers::peer::{self, Event as Told, Options};
use crate::peers::{PeersError, invite, local, page};
use esker_comms::node::role;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Raised by the first signal.
static STOP: AtomicBool = AtomicBool::new(false);

/// Which exit code an end has.
fn failure(e: PeersError) -> Failure {
    let kind = match &e {
        PeersError::Stopped => Kind::Stopped,
        PeersError::Roots { .. } | PeersError::Ended { .. } => Kind::Check,
        PeersError::System { .. }
        | PeersError::Taken { .. }
        | PeersError::Folder(_)
        | PeersError::Node(_)
        | PeersError::Live(_) => Kind::System,
        // A disk that is full while tokens are packed, a key that may not be read: the root of the error tells.
        _ => return Failure::from(e),
    };
    Failure { kind, message: e.to_string(), help: Vec::new() }
}

fn watch_signals() {
    let handler = || {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        eprintln!("warning: Ctrl-C will not end this in order: {e}");
    }
}

/// One owner.
pub fn run(args: cli::Peer) -> Result<(), Failure> {
    let run = config::load(&args.file, &args.set)?;
    let roles = role::parse(&args.role).map_err(Failure::input)?;
    let dir = args.dir.unwrap_or_else(|| args.out.join(format!("{}-peer", run.name)));
    watch_signals();
    let linger = Duration::from_secs(args.linger);
    let (bind, join, page, invite) = (args.listen, args.join, args.page, args.invite);
    let options = Options { run, dir, bind, join, roles, linger, page, invite };
    let mut failed = None;
    peer::run(options, &STOP, &mut |told| {
        let said = if args.json { print_json(&told) } else { print(&line(&told)) };
        // Nobody listens any more; whoever started this process has ended.
        if let Err(e) = said {
            failed.get_or_insert(e);
            STOP.store(true, Ordering::SeqCst);
        }
    })
    .map_err(failure)?;
    failed.map_or(Ok(()), Err)
}

fn line(told: &Told) -> String {
    match told {
        Told::Listening { addr, peer, run, rounds, update_bytes, compression, page } => format!(
            "key        {peer}\nrun        {run}\nlistening  {addr}\n{}rounds     {rounds}, updates of {update_bytes} bytes, {compression:.1} times less than the model\n\n{:>5}  {:>8}  {:>9}  {:>9}  {:>7}  root\n",
            page.map_or_else(String::new, |page| format!("page       http://{page}/\n")),
            "round",
            "loss",
            "up, kB",
            "down, kB",
            "counted"
        ),
        Told::Round(l) => format!(
            "{:>5}  {:>8}  {:>9.1}  {:>9.1}  {:>7}  {}\n",
            l.round,
            l.loss.map_or("-".into(), |loss| format!("{loss:.4}")),
            l.up_bytes as f64 / 1e3,
            l.down_bytes as f64 / 1e3,
            l.entries,
            l.root.get(..16).unwrap_or(&l.root)
        ),
        Told::Done { nll, bits_per_byte } => match (nll, bits_per_byte) {
            (Some(nll), Some(bits)) => format!("\nall rounds are done: {nll:.4} nats a token, {bits:.4} bits a byte\n"),
            _ => "\nall rounds are done\n".into(),
        },
    }
}

/// What concerns several owners.
pub fn several(command: cli::Peers) -> Result<(), Failure> {
    match command {
        cli::Peers::Local(args) => local(args),
        cli::Peers::Key(args) => print(&format!("{}\n", invite::key(&args.dir).map_err(failure)?)),
        cli::Peers::Invite(args) => {
            let run = config::load(&args.file, &args.set)?;
            let token = invite::invite(&run, &args.dir, &args.guest).map_err(failure)?;
            print(&format!("{token}\n"))
        }
    }
}

/// Several owners that were stopped together have no common place to go on from.
fn stopped(place: &Path) -> Failure {
    let message = format!("stopped before the end; what the owners did lies in {}", place.display());
    Failure { kind: Kind::Stopped, message, help: vec!["the same command begins again, in a folder of its own".into()] }
}

/// Several owners on this machine.
fn local(args: cli::PeersLocal) -> Result<(), Failure> {
    let run = config::load(&args.file, &args.set)?;
    watch_signals();
    let program = std::env::current_exe().map_err(|e| Failure::file(Path::new("esker"), &e))?;
    let n = usize::from(args.n);
    let (mut compression, mut place) = (0.0, args.out.clone());
    let say = |text: &str| if args.json { eprint!("{text}") } else { drop(print(text)) };
    let (outcome, report) = local::run(&run, n, &args.out, &program, &STOP, &mut |event| match event {
        local::Event::Ready { folder, rounds, update_bytes, compression: times } => {
            compression = times;
            place = folder.to_path_buf();
            say(&format!(
                "{n} owners, {rounds} rounds, updates of {update_bytes} bytes, in {}\n\n{:>5}  {:>8}  {:>9}  {:>9}  {:>11}  {:<12}  root\n",
                folder.display(),
                "round",
                "loss",
                "up, kB",
                "down, kB",
                "compression",
                "counted"
            ));
        }
        local::Event::Round(row) => say(&format!(
            "{:>5}  {:>8.4}  {:>9.1}  {:>9.1}  {:>11.1}  {:<12}  {}\n",
            row.round,
            row.loss,
            row.up_bytes / 1e3,
            row.down_bytes / 1e3,
            compression,
            page::who(&row.counted),
            row.root.get(..16).unwrap_or(&row.root)
        )),
        local::Event::Alone => say("\nthe same tokens by one owner ...\n"),
    })
    .map_err(|e| match e {
        PeersError::Stopped => stopped(&place),
        e => failure(e),
    })?;
    if args.json {
        return print_json(&outcome);
    }
    let mut text = String::new();
    if let (Some(nll), Some(alone), Some(worse)) = (outcome.nll, outcome.alone.nll, outcome.worse()) {
        text = format!(
            "\nvalidation   {nll:.4} nats with {n} owners in {:.0} s\n             {alone:.4} nats with one, its batch that of all, its learning rate {:.1e}, in {:.0} s: {:+.2} %\nroots        equal after every round\n",
            outcome.seconds,
            outcome.alone.lr,
            outcome.alone_seconds,
            100.0 * worse
        );
    }
    print(&format!("{text}report       {}\n", report.display()))
}
