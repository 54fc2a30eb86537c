//! What a run computes element by element without an op: sums of losses, distances, the arithmetic of the study's
//! baselines.
//!
//! ```text
//! total         sum + Σ l_i                                   f64, from the first loss to the last
//! relative_l2   ‖a − b‖ / ‖b‖
//! decay_add     m ← decay · m + lr · g
//! means         s ← s / max(n, 1)
//! add_apart     m ← m + (a − t) · share
//! nesterov      v ← momentum · v + g;   a ← a − lr · (g + momentum · v)       PyTorch's form of SGD
//! sign_step     w ← w − lr · (decay · w + sign d)
//! tiles         a matrix as tiles of SIDE x SIDE, tile after tile, each row by row
//! ```
//!
//! These loops are a crate of their own because `esker-train` is built without optimisation: it joins things, each of
//! its lines runs once a step or less, and optimised it would take a quarter of a minute more to build. A line of
//! `train` that runs for each element or token belongs here, in `data`, or in an op.

/// Side of a tile.
pub const SIDE: usize = 64;

/// `sum` and the losses, added one by one.
pub fn total(losses: &[f32], sum: f64) -> f64 {
    losses.iter().fold(sum, |sum, &nll| sum + f64::from(nll))
}

/// ‖a − b‖ / ‖b‖; where b is zero, ‖a‖.
pub fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    let (mut apart, mut size) = (0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        apart += (f64::from(a) - f64::from(b)).powi(2);
        size += f64::from(b).powi(2);
    }
    apart.sqrt() / if size > 0.0 { size.sqrt() } else { 1.0 }
}

/// m ← decay · m + lr · g
pub fn decay_add(m: &mut [f32], decay: f32, lr: f32, g: &[f32]) {
    for (m, g) in m.iter_mut().zip(g) {
        *m = decay * *m + lr * g;
    }
}

/// s ← s / max(n, 1)
pub fn means(sums: &mut [f32], counts: &[f32]) {
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum /= count.max(1.0);
    }
}

/// m ← m + (a − t) · share
pub fn add_apart(mean: &mut [f32], a: &[f32], t: &[f32], share: f32) {
    for ((m, a), t) in mean.iter_mut().zip(a).zip(t) {
        *m += (a - t) * share;
    }
}

/// v ← momentum · v + g; a ← a − lr · (g + momentum · v)
pub fn nesterov(a: &mut [f32], v: &mut [f32], g: &[f32], lr: f32, momentum: f32) {
    for ((a, v), g) in a.iter_mut().zip(v).zip(g) {
        *v = momentum * *v + g;
        *a -= lr * (g + momentum * *v);
    }
}

/// The tiles of a matrix of `[rows, cols]`, one after another.
pub fn to_tiles(shape: [usize; 2], matrix: &[f32], to: &mut [f32]) {
    tiles(shape, |tile, from| to[tile..][..SIDE].copy_from_slice(&matrix[from..][..SIDE]));
}

/// w ← w − lr · (decay · w + sign d), where `d` has the elements of the matrix w tile after tile.
pub fn sign_step_of_tiles(shape: [usize; 2], w: &mut [f32], d: &[f32], lr: f32, decay: f32) {
    tiles(shape, |tile, to| {
        for (w, d) in w[to..][..SIDE].iter_mut().zip(&d[tile..]) {
            *w -= lr * (decay * *w + sign(*d));
        }
    });
}

/// w ← w − lr · sign d, where d is the sum of `parts`, each as long as w or longer.
pub fn sign_step_of_sums(w: &mut [f32], parts: &[&[f32]], lr: f32) {
    for (i, w) in w.iter_mut().enumerate() {
        *w -= lr * sign(parts.iter().map(|part| part[i]).sum());
    }
}

/// Turns every tile over.
pub fn turn(from: &[f32], to: &mut [f32]) {
    for (from, to) in from.chunks_exact(SIDE * SIDE).zip(to.chunks_exact_mut(SIDE * SIDE)) {
        for row in 0..SIDE {
            for col in 0..SIDE {
                to[col * SIDE + row] = from[row * SIDE + col];
            }
        }
    }
}

/// Calls `each(place among the tiles, place in the matrix)` for every row of every tile.
fn tiles([rows, cols]: [usize; 2], mut each: impl FnMut(usize, usize)) {
    assert!(rows.is_multiple_of(SIDE) && cols.is_multiple_of(SIDE), "elements: the matrix is not of whole tiles");
    let mut tile = 0;
    for row in (0..rows).step_by(SIDE) {
        for col in (0..cols).step_by(SIDE) {
            for r in row..row + SIDE {
                each(tile, r * cols + col);
                tile += SIDE;
            }
        }
    }
}

fn sign(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_distance() {
        assert_eq!(relative_l2(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(relative_l2(&[0.0, 0.0], &[3.0, 4.0]), 1.0);
        assert_eq!(relative_l2(&[3.0, 4.0], &[0.0, 0.0]), 5.0);
    }

    #[test]
    fn tiles_cover_a_matrix_once() {
        let mut seen = vec![0; 128 * 192];
        let mut last = 0;
        tiles([128, 192], |tile, from| {
            seen[from..from + SIDE].iter_mut().for_each(|s| *s += 1);
            last = tile;
        });
        assert!(seen.iter().all(|&s| s == 1));
        assert_eq!(last, 128 * 192 - SIDE);
    }

    #[test]
    fn steps_by_hand() {
        let (mut a, mut v) = ([1.0], [2.0]);
        nesterov(&mut a, &mut v, &[0.5], 0.1, 0.5);
        assert_eq!((a, v), ([1.0 - 0.1 * (0.5 + 0.5 * 1.5)], [1.5]));
        let mut sums = [6.0, 5.0];
        means(&mut sums, &[3.0, 0.0]);
        assert_eq!(sums, [2.0, 5.0]);
        let mut w = [1.0, 1.0, 1.0];
        sign_step_of_sums(&mut w, &[&[1.0, -3.0, 2.0], &[1.0, 1.0, -2.0]], 0.25);
        assert_eq!(w, [0.75, 1.25, 1.0]);
        let matrix: Vec<f32> = (0..2 * SIDE * SIDE).map(|i| i as f32).collect();
        let (mut cut, mut turned, mut back) = (matrix.clone(), matrix.clone(), matrix.clone());
        to_tiles([SIDE, 2 * SIDE], &matrix, &mut cut);
        assert_eq!((cut[SIDE], cut[SIDE * SIDE]), (2.0 * SIDE as f32, SIDE as f32));
        turn(&cut, &mut turned);
        assert_eq!(turned[1], cut[SIDE]);
        turn(&turned, &mut back);
        assert_eq!(back, cut);
        let mut moved = matrix.clone();
        sign_step_of_tiles([SIDE, 2 * SIDE], &mut moved, &cut, 1.0, 0.0);
        assert_eq!((moved[0], moved[1], moved[SIDE]), (0.0, 0.0, SIDE as f32 - 1.0));
    }
}
