//! What is typed about runs that owners share.

use clap::{Args, Subcommand};
use esker_comms::{PeerId, Signature};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// `HOST:PORT`: an address, or a name that the system's resolver knows; of several addresses the first.
fn reached(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().map_err(|e| format!("{e}; expected HOST:PORT, as 203.0.113.5:7700"))?;
    found.into_iter().next().ok_or_else(|| "the name has no address".into())
}

const YEAR_S: u64 = 366 * 86_400;

/// `esker peer`.
#[derive(Debug, Args)]
pub struct Peer {
    /// Config of the run (TOML), the same for all owners
    pub file: PathBuf,
    /// Override a key of the config, as train.threads=4; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Whom to dial first; may be repeated
    #[arg(long, value_name = "HOST:PORT", value_parser = reached)]
    pub join: Vec<SocketAddr>,
    /// What this process does
    #[arg(long, default_value = "peer", value_name = "ROLE")]
    pub role: String,
    /// Where to listen; port 0 takes any that is free
    #[arg(long, default_value = "0.0.0.0:0", value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Folder of key, state and updates; left out, NAME-peer in --out
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Folder in which that is made
    #[arg(long, default_value = "runs", value_name = "DIR")]
    pub out: PathBuf,
    /// Show a page, /status.json and Prometheus' /metrics here, as 127.0.0.1:9600; `esker watch` reads it
    #[arg(long, value_name = "IP:PORT")]
    pub page: Option<SocketAddr>,
    /// Seconds to go on serving others after the last round
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=YEAR_S))]
    pub linger: u64,
    /// The invitation, where the run asks for one
    #[arg(long, value_name = "HEX")]
    pub invite: Option<Signature>,
    /// Print a JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// `esker peers`.
#[derive(Debug, Subcommand)]
pub enum Peers {
    /// Train with several owners as processes over QUIC on loopback, then with one owner, and compare
    #[command(after_help = "\
Example:
  esker peers local --n 4 configs/peers-quickstart.toml")]
    Local(PeersLocal),
    /// Print the key in a peer's folder, which is made where there is none
    #[command(after_help = "\
Example:
  esker peers key runs/peers-quickstart-peer")]
    Key(PeersKey),
    /// Invite a guest to a run whose peers.admission is { invite = our key }
    #[command(after_help = "\
The guest sends its key (`esker peers key`) and starts with what this prints. An invitation is of use to that key in this
run alone, so it may be sent in the open.

Example:
  esker peers invite run.toml --dir runs/run-peer --guest 6f1e...
  esker peer run.toml --join 203.0.113.5:7700 --invite 90ab...")]
    Invite(PeersInvite),
}

/// `esker peers local`.
#[derive(Debug, Args)]
pub struct PeersLocal {
    /// Config of the run (TOML), with its sections outer and peers
    pub file: PathBuf,
    /// Owners
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub n: u16,
    /// Override a key of the config, as outer.k=128; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Folder in which run folders are made
    #[arg(long, default_value = "runs", value_name = "DIR")]
    pub out: PathBuf,
    /// Print the outcome as one JSON object; the table goes to stderr
    #[arg(long)]
    pub json: bool,
}

/// `esker peers key`.
#[derive(Debug, Args)]
pub struct PeersKey {
    /// Folder of the peer
    pub dir: PathBuf,
}

/// `esker peers invite`.
#[derive(Debug, Args)]
pub struct PeersInvite {
    /// Config of the run (TOML)
    pub file: PathBuf,
    /// Override a key of the config, as train.threads=4; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Folder of the peer that invites
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// The guest's key
    #[arg(long, value_name = "KEY")]
    pub guest: PeerId,
}

/// `esker replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// Folder of a peer, or a file of its events
    pub path: PathBuf,
    /// Show every line
    #[arg(long)]
    pub lines: bool,
    /// Only this round
    #[arg(long, value_name = "N")]
    pub round: Option<u64>,
    /// Print a JSON object a round, or a line
    #[arg(long)]
    pub json: bool,
}

/// `esker doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Threads; 0 takes every core
    #[arg(long, default_value_t = 0, value_parser = super::threads)]
    pub threads: usize,
    /// Look at the way to these processes of a shared run instead; may be repeated
    #[arg(long, value_name = "HOST:PORT", value_parser = reached)]
    pub join: Vec<SocketAddr>,
    /// Where to look from; port 0 takes any that is free
    #[arg(long, default_value = "0.0.0.0:0", value_name = "IP:PORT", requires = "join")]
    pub listen: SocketAddr,
    /// Folder whose disk is tried
    #[arg(long, default_value = "runs", value_name = "DIR", requires = "join")]
    pub dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `esker watch`.
#[derive(Debug, Args)]
pub struct Watch {
    /// Where the process shows its page, as 127.0.0.1:9600
    #[arg(value_name = "ADDR")]
    pub addr: SocketAddr,
    /// Print once and end, as where stdout is no terminal
    #[arg(long)]
    pub once: bool,
}

/// `esker sim`.
#[derive(Debug, Args)]
pub struct Sim {
    /// Peers that train
    #[arg(long, default_value_t = 70)]
    pub peers: usize,
    /// Validators beside them
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub validators: u8,
    /// Rounds
    #[arg(long, default_value_t = 100)]
    pub rounds: u64,
    /// Share of peers that leave in a round, and are replaced
    #[arg(long, default_value_t = 0.0)]
    pub churn: f64,
    /// Share of peers that lie
    #[arg(long, default_value_t = 0.0)]
    pub liars: f64,
    /// Kills a round, each followed by a start from disk; validators too
    #[arg(long, default_value_t = 0.0)]
    pub kills: f64,
    /// 1: peers train on while updates are exchanged
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    pub delay: u8,
    /// Share of messages that are lost and sent again
    #[arg(long, default_value_t = 0.001)]
    pub loss: f64,
    /// Halves the peers from one round to another
    #[arg(long, num_args = 2, value_names = ["FROM", "TO"])]
    pub partition: Vec<u64>,
    /// One half goes on being heard and hears nothing
    #[arg(long, requires = "partition")]
    pub one_way: bool,
    /// Updates that count in a round
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=2048))]
    pub contributors: u32,
    /// Seed of everything
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}
