//! Rows made ahead of time by one thread, so that whoever computes never waits for them.
//!
//! ```text
//! free  -->  [thread: advise the request after, count, fill]  -->  ready  -->  wait()
//!   ^------------------------- the rows before -------------------------------'
//! ```
//!
//! The requests are known beforehand, each is a place and a number of rows, and what a row holds
//! is a function of its position: so a thread changes no bit. The buffers are all made at the
//! start and go round; the thread stops when none is free, so memory is bounded and nothing is
//! allocated on the way. What goes wrong comes out of [`Prefetch::wait`] in its turn, after the
//! rows before it; dropping a [`Prefetch`] ends its thread after the request it is at.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crate::loader::{Batch, Loader, LoaderError};

/// Rows that will be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Of the first row, since the start of the run.
    pub position: u64,
    /// At most as many as the buffers hold.
    pub rows: usize,
    /// Rows from `position` on whose targets are counted before the first of them is handed out;
    /// 0 counts none.
    pub count_rows: usize,
}

/// Rows that are ready. Each slice has rows x seq_len places.
#[derive(Debug)]
pub struct Rows {
    request: Request,
    len: usize,
    targets_counted: u64,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    doc_first: Option<Vec<u32>>,
}

impl Rows {
    fn new(places: usize, documents: bool) -> Rows {
        Rows {
            request: Request { position: 0, rows: 0, count_rows: 0 },
            len: 0,
            targets_counted: 0,
            inputs: vec![0; places],
            targets: vec![0; places],
            doc_first: documents.then(|| vec![0; places]),
        }
    }

    /// What was asked for.
    pub fn request(&self) -> Request {
        self.request
    }

    /// Targets that count in the `count_rows` rows of the request.
    pub fn targets_counted(&self) -> u64 {
        self.targets_counted
    }

    pub fn inputs(&self) -> &[u32] {
        &self.inputs[..self.len]
    }

    /// What comes next, or [`crate::IGNORED`].
    pub fn targets(&self) -> &[u32] {
        &self.targets[..self.len]
    }

    /// Place in its row where the document of each input begins, where that was asked for.
    pub fn doc_first(&self) -> Option<&[u32]> {
        self.doc_first.as_ref().map(|d| &d[..self.len])
    }

    fn fill(&mut self, loader: &Loader, request: Request) -> Result<(), LoaderError> {
        self.request = request;
        self.len = request.rows * loader.config().seq_len;
        self.targets_counted = match request.count_rows {
            0 => 0,
            rows => loader.targets(request.position, rows)?,
        };
        let batch = Batch {
            inputs: &mut self.inputs[..self.len],
            targets: &mut self.targets[..self.len],
            doc_first: self.doc_first.as_mut().map(|d| &mut d[..self.len]),
        };
        loader.fill(request.position, request.rows, batch)
    }
}

/// How much is made ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// Buffers that go round, at least 2; one of them is with the caller.
    pub buffers: usize,
    /// Rows of the largest request.
    pub rows: usize,
    /// Whether rows say where their documents begin.
    pub documents: bool,
}

impl Ahead {
    /// Bytes of all buffers for rows of `seq_len` tokens.
    pub fn bytes(self, seq_len: usize) -> usize {
        let slices = if self.documents { 3 } else { 2 };
        self.buffers * slices * size_of::<u32>() * self.rows * seq_len
    }
}

/// A thread that makes rows ahead.
#[derive(Debug)]
pub struct Prefetch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    current: Option<Rows>,
}

impl Prefetch {
    /// Starts making the rows of `requests`, in their order.
    ///
    /// # Panics
    /// If there are fewer than two buffers.
    pub fn start(
        loader: Loader,
        ahead: Ahead,
        requests: impl Iterator<Item = Request> + Send + 'static,
    ) -> Result<Prefetch, LoaderError> {
        assert!(ahead.buffers >= 2, "prefetch: one buffer cannot be filled and read at once");
        let places = ahead.rows * loader.config().seq_len;
        let free: VecDeque<Rows> = (0..ahead.buffers).map(|_| Rows::new(places, ahead.documents)).collect();
        // Room for all buffers and a failure: neither queue ever grows.
        let queues = Queues { free, ready: VecDeque::with_capacity(ahead.buffers + 1), ended: false, closed: false };
        let shared = Arc::new(Shared { queues: Mutex::new(queues), changed: Condvar::new() });
        let theirs = Ending(Arc::clone(&shared));
        let work = move || work(&loader, requests, &theirs.0);
        let thread = std::thread::Builder::new().name("esker-rows".into()).spawn(work);
        let thread = thread.map_err(|source| LoaderError::Thread { source })?;
        Ok(Prefetch { shared, thread: Some(thread), current: None })
    }

    /// The rows of the next request; waits until they are ready. Those handed out before are
    /// given up.
    ///
    /// # Panics
    /// If there is no further request, or an earlier call has failed.
    pub fn wait(&mut self) -> Result<&Rows, LoaderError> {
        let mut queues = self.shared.lock();
        queues.free.extend(self.current.take());
        self.shared.changed.notify_all();
        loop {
            if let Some(ready) = queues.ready.pop_front() {
                return Ok(self.current.insert(ready?));
            }
            if queues.ended {
                drop(queues);
                if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
                    std::panic::resume_unwind(panic);
                }
                panic!("prefetch: more rows are asked for than were requested");
            }
            queues = self.shared.changed.wait(queues).unwrap_or_else(|e| e.into_inner());
        }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has been said there; this is no place for a second one.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Shared {
    queues: Mutex<Queues>,
    changed: Condvar,
}

#[derive(Debug)]
struct Queues {
    free: VecDeque<Rows>,
    ready: VecDeque<Result<Rows, LoaderError>>,
    /// The thread puts nothing more into `ready`.
    ended: bool,
    /// Nobody takes anything more out of it.
    closed: bool,
}

impl Shared {
    /// The queues are whole whoever panicked while holding them: nothing in between can.
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A free buffer; none when nobody reads any more.
    fn take(&self) -> Option<Rows> {
        let mut queues = self.lock();
        loop {
            if queues.closed {
                return None;
            }
            if let Some(rows) = queues.free.pop_front() {
                return Some(rows);
            }
            queues = self.changed.wait(queues).unwrap_or_else(|e| e.into_inner());
        }
    }

    fn put(&self, rows: Result<Rows, LoaderError>) {
        self.lock().ready.push_back(rows);
        self.changed.notify_all();
    }
}

/// Says that the thread has ended, however it did.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

fn work(loader: &Loader, mut requests: impl Iterator<Item = Request>, shared: &Shared) {
    let mut next = requests.next();
    while let Some(request) = next {
        next = requests.next();
        if let Some(after) = next {
            loader.advise(after.position, after.rows);
        }
        let Some(mut rows) = shared.take() else { return };
        match rows.fill(loader, request) {
            Ok(()) => shared.put(Ok(rows)),
            Err(e) => return shared.put(Err(e)),
        }
    }
}
