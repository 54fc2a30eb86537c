//! The formula, one thread, in `f64`.

use super::Dims;

/// q, k and v of a call, and where documents start.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `[B, T, H, D]`
    pub q: &'a [f64],
    /// `[B, T, K, D]`
    pub k: &'a [f64],
    /// `[B, T, K, D]`
    pub v: &'a [f64],
    /// `[B, T]`
    pub first: Option<&'a [u32]>,
}

impl Inputs<'_> {
    fn first(&self, d: Dims, b: usize, i: usize) -> usize {
        self.first.map_or(0, |first| first[b * d.seq + i] as usize)
    }
}

/// o `[B, T, H, D]` and lse `[B, H, T]`.
pub fn forward(d: Dims, x: Inputs<'_>) -> (Vec<f64>, Vec<f64>) {
    let mut o = vec![0.0; d.batch * d.seq * d.heads * d.head_dim];
    let mut lse = vec![0.0; d.batch * d.heads * d.seq];
    for (b, h, i) in queries(d) {
        let (row, l) = forward_row(d, x, b, h, i);
        o[query(d, b, i, h)..][..d.head_dim].copy_from_slice(&row);
        lse[(b * d.heads + h) * d.seq + i] = l;
    }
    (o, lse)
}

/// o `[D]` and lse of query i of head h in row b.
pub fn forward_row(d: Dims, x: Inputs<'_>, b: usize, h: usize, i: usize) -> (Vec<f64>, f64) {
    row(d, x, b, h, i, x.first(d, b, i)..i + 1)
}

/// o `[B, T, H, D]` where query i sees `trunk_i` besides its own branch; `trunk` is `[B, T, 2]`.
pub fn tree(d: Dims, x: Inputs<'_>, trunk: &[u32]) -> Vec<f64> {
    let mut o = vec![0.0; d.batch * d.seq * d.heads * d.head_dim];
    for (b, h, i) in queries(d) {
        let t = &trunk[2 * (b * d.seq + i)..][..2];
        let keys = (t[0] as usize..t[1] as usize).chain(x.first(d, b, i)..i + 1);
        o[query(d, b, i, h)..][..d.head_dim].copy_from_slice(&row(d, x, b, h, i, keys).0);
    }
    o
}

/// o `[n, H, D]` of the last n = `d.seq` of `len` tokens.
pub fn decode(d: Dims, x: Inputs<'_>, len: usize) -> Vec<f64> {
    let rows = (0..d.seq).flat_map(|i| (0..d.heads).map(move |h| row(d, x, 0, h, i, 0..len - d.seq + i + 1).0));
    rows.flatten().collect()
}

fn row(
    d: Dims,
    x: Inputs<'_>,
    b: usize,
    h: usize,
    i: usize,
    keys: impl Iterator<Item = usize> + Clone,
) -> (Vec<f64>, f64) {
    let s: Vec<f64> = keys.clone().map(|j| score(d, x, b, h, i, j)).collect();
    let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + s.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
    let mut o = vec![0.0; d.head_dim];
    for (j, s) in keys.zip(&s) {
        let p = (s - lse).exp();
        for c in 0..d.head_dim {
            o[c] += p * x.v[key(d, b, j, h) + c];
        }
    }
    (o, lse)
}

/// dq, dk and dv for `do_`, shaped as q, k and v.
pub fn backward(d: Dims, x: Inputs<'_>, do_: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (o, lse) = forward(d, x);
    let (mut dq, mut dk, mut dv) = (vec![0.0; x.q.len()], vec![0.0; x.k.len()], vec![0.0; x.v.len()]);
    for (b, h, i) in queries(d) {
        let at = query(d, b, i, h);
        let delta: f64 = (0..d.head_dim).map(|c| do_[at + c] * o[at + c]).sum();
        for j in x.first(d, b, i)..=i {
            let to = key(d, b, j, h);
            let p = (score(d, x, b, h, i, j) - lse[(b * d.heads + h) * d.seq + i]).exp();
            let dp: f64 = (0..d.head_dim).map(|c| do_[at + c] * x.v[to + c]).sum();
            let ds = p * (dp - delta) * d.scale();
            for c in 0..d.head_dim {
                dq[at + c] += ds * x.k[to + c];
                dk[to + c] += ds * x.q[at + c];
                dv[to + c] += p * do_[at + c];
            }
        }
    }
    (dq, dk, dv)
}

fn score(d: Dims, x: Inputs<'_>, b: usize, h: usize, i: usize, j: usize) -> f64 {
    let (q, k) = (query(d, b, i, h), key(d, b, j, h));
    d.scale() * (0..d.head_dim).map(|c| x.q[q + c] * x.k[k + c]).sum::<f64>()
}

fn queries(d: Dims) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..d.batch * d.heads * d.seq).map(move |n| (n / d.seq / d.heads, n / d.seq % d.heads, n % d.seq))
}

/// Where query i of head h starts in q.
fn query(d: Dims, b: usize, i: usize, h: usize) -> usize {
    ((b * d.seq + i) * d.heads + h) * d.head_dim
}

/// Where key j of the key head of head h starts in k.
fn key(d: Dims, b: usize, j: usize, h: usize) -> usize {
    ((b * d.seq + j) * d.kv_heads + h / d.group()) * d.head_dim
}
