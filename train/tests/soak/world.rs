//! The processes of a soak, what they tell, and what is held against it.

use esker_comms::{Key, PeerId};
use esker_data::pack::{self, PackOptions, Split};
use esker_data::tokenizer::Tokenizer;
use esker_train::peers::peer::{Event, KEY, Line};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Processes alive at once, at most.
const ALIVE_MAX: usize = 10;
/// Owners in all: who comes when all of these have been here is one of them again.
const OWNERS_MAX: usize = 40;

/// The tests' tiny run, of rounds without an end that owners share.
const SETS: [&str; 19] = [
    "name=soak",
    "batch.tokens_per_step=64",
    "optim.lr=1e-3",
    "train.steps=400000",
    "validation.every_steps=0",
    "outer.slots=16",
    "outer.inner_steps=4",
    "outer.codec=compact",
    "outer.k=64",
    "outer.beta=0.95",
    "outer.mean=senders",
    "outer.clip=median",
    "outer.alpha=[{ round = 0, value = 1.0 }]",
    "peers.owners_min=1",
    "peers.delay=0",
    "peers.train_s=3.0",
    "peers.grace_s=1.0",
    "peers.collect_s=3.0",
    "peers.retry_s=0.2",
];

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub rounds: u64,
    pub starts: u64,
    pub kills: u64,
    pub validators_killed: u64,
    pub newcomers: u64,
    pub longest: Duration,
    /// Roots told and compared.
    pub roots: u64,
    /// Rounds between the first state of a life and its first update that counted.
    pub waits: Vec<u64>,
    pub counted: u64,
    pub level_after: Duration,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        let at = |share: usize| waits.get(waits.len().saturating_sub(1) * share / 100).copied().unwrap_or(0);
        write!(
            f,
            "{} rounds; {} starts ({} newcomers), {} kills ({} of validators); longest without a round {:.1} s; {} roots \
             told, all equal; {} updates counted; a process counts {} rounds after its first in the median, {} in 95 %, \
             {} at most; all level {:.1} s after the last kill",
            self.rounds,
            self.starts,
            self.newcomers,
            self.kills,
            self.validators_killed,
            self.longest.as_secs_f64(),
            self.roots,
            self.counted,
            at(50),
            at(95),
            at(100),
            self.level_after.as_secs_f64()
        )
    }
}

struct Owner {
    dir: PathBuf,
    /// Validators are always at the same place, so that whoever comes finds one.
    listen: String,
    child: Option<Child>,
    life: u32,
    /// Of this life: the newest round told, the first, and how many updates have counted.
    told: u64,
    first: Option<u64>,
    counted: u64,
}

type Told = (usize, u32, Option<Event>);

pub struct World {
    dir: PathBuf,
    config: PathBuf,
    validators: usize,
    sets: Vec<String>,
    owners: Vec<Owner>,
    join: Vec<String>,
    tell: Sender<Told>,
    told: Receiver<Told>,
    roots: BTreeMap<u64, String>,
    best: u64,
    best_at: Instant,
    tally: Tally,
    rng: u64,
}

impl Drop for World {
    fn drop(&mut self) {
        for child in self.owners.iter_mut().filter_map(|o| o.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            println!("what the owners wrote is kept in {}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

impl World {
    /// A run with so many owners who also validate; nobody is started yet.
    pub fn new(name: &str, seed: u64, validators: usize) -> World {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let texts = (0..40u32).map(|i| {
            let split = if i % 8 == 7 { Split::Val } else { Split::Train };
            Ok((split, format!("grain {i} of the ridge; ").repeat(40 + i as usize)))
        });
        pack::pack(texts, &Tokenizer::bytes(), &dir, &PackOptions::default()).unwrap();
        let mut owners = Vec::new();
        let mut keys: Vec<PeerId> = Vec::new();
        for place in places(validators) {
            let owner = dir.join(format!("owner-{}", owners.len()));
            fs::create_dir_all(&owner).unwrap();
            keys.push(Key::load_or_create(&owner.join(KEY)).unwrap().id());
            owners.push(Owner::new(owner, place.to_string()));
        }
        keys.sort_unstable();
        let keys: Vec<String> = keys.iter().map(|k| format!("\"{k}\"")).collect();
        let config = dir.join("run.toml");
        let toml = include_str!("../tiny.toml").replace('@', dir.to_str().unwrap());
        let mut sets: Vec<String> = SETS.map(String::from).to_vec();
        sets.extend(["peers.route=mesh".into(), "peers.admission=open".into()]);
        sets.push(format!("peers.validators=[{}]", keys.join(", ")));
        let run = esker_train::config::parse(&toml, "soak.toml", &sets).unwrap_or_else(|e| panic!("{e}"));
        fs::write(&config, run.to_toml()).unwrap();
        let join = owners.iter().map(|o| o.listen.clone()).collect();
        let (tell, told) = channel();
        let (roots, tally) = (BTreeMap::new(), Tally::default());
        let best_at = Instant::now();
        let sets = Vec::new();
        World { dir, config, validators, sets, owners, join, tell, told, roots, best: 0, best_at, tally, rng: seed }
    }

    /// Overrides a key of the config for all that start from here on.
    pub fn set(&mut self, set: String) {
        self.sets.push(set);
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn config(&self) -> &str {
        self.config.to_str().expect("a path of ours")
    }

    /// Where a validator is found.
    pub fn addr(&self, validator: usize) -> &str {
        &self.owners[validator].listen
    }

    /// The folder of owner `i`.
    pub fn folder(&self, i: usize) -> &str {
        self.owners[i].dir.to_str().expect("a path of ours")
    }

    /// One more owner, who is not started yet.
    pub fn newcomer(&mut self) -> usize {
        let dir = self.dir.join(format!("owner-{}", self.owners.len()));
        self.owners.push(Owner::new(dir, "127.0.0.1:0".into()));
        self.tally.newcomers += 1;
        self.owners.len() - 1
    }

    /// Waits until so many of owner `i`'s updates have counted in its present life.
    pub fn counts(&mut self, i: usize, updates: u64, stuck: Duration) {
        let begin = Instant::now();
        while self.owners[i].counted < updates {
            self.listen(Instant::now() + Duration::from_millis(50), stuck);
            assert!(begin.elapsed() < stuck, "owner {i} counted {} of {updates} times", self.owners[i].counted);
        }
    }

    /// How many of owner `i`'s updates have counted in its present life, and the newest round that it told.
    pub fn of(&self, i: usize) -> (u64, u64) {
        (self.owners[i].counted, self.owners[i].told)
    }

    /// Takes what has been told so far.
    pub fn catch_up(&mut self, stuck: Duration) {
        self.best_at = Instant::now();
        self.listen(Instant::now(), stuck);
    }

    /// Listens until round `round` is finished.
    pub fn until(&mut self, round: u64, stuck: Duration) {
        while self.best < round {
            self.listen(Instant::now() + Duration::from_millis(50), stuck);
        }
    }

    pub fn best(&self) -> u64 {
        self.best
    }

    /// Starts and kills for `time` and until `enough` has happened; fails where `stuck` passes without a finished round.
    pub fn stir(&mut self, time: Duration, stuck: Duration, enough: fn(&Tally) -> bool) {
        (0..self.validators).for_each(|i| self.start(i, &[]));
        let end = Instant::now() + time;
        let mut minute = Instant::now();
        while Instant::now() < end || !enough(&self.tally) {
            let pause = Duration::from_millis(500 + self.below(1500));
            self.listen(Instant::now() + pause, stuck);
            self.act();
            if minute.elapsed() > Duration::from_secs(60) {
                minute = Instant::now();
                println!("round {}, {} alive; {}", self.best, self.alive().len(), self.tally);
            }
        }
    }

    /// Nothing happens any more: all that live must come to one round.
    pub fn settle(&mut self, stuck: Duration) {
        let begin = Instant::now();
        let dead: Vec<usize> = (0..self.validators).filter(|i| self.owners[*i].child.is_none()).collect();
        dead.into_iter().for_each(|i| self.start(i, &[]));
        let goal = self.best + 2;
        while self.alive().iter().any(|i| self.owners[*i].told < goal) {
            self.listen(Instant::now() + Duration::from_millis(50), stuck);
            let behind: Vec<_> = self.alive().into_iter().filter(|i| self.owners[*i].told < goal).collect();
            let told: Vec<_> = behind.iter().map(|i| (*i, self.owners[*i].told)).collect();
            assert!(begin.elapsed() < 2 * stuck, "round {}: still behind {goal}: {told:?}", self.best);
        }
        self.tally.level_after = begin.elapsed();
    }

    /// The figures so far.
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// Kills all that live; what they wrote is kept until this goes.
    pub fn end(&mut self) {
        self.alive().into_iter().for_each(|i| self.kill(i));
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.owners.len()).filter(|i| self.owners[*i].child.is_some()).collect()
    }

    fn act(&mut self) {
        let alive = self.alive();
        if self.below(100) < 40 {
            if !alive.is_empty() {
                let who = alive[self.below(alive.len() as u64) as usize];
                self.kill(who);
            }
            return;
        }
        if alive.len() >= ALIVE_MAX {
            return;
        }
        let dead: Vec<usize> = (0..self.owners.len()).filter(|i| !alive.contains(i)).collect();
        let validators = (0..self.validators).filter(|i| alive.contains(i)).count();
        // A supervisor brings back whom the run cannot do without; else an old one or a new one, as it comes.
        let who = if 3 * validators <= 2 * self.validators {
            dead[0]
        } else if !dead.is_empty() && (self.below(2) == 0 || self.owners.len() == OWNERS_MAX) {
            dead[self.below(dead.len() as u64) as usize]
        } else {
            self.newcomer()
        };
        self.start(who, &[]);
    }

    pub fn kill(&mut self, i: usize) {
        let mut child = self.owners[i].child.take().expect("soak: one that lives");
        child.kill().unwrap();
        child.wait().unwrap();
        self.tally.kills += 1;
        self.tally.validators_killed += u64::from(i < self.validators);
    }

    /// Starts owner `i`, with these words behind the usual ones.
    pub fn start(&mut self, i: usize, more: &[&str]) {
        let owner = &mut self.owners[i];
        fs::create_dir_all(&owner.dir).unwrap();
        let log = File::options().create(true).append(true).open(owner.dir.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
        command.arg("peer").arg(&self.config).arg("--dir").arg(&owner.dir).args(["--listen", &owner.listen, "--json"]);
        for addr in self.join.iter().filter(|addr| **addr != owner.listen) {
            command.args(["--join", addr]);
        }
        for set in &self.sets {
            command.args(["--set", set]);
        }
        command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        (owner.child, owner.life, owner.told, owner.first, owner.counted) = (Some(child), owner.life + 1, 0, None, 0);
        let (tell, life) = (self.tell.clone(), owner.life);
        std::thread::spawn(move || {
            // What a killed process was writing is no line.
            let lines = stdout.lines().map_while(Result::ok);
            for event in lines.map_while(|line| serde_json::from_str(&line).ok()) {
                let _ = tell.send((i, life, Some(event)));
            }
            let _ = tell.send((i, life, None));
        });
        self.tally.starts += 1;
    }

    /// Takes what is told until `until`.
    fn listen(&mut self, until: Instant, stuck: Duration) {
        loop {
            let (gap, best) = (self.best_at.elapsed(), self.best);
            assert!(gap < stuck, "{:.0} s without a round after round {best}; {}", gap.as_secs_f64(), self.tally);
            let left = until.saturating_duration_since(Instant::now());
            match self.told.recv_timeout(left.min(Duration::from_secs(1))) {
                Ok((i, life, event)) => self.hear(i, life, event),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= until => return,
                Err(_) => {}
            }
        }
    }

    fn hear(&mut self, i: usize, life: u32, event: Option<Event>) {
        let owner = &self.owners[i];
        let lives = owner.child.is_some() && owner.life == life;
        match event {
            // Killed ones end too; but nobody may end by himself.
            None if lives => {
                let log = fs::read_to_string(owner.dir.join("log")).unwrap_or_default();
                let from = log.len().saturating_sub(2000);
                let tail = log.get(from..).unwrap_or(&log);
                panic!("owner {i} ended by itself; its log ends with:\n{tail}");
            }
            Some(Event::Round(line)) => self.round(i, lives, &line),
            _ => {}
        }
    }

    fn round(&mut self, i: usize, lives: bool, line: &Line) {
        let root = self.roots.entry(line.round).or_insert_with(|| line.root.clone());
        assert_eq!(*root, line.root, "owner {i} has another root after round {}", line.round);
        self.tally.roots += 1;
        if line.round > self.best {
            self.tally.rounds += 1;
            self.tally.longest = self.tally.longest.max(self.best_at.elapsed());
            (self.best, self.best_at) = (line.round, Instant::now());
        }
        self.tally.counted += u64::from(line.counted == Some(true));
        let owner = &mut self.owners[i];
        if !lives {
            return;
        }
        assert!(line.round > owner.told, "owner {i} told round {} after {}", line.round, owner.told);
        owner.told = line.round;
        let first = *owner.first.get_or_insert(line.round);
        if line.counted == Some(true) {
            if owner.counted == 0 {
                self.tally.waits.push(line.round - first);
            }
            owner.counted += 1;
        }
    }

    /// A draw below `n`: xorshift64*.
    fn below(&mut self, n: u64) -> u64 {
        self.rng = self.rng.max(1);
        self.rng ^= self.rng >> 12;
        self.rng ^= self.rng << 25;
        self.rng ^= self.rng >> 27;
        (self.rng.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}

impl Owner {
    fn new(dir: PathBuf, listen: String) -> Owner {
        Owner { dir, listen, child: None, life: 0, told: 0, first: None, counted: 0 }
    }
}

/// Where so many owners can always be found, though nobody is there while they are dead. Ports below those that systems
/// hand out, at an address drawn for each world, as others run this test beside us: all of 127.0.0.0/8 is this machine
/// on Linux, and elsewhere it has to be 127.0.0.1.
fn places(n: usize) -> Vec<SocketAddr> {
    let draw = RandomState::new().build_hasher().finish();
    let [a, b, c, p, q, ..] = draw.to_le_bytes();
    let from = 20_000 + u16::from_le_bytes([p, q]) % 8_000;
    let free = |addr: &SocketAddr| UdpSocket::bind(addr).is_ok();
    let at = |ip: [u8; 4]| (from..32_000).map(move |port| SocketAddr::from((ip, port))).filter(free).take(n).collect();
    let places: Vec<SocketAddr> = [[127, a | 1, b, 1 + c % 250], [127, 0, 0, 1]]
        .into_iter()
        .map(at)
        .find(|places: &Vec<SocketAddr>| places.len() == n)
        .unwrap_or_else(|| panic!("soak: no free ports above {from}"));
    places
}
