//! Benchmarks of base models, item by item as lm-evaluation-harness 0.4.13 asks and scores them.
//!
//! ```text
//! load        names and a folder of rows   ->  Suite: every task with its documents and examples
//! requests    a task                       ->  what to ask, in the order of its documents
//! score       a task and the answers       ->  a number for each document, metric and filter
//! gather      all scored tasks             ->  means, their errors, groups: a Report
//! ```
//!
//! Who answers is no matter here: [`crate::engine`], or a recording. The catalogue of tasks and the files they read
//! stand in `catalogue.rs`, what each makes of a row in `docs.rs`, how examples are drawn in `shots.rs`, metrics in
//! `score.rs` and `aggregate.rs`, the layout of results in [`crate::report`].

mod aggregate;
mod catalogue;
mod docs;
mod rows;
mod score;
mod shots;
mod text;

pub use aggregate::{Metric, Outcome};
pub use catalogue::NAMES;
pub use esker_eval_chance::random::Random;
pub use rows::RowError;
pub use score::{Scored, Value};

use crate::request::{Answer, Request};
use catalogue::{Group, Pool, Spec};
use docs::Asked;
use rows::{Fault, Row};
use serde_json::Map;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The seed of the harness.
pub const SEED: u64 = 1234;
/// Resamplings behind the error of a perplexity, in the harness.
pub const BOOTSTRAP_ITERS: usize = 100_000;

/// Enough to fill batches of one length, few enough to show how far it is.
const REQUESTS_AT_ONCE: usize = 2048;

/// Whether there is a task or a group of that name.
pub fn exists(name: &str) -> bool {
    catalogue::group(name).is_some() || catalogue::task(name).is_some()
}

/// How tasks are run.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Documents of a task, at most; the first ones.
    pub limit: Option<usize>,
    /// Examples before each question; `None`: the task's own number. A task that never shows any shows none.
    pub num_fewshot: Option<usize>,
    /// Of the draws of examples.
    pub seed: u64,
    /// Resamplings behind the error of a perplexity; 0: no errors at all.
    pub bootstrap_iters: usize,
}

impl Default for Options {
    /// The harness's own.
    fn default() -> Options {
        Options { limit: None, num_fewshot: None, seed: SEED, bootstrap_iters: BOOTSTRAP_ITERS }
    }
}

/// Why tasks cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// A name that is no task's.
    #[error(
        "there is no task {name:?}; there are {}, the groups mmlu_stem, mmlu_other, mmlu_social_sciences and mmlu_humanities, and single subjects such as mmlu_anatomy or hendrycks_math_algebra",
        NAMES.join(", ")
    )]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// Its rows cannot be had.
    #[error(transparent)]
    Rows(#[from] RowError),
    /// More examples than there are.
    #[error("{task}: {asked} examples are more than the {there} there are to {how}; lower num_fewshot")]
    Examples {
        /// The task.
        task: String,
        /// What was asked for; one more where the document itself is left out.
        asked: usize,
        /// Rows of the pool.
        there: usize,
        /// "draw from", or "show".
        how: &'static str,
    },
    /// Nothing was asked for.
    #[error("no task is named; there are {}", NAMES.join(", "))]
    Nothing,
    /// A limit of none.
    #[error("a limit of 0 documents leaves nothing to score; at least 1")]
    Limit,
}

/// A document: a row, and what is made of it.
#[derive(Clone, Debug)]
struct Doc {
    row: Map<String, serde_json::Value>,
    asked: Asked,
}

/// A task with its documents.
#[derive(Clone, Debug)]
pub struct Task {
    spec: Spec,
    docs: Vec<Doc>,
    /// Of each document, the examples before it as text, the description first.
    before: Before,
    shots: usize,
    /// Rows of the whole split.
    original: usize,
    /// Where examples came from a part of their split only.
    part: Option<PathBuf>,
}

/// What stands before each question.
#[derive(Clone, Debug)]
struct Before {
    pool: Vec<Doc>,
    /// Places in the pool for each document, or the same for all when there is one list only.
    drawn: Vec<Vec<usize>>,
}

/// Tasks and the groups that gather them.
#[derive(Clone, Debug)]
pub struct Suite {
    /// In the order of their names and of the groups' members; each task once.
    pub tasks: Vec<Task>,
    groups: Vec<Group>,
    /// Names as they were asked for.
    asked: Vec<String>,
    options: Options,
}

impl Suite {
    /// Reads the rows of the tasks and groups named, from a folder.
    pub fn load(names: &[impl AsRef<str>], data: &Path, options: &Options) -> Result<Suite, TaskError> {
        if names.is_empty() {
            return Err(TaskError::Nothing);
        }
        if options.limit == Some(0) {
            return Err(TaskError::Limit);
        }
        let (mut specs, mut groups, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        for name in names.iter().map(AsRef::as_ref) {
            if !asked.iter().any(|a| a == name) {
                resolve(name, &mut specs, &mut groups)?;
                asked.push(name.to_owned());
            }
        }
        let mut files = Files { data, read: HashMap::new() };
        let tasks = specs.into_iter().map(|spec| Task::load(spec, &mut files, options)).collect::<Result<_, _>>()?;
        Ok(Suite { tasks, groups, asked, options: options.clone() })
    }

    /// Asks all tasks, task by task and some documents at a time, and gathers.
    ///
    /// `ask` answers requests, in their order; it is told how many documents of all tasks are done. `each` sees every task with
    /// its answers and what they are worth.
    pub fn run<E>(
        &self,
        mut ask: impl FnMut(&Task, usize, &[Request]) -> Result<Vec<Answer>, E>,
        mut each: impl FnMut(&Task, &[Answer], &[Scored]) -> Result<(), E>,
    ) -> Result<Vec<Outcome>, E> {
        let (mut all, mut before) = (Vec::with_capacity(self.tasks.len()), 0);
        for task in &self.tasks {
            let (mut answers, mut doc) = (Vec::new(), 0);
            while doc < task.documents() {
                let mut requests = Vec::new();
                let from = doc;
                while doc < task.documents() && requests.len() < REQUESTS_AT_ONCE {
                    requests.extend(task.requests_of(doc));
                    doc += 1;
                }
                let got = ask(task, before + from, &requests)?;
                assert_eq!(got.len(), requests.len(), "tasks: an answer for each request");
                answers.extend(got);
            }
            before += doc;
            let scored = task.score(&answers);
            each(task, &answers, &scored)?;
            all.push(scored);
        }
        Ok(self.gather(&all))
    }

    /// Means, errors and groups of all tasks; `scored` are those of [`Suite::tasks`], in their order.
    pub fn gather(&self, scored: &[Vec<Scored>]) -> Vec<Outcome> {
        assert_eq!(scored.len(), self.tasks.len(), "tasks: gather");
        let outcomes: Vec<Outcome> = self
            .tasks
            .iter()
            .zip(scored)
            .map(|(task, scored)| aggregate::of_task(task, scored, self.options.bootstrap_iters))
            .collect();
        aggregate::with_groups(&self.asked, &self.groups, outcomes)
    }

    /// What [`Suite::gather`] gives, without a number.
    pub fn outline(&self) -> Vec<Outcome> {
        self.gather(&vec![Vec::new(); self.tasks.len()])
    }

    /// What the tasks were loaded with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Files that held only a part of the split that examples are drawn from: others are shown than the harness shows.
    pub fn parts(&self) -> Vec<(&str, &Path)> {
        self.tasks.iter().filter_map(|t| Some((t.name(), t.part.as_deref()?))).collect()
    }
}

/// Adds what `name` stands for, members before their group.
fn resolve(name: &str, specs: &mut Vec<Spec>, groups: &mut Vec<Group>) -> Result<(), TaskError> {
    if let Some(group) = catalogue::group(name) {
        for member in &group.members {
            resolve(member, specs, groups)?;
        }
        if !groups.contains(&group) {
            groups.push(group);
        }
        return Ok(());
    }
    let spec = catalogue::task(name).ok_or_else(|| TaskError::Unknown { name: name.into() })?;
    if !specs.iter().any(|s: &Spec| s.name == spec.name) {
        specs.push(spec);
    }
    Ok(())
}

/// The files of a folder, each read once.
struct Files<'a> {
    data: &'a Path,
    read: HashMap<PathBuf, Rc<Vec<Row>>>,
}

impl Files<'_> {
    fn rows(&mut self, path: &Path) -> Result<Rc<Vec<Row>>, RowError> {
        if let Some(rows) = self.read.get(path) {
            return Ok(rows.clone());
        }
        let rows = Rc::new(rows::read(path)?);
        self.read.insert(path.into(), rows.clone());
        Ok(rows)
    }

    /// The documents of a split; `pool`: as examples, from a part of the split or rendered if need be.
    fn docs(&mut self, spec: &Spec, split: &'static str, pool: bool) -> Result<(Vec<Doc>, PathBuf, bool), TaskError> {
        let found = rows::find(self.data, spec.stems, split, pool)?;
        let Some(found) = found else {
            let name = if split.is_empty() { spec.stems[0].into() } else { format!("{}.{split}", spec.stems[0]) };
            let task = if pool { format!("{} with examples", spec.name) } else { spec.name.clone() };
            let (fields, source_of) = (spec.fields, spec.origin);
            return Err(RowError::Missing { dir: self.data.into(), name, task, fields, source_of }.into());
        };
        let path = found.path;
        let mut docs = Vec::new();
        for row in self.rows(&path)?.iter() {
            let bad = |Fault(why)| RowError::Line {
                path: path.clone(),
                line: row.line,
                why: format!("{why}; a row of {} is {}", spec.name, spec.fields),
            };
            if let Some((key, value)) = spec.only
                && rows::text(&row.fields, key).map_err(bad)? != value
            {
                continue;
            }
            let rendered = pool && row.fields.contains_key("query");
            let asked = if rendered { docs::rendered(&row.fields) } else { (spec.read)(&row.fields) };
            docs.push(Doc { row: row.fields.clone(), asked: asked.map_err(bad)? });
        }
        if docs.is_empty() {
            let of = spec.only.map_or(String::new(), |(key, value)| format!(" whose {key} is {value:?}"));
            return Err(RowError::Empty { path, of }.into());
        }
        Ok((docs, path, found.whole))
    }
}

impl Task {
    fn load(spec: Spec, files: &mut Files<'_>, options: &Options) -> Result<Task, TaskError> {
        let (mut docs, _, _) = files.docs(&spec, spec.split, false)?;
        let original = docs.len();
        let shots = match spec.pool {
            Pool::Never => 0,
            _ => options.num_fewshot.unwrap_or(spec.shots),
        };
        let (mut pool, mut part) = (Vec::new(), None);
        match spec.pool {
            _ if shots == 0 => {}
            Pool::Never => {}
            Pool::Written => pool = shots::written(),
            // The examples of such a task are its own documents.
            Pool::Drawn { split, .. } if split == spec.split => pool = docs.clone(),
            Pool::Drawn { split, .. } | Pool::First { split } => {
                let (docs, path, whole) = files.docs(&spec, split, true)?;
                pool = docs;
                part = (!whole).then_some(path);
            }
        }
        docs.truncate(options.limit.unwrap_or(usize::MAX));
        let drawn = shots::draw(&spec, &docs, &pool, shots, options.seed)?;
        Ok(Task { before: Before { pool, drawn }, spec, docs, shots, original, part })
    }

    /// Its name in the harness.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Documents that are asked.
    pub fn documents(&self) -> usize {
        self.docs.len()
    }

    /// What to ask, document by document.
    pub fn requests(&self) -> Vec<Request> {
        (0..self.docs.len()).flat_map(|i| self.requests_of(i)).collect()
    }

    fn requests_of(&self, doc: usize) -> Vec<Request> {
        let before = self.before(doc);
        let likely = |context: String, continuation: String| Request::LogLikelihood { context, continuation };
        match &self.docs[doc].asked {
            Asked::Choice { question, choices, .. } => {
                let context = before + question;
                choices.iter().map(|choice| likely(context.clone(), format!(" {choice}"))).collect()
            }
            Asked::Blank { beginnings, end, .. } => {
                beginnings.iter().map(|begin| likely(format!("{before}{begin}"), format!(" {end}"))).collect()
            }
            Asked::LastWord { text, word } => vec![likely(before + text, word.clone())],
            Asked::Open { question, .. } => {
                let until = self.spec.until.stops.iter().map(|s| s.to_string()).collect();
                vec![Request::Generate { context: before + question, until, max_tokens: self.spec.until.max_tokens }]
            }
        }
    }

    /// Description and examples.
    fn before(&self, doc: usize) -> String {
        let mut out = self.spec.description.clone();
        let drawn = &self.before.drawn;
        for &at in drawn.get(doc).or(drawn.first()).into_iter().flatten() {
            shots::example(&self.before.pool[at].asked, &mut out);
        }
        out
    }

    /// What the answers to [`Task::requests`] are worth: a row for each filter and document, filters outermost.
    pub fn score(&self, answers: &[Answer]) -> Vec<Scored> {
        score::of(self, answers)
    }
}
