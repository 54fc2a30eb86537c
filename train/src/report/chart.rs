//! A curve as inline SVG: axes with ticks and units, a line a series, the spread of points that share a pixel as a band.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;
/// Points of a line at most; more share a column, drawn as mean and spread.
const COLUMNS: usize = 400;

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Series {
    /// What the caption calls it.
    pub name: &'static str,
    /// Class of its style: `a` or `b`.
    pub class: &'static str,
    /// (step, value); values that are not finite leave a gap.
    pub points: Vec<(f64, f64)>,
}

/// The chart's `figure` element.
pub fn figure(title: &str, unit: &str, series: &[Series]) -> String {
    let finite = |s: &Series| s.points.iter().copied().filter(|p| p.1.is_finite()).collect::<Vec<_>>();
    let all: Vec<(f64, f64)> = series.iter().flat_map(finite).collect();
    let names: Vec<&str> = series.iter().filter(|s| !s.points.is_empty()).map(|s| s.name).collect();
    let named = if names.len() > 1 { format!(": {}", names.join(", ")) } else { String::new() };
    let mut out = format!("<figure><figcaption>{title} <i>{unit}{named}</i></figcaption>\n");
    if all.is_empty() {
        out.push_str("<p class=\"under\">no values yet</p></figure>\n");
        return out;
    }
    let (x, y) = (Scale::of(all.iter().map(|p| p.0)), Scale::of(spread_for_view(&all)));
    let place = |(vx, vy): (f64, f64)| {
        let px = LEFT + x.share(vx) * (WIDTH - LEFT - RIGHT);
        let py = TOP + (1.0 - y.share(vy)) * (HEIGHT - TOP - BOTTOM);
        (px, py.clamp(TOP, HEIGHT - BOTTOM))
    };
    let _ = writeln!(out, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}, {unit}\">");
    axes(&mut out, &x, &y, place);
    for s in series {
        line(&mut out, s, place);
    }
    out.push_str("</svg></figure>\n");
    out
}

/// Values that decide the scale: spikes above 1.5 times the range of the middle 98 % run out of the picture.
fn spread_for_view(all: &[(f64, f64)]) -> impl Iterator<Item = f64> + use<> {
    let mut values: Vec<f64> = all.iter().map(|p| p.1).collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize];
    let (low, high) = (at(0.01), at(0.99));
    let room = 1.5 * (high - low).max(high.abs() * 1e-3);
    values.into_iter().map(move |v| v.clamp(low - room, high + room))
}

fn axes(out: &mut String, x: &Scale, y: &Scale, place: impl Fn((f64, f64)) -> (f64, f64)) {
    let (x0, x1, y0, y1) = (LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM);
    for tick in y.ticks() {
        let (_, py) = place((x.low, tick));
        let _ = writeln!(out, "<line class=\"grid\" x1=\"{x0}\" x2=\"{x1}\" y1=\"{py:.1}\" y2=\"{py:.1}\"/>");
        let (tx, ty) = (x0 - 8.0, py + 4.0);
        let _ = writeln!(out, "<text x=\"{tx:.1}\" y=\"{ty:.1}\" text-anchor=\"end\">{}</text>", y.label(tick));
    }
    for tick in x.ticks() {
        let (px, _) = place((tick, y.low));
        let (ty, below) = (y1 + 16.0, y1 + 4.0);
        let _ = writeln!(out, "<line class=\"axis\" x1=\"{px:.1}\" x2=\"{px:.1}\" y1=\"{y1}\" y2=\"{below}\"/>");
        let _ = writeln!(out, "<text x=\"{px:.1}\" y=\"{ty}\" text-anchor=\"middle\">{}</text>", x.label(tick));
    }
    let _ = writeln!(out, "<path class=\"axis\" fill=\"none\" d=\"M{x0} {y0}V{y1}H{x1}\"/>");
    let (middle, last) = ((x0 + x1) / 2.0, HEIGHT - 6.0);
    let _ = writeln!(out, "<text x=\"{middle}\" y=\"{last}\" text-anchor=\"middle\">step</text>");
}

fn line(out: &mut String, s: &Series, place: impl Fn((f64, f64)) -> (f64, f64)) {
    let columns = columns(&s.points);
    let (mut path, mut upper, mut lower, mut pen_down) = (String::new(), Vec::new(), Vec::new(), false);
    for c in &columns {
        let Some((mean, low, high)) = c.values else {
            pen_down = false;
            continue;
        };
        let (px, py) = place((c.x, mean));
        let _ = write!(path, "{}{px:.1} {py:.1}", if pen_down { 'L' } else { 'M' });
        pen_down = true;
        upper.push(place((c.x, high)));
        lower.push(place((c.x, low)));
    }
    if columns.len() < s.points.len() && upper.len() > 1 {
        let corners: Vec<String> =
            upper.iter().chain(lower.iter().rev()).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(out, "<polygon class=\"band\" points=\"{}\"/>", corners.join(" "));
    }
    let _ = writeln!(out, "<path class=\"{}\" d=\"{path}\"/>", s.class);
    if columns.len() <= 60 {
        for c in &columns {
            if let Some((mean, ..)) = c.values {
                let (px, py) = place((c.x, mean));
                let (class, step) = (s.class, c.x);
                let _ = writeln!(
                    out,
                    "<circle class=\"dot-{class}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"2.4\"><title>step {step}: {mean:.5}</title></circle>"
                );
            }
        }
    }
}

/// Points that share a column of the picture.
struct Column {
    x: f64,
    /// Mean, least, largest; none where no value is finite.
    values: Option<(f64, f64, f64)>,
}

fn columns(points: &[(f64, f64)]) -> Vec<Column> {
    let size = points.len().div_ceil(COLUMNS).max(1);
    points
        .chunks(size)
        .map(|chunk| {
            let x = chunk[chunk.len() / 2].0;
            let finite: Vec<f64> = chunk.iter().map(|p| p.1).filter(|v| v.is_finite()).collect();
            let values = (!finite.is_empty()).then(|| {
                let mean = finite.iter().sum::<f64>() / finite.len() as f64;
                let low = finite.iter().copied().fold(f64::INFINITY, f64::min);
                (mean, low, finite.iter().copied().fold(f64::NEG_INFINITY, f64::max))
            });
            Column { x, values }
        })
        .collect()
}

/// A linear scale with round ticks.
struct Scale {
    low: f64,
    high: f64,
    tick: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>) -> Scale {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let flat = (high - low) <= high.abs() * 1e-9;
        let (low, high) =
            if flat { (low - 0.5 * low.abs().max(1e-9), high + 0.5 * high.abs().max(1e-9)) } else { (low, high) };
        let raw = (high - low) / 5.0;
        let power = 10f64.powf(raw.log10().floor());
        let tick = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&t| t >= raw).unwrap_or(10.0 * power);
        Scale { low, high, tick }
    }

    fn share(&self, v: f64) -> f64 {
        (v - self.low) / (self.high - self.low)
    }

    fn ticks(&self) -> Vec<f64> {
        let first = (self.low / self.tick).ceil();
        (0..12).map(|i| (first + f64::from(i)) * self.tick).take_while(|&t| t <= self.high + self.tick * 1e-6).collect()
    }

    fn label(&self, v: f64) -> String {
        // Adding zero turns -0 into 0.
        let v = v + 0.0;
        match v.abs() {
            a if a >= 1e6 => format!("{:.3}M", v / 1e6).replace(".000M", "M"),
            a if a >= 1e4 => format!("{}k", (v / 100.0).round() / 10.0),
            a if a > 0.0 && self.tick < 1e-3 => format!("{v:.1e}"),
            _ => format!("{v:.*}", (-self.tick.log10().floor()).clamp(0.0, 6.0) as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(points: Vec<(f64, f64)>) -> [Series; 1] {
        [Series { name: "x", class: "a", points }]
    }

    #[test]
    fn odd_series_make_a_picture() {
        for points in [
            vec![],
            vec![(1.0, 2.0)],
            vec![(1.0, 0.0), (2.0, 0.0)],
            vec![(1.0, f64::NAN), (2.0, 1.0), (3.0, f64::INFINITY), (4.0, -1.0)],
            vec![(1.0, 1e-30), (2.0, 1e30)],
            (0..5000).map(|i| (f64::from(i), (f64::from(i) * 0.1).sin())).collect(),
        ] {
            let got = figure("t", "u", &series(points));
            assert!(!got.contains("NaN") && !got.contains("inf"), "{got}");
            assert!(got.starts_with("<figure>") && got.ends_with("</figure>\n"));
            assert!(got.len() < 60_000, "{}", got.len());
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale::of([0.37, 9.9].into_iter());
        assert_eq!(scale.ticks(), [2.0, 4.0, 6.0, 8.0]);
        assert_eq!(scale.label(4.0), "4");
        let small = Scale::of([0.0, 0.003].into_iter());
        assert_eq!(small.label(0.001), "0.001");
        assert_eq!(Scale::of([0.0, 50_000.0].into_iter()).label(20_000.0), "20k");
    }
}
