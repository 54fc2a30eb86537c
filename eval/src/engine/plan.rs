//! Which rows share what: texts of a root and branches, cut into batches.
//!
//! Rows with equal inputs are one *path*. Paths in alphabetical order have their common beginnings side by side, so one
//! sweep finds them: a path joins the text before it as a branch of its root, from where they part, unless opening a text
//! of its own saves more tokens with the paths that follow than it costs. So the choices of a question read the question
//! once, questions behind one few-shot prompt the prompt, and continuations of one token cost nothing at all.

use super::encode::Row;
use esker_model::score::Batch;
use std::ops::Range;

/// Rows with the same inputs.
#[derive(Debug)]
pub(crate) struct Path {
    /// Which rows.
    pub rows: Vec<usize>,
    /// Tokens it shares with the root of its text.
    pub depth: usize,
}

/// A root, the first of its paths, and its branches.
#[derive(Debug)]
pub(crate) struct Text {
    /// In order.
    pub paths: Vec<Path>,
    /// Tokens to read.
    pub tokens: usize,
}

/// All rows as texts of at most `most` tokens each; every row's inputs alone fit that.
pub(crate) fn texts(rows: &[Row], most: usize) -> Vec<Text> {
    let inputs = |i: usize| rows[i].inputs();
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|&a, &b| inputs(a).cmp(inputs(b)));
    let mut paths: Vec<Vec<usize>> = Vec::new();
    for i in order {
        match paths.last_mut() {
            Some(path) if inputs(path[0]) == inputs(i) => path.push(i),
            _ => paths.push(vec![i]),
        }
    }
    let shared: Vec<usize> =
        std::iter::once(0).chain(paths.windows(2).map(|pair| common(inputs(pair[0][0]), inputs(pair[1][0])))).collect();
    let mut texts: Vec<Text> = Vec::new();
    // What the path at hand shares with the root of the last text.
    let mut depth = 0;
    for (i, rows) in paths.into_iter().enumerate() {
        let len = inputs(rows[0]).len();
        depth = depth.min(shared[i]);
        match texts.last_mut() {
            Some(text) if depth > 0 && text.tokens + len - depth <= most && !better_alone(&shared, i, depth) => {
                text.tokens += len - depth;
                text.paths.push(Path { rows, depth });
            }
            _ => {
                depth = len;
                texts.push(Text { paths: vec![Path { rows, depth: 0 }], tokens: len });
            }
        }
    }
    texts
}

/// Whether path i, which shares `depth` tokens with the root at hand, shares so much more with those after it that reading
/// these `depth` tokens again pays.
fn better_alone(shared: &[usize], i: usize, depth: usize) -> bool {
    let (mut common, mut gain) = (usize::MAX, 0);
    for &next in &shared[i + 1..] {
        common = common.min(next);
        if common <= depth {
            return false;
        }
        gain += common - depth;
        if gain > depth {
            return true;
        }
    }
    false
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// A batch, and what is asked at each of its places.
#[derive(Debug, Default)]
pub(crate) struct Asking {
    pub batch: Batch,
    pub asked: Vec<Vec<Target>>,
}

/// What a row asks of one place: how likely its next token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub row: usize,
    /// Which of the row's inputs stands at the place.
    pub place: usize,
    /// The next token.
    pub id: u32,
}

impl Asking {
    /// Adds a text.
    pub fn put(&mut self, rows: &[Row], text: &Text) {
        let before = self.batch.tokens();
        let root = self.batch.root(rows[text.paths[0].rows[0]].inputs());
        let own: Vec<Range<usize>> = text.paths[1..]
            .iter()
            .map(|path| self.batch.branch(&root, path.depth, &rows[path.rows[0]].inputs()[path.depth..]))
            .collect();
        // Which question is the one at each place of this text.
        let mut index = vec![usize::MAX; self.batch.tokens() - before];
        for (n, path) in text.paths.iter().enumerate() {
            for &r in &path.rows {
                for p in rows[r].from()..rows[r].inputs().len() {
                    let place =
                        if n == 0 || p < path.depth { root.start + p } else { own[n - 1].start + p - path.depth };
                    let index = &mut index[place - before];
                    if *index == usize::MAX {
                        *index = self.asked.len();
                        self.batch.ask(place);
                        self.asked.push(Vec::new());
                    }
                    self.asked[*index].push(Target { row: r, place: p, id: rows[r].ids[p + 1] });
                }
            }
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.batch.clear();
        self.asked.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str, scored: usize) -> Row {
        Row { ids: text.bytes().map(u32::from).collect(), scored }
    }

    /// Roots and branches, spelt.
    fn spelt(rows: &[Row], most: usize) -> Vec<Vec<String>> {
        let of = |path: &Path| {
            let bytes: Vec<u8> = rows[path.rows[0]].inputs()[path.depth..].iter().map(|&id| id as u8).collect();
            format!("{}+{}", path.depth, String::from_utf8(bytes).unwrap())
        };
        texts(rows, most).iter().map(|text| text.paths.iter().map(of).collect()).collect()
    }

    #[test]
    fn choices_share_their_question_and_questions_their_prompt() {
        let rows = ["abcd QxyZ", "abcd QuvZ", "abcd R12Z", "abcd R13Z", "zzz"].map(|t| row(t, 2));
        assert_eq!(spelt(&rows, 100), [vec!["0+abcd Quv", "6+xy", "5+R12", "5+R13"], vec!["0+zz"]]);
        // Long questions share so little before they part that each is a text of its own.
        let rows = ["Q: one two 1aZ", "Q: one two 2bZ", "Q: six ten 1aZ", "Q: six ten 2bZ"].map(|t| row(t, 2));
        assert_eq!(spelt(&rows, 100), [vec!["0+Q: one two 1a", "11+2b"], vec!["0+Q: six ten 1a", "11+2b"]]);
        assert_eq!(spelt(&rows, 13).len(), 4, "a text has a limit");
    }

    #[test]
    fn equal_inputs_are_read_once_and_each_place_asked_once() {
        let rows = [row("abcX", 1), row("abcY", 1), row("abcX", 3), row("abZ", 1)];
        let texts = texts(&rows, 100);
        assert_eq!(texts.len(), 1);
        let mut asking = Asking::default();
        asking.put(&rows, &texts[0]);
        assert_eq!(asking.batch.tokens(), 3 + 2 - 2);
        assert_eq!(asking.batch.places(), 3);
        let mut all = asking.asked.concat();
        all.sort_unstable();
        let of = |row, place, c: char| Target { row, place, id: c as u32 };
        let two = [of(2, 0, 'b'), of(2, 1, 'c'), of(2, 2, 'X')];
        assert_eq!(all, [&[of(0, 2, 'X'), of(1, 2, 'Y')], &two[..], &[of(3, 1, 'Z')]].concat());
    }
}
