//! A curve as SVG, inside a page or as a file of its own: axes with ticks and units, a line a series, the spread of
//! points that share a pixel as a band.

use std::fmt::Write;

/// Sides and margins of a picture.
struct Frame {
    height: f64,
    top: f64,
    /// What stands under the axis of x.
    under: String,
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 14.0;
const BOTTOM: f64 = 40.0;
/// Points of a line at most; more share a column, drawn as mean and spread.
const COLUMNS: usize = 400;
/// Classes of lines, in order: told apart by most eyes and in grey. A page has the first two.
const CLASSES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// What a file of its own looks like: the page's light colours, for a file knows of no page.
const STYLE: &str = "text{fill:#60666c;font:12px system-ui,sans-serif}.title{fill:#1c2024;font-weight:600;font-size:14px}\
.grid{stroke:#d9dde1}.axis{stroke:#60666c}.a,.b,.c,.d,.e,.f{fill:none;stroke-width:1.8;stroke-linejoin:round}\
.a{stroke:#0b6bcb}.b{stroke:#c2410c}.c{stroke:#15803d}.d{stroke:#7e22ce}.e{stroke:#a16207}.f{stroke:#334155}\
.dot-a{fill:#0b6bcb}.dot-b{fill:#c2410c}.dot-c{fill:#15803d}.dot-d{fill:#7e22ce}.dot-e{fill:#a16207}.dot-f{fill:#334155}";

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Series<'a> {
    /// What the caption calls it.
    pub name: &'a str,
    /// Class of its style: `a` or `b`.
    pub class: &'static str,
    /// (x, value); values that are not finite leave a gap.
    pub points: Vec<(f64, f64)>,
}

/// The chart's `figure` element, over steps.
pub fn figure(title: &str, unit: &str, series: &[Series<'_>]) -> String {
    figure_over("step", title, unit, series)
}

/// The chart's `figure` element, over whatever `x` is.
pub fn figure_over(x: &str, title: &str, unit: &str, series: &[Series<'_>]) -> String {
    let names: Vec<&str> = series.iter().filter(|s| !s.points.is_empty()).map(|s| s.name).collect();
    let named = if names.len() > 1 { format!(": {}", names.join(", ")) } else { String::new() };
    let mut out = format!("<figure><figcaption>{title} <i>{unit}{named}</i></figcaption>\n");
    let frame = Frame { height: 260.0, top: 10.0, under: x.into() };
    match picture(&frame, false, series) {
        None => out.push_str("<p class=\"under\">no values yet</p></figure>\n"),
        Some(picture) => {
            let height = frame.height;
            let _ = writeln!(out, "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}, {unit}\">");
            out.push_str(&picture);
            out.push_str("</svg></figure>\n");
        }
    }
    out
}

/// A chart as an SVG file of its own, x in a logarithmic scale, with a legend: of `lines`, (name, points). Without a
/// finite point, a title alone.
pub fn file(title: &str, x: &str, y: &str, lines: &[(String, Vec<(f64, f64)>)]) -> String {
    let frame = Frame { height: 400.0, top: 64.0, under: x.into() };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\">\n<style>{STYLE}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fdfdfc\"/>\n<text class=\"title\" x=\"{LEFT}\" y=\"20\">{title}, {y}</text>\n",
        frame.height
    );
    let mut series = Vec::new();
    for (i, (name, points)) in lines.iter().enumerate() {
        let class = CLASSES[i % CLASSES.len()];
        let points = points.iter().copied().filter(|p| p.0 > 0.0).collect();
        series.push(Series { name, class, points });
        let (at, to, text) = (LEFT + 150.0 * i as f64, LEFT + 150.0 * i as f64 + 18.0, LEFT + 150.0 * i as f64 + 24.0);
        let _ = writeln!(out, "<path class=\"{class}\" d=\"M{at} 40H{to}\"/><text x=\"{text}\" y=\"44\">{name}</text>");
    }
    out + &picture(&frame, true, &series).unwrap_or_default() + "</svg>\n"
}

/// Axes and lines; none where no value is finite.
fn picture(frame: &Frame, log: bool, series: &[Series<'_>]) -> Option<String> {
    let finite = |s: &Series<'_>| s.points.iter().copied().filter(|p| p.1.is_finite()).collect::<Vec<_>>();
    let all: Vec<(f64, f64)> = series.iter().flat_map(finite).collect();
    if all.is_empty() {
        return None;
    }
    let x = if log { Scale::log(all.iter().map(|p| p.0)) } else { Scale::of(all.iter().map(|p| p.0)) };
    let y = Scale::of(spread_for_view(&all));
    let place = |(vx, vy): (f64, f64)| {
        let px = LEFT + x.share(vx) * (WIDTH - LEFT - RIGHT);
        let py = frame.top + (1.0 - y.share(vy)) * (frame.height - frame.top - BOTTOM);
        (px, py.clamp(frame.top, frame.height - BOTTOM))
    };
    let mut out = String::new();
    axes(&mut out, frame, &x, &y, place);
    for s in series {
        line(&mut out, s, &frame.under, place);
    }
    Some(out)
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

fn axes(out: &mut String, frame: &Frame, x: &Scale, y: &Scale, place: impl Fn((f64, f64)) -> (f64, f64)) {
    let (x0, x1, y0, y1) = (LEFT, WIDTH - RIGHT, frame.top, frame.height - BOTTOM);
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
    let (middle, last, under) = ((x0 + x1) / 2.0, frame.height - 6.0, &frame.under);
    let _ = writeln!(out, "<text x=\"{middle}\" y=\"{last}\" text-anchor=\"middle\">{under}</text>");
}

fn line(out: &mut String, s: &Series<'_>, under: &str, place: impl Fn((f64, f64)) -> (f64, f64)) {
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
                let (class, at) = (s.class, short(c.x));
                let _ = writeln!(
                    out,
                    "<circle class=\"dot-{class}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"2.4\"><title>{under} {at}: {mean:.5}</title></circle>"
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

/// A scale with round ticks, linear or logarithmic.
struct Scale {
    low: f64,
    high: f64,
    tick: f64,
    log: bool,
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
        Scale { low, high, tick, log: false }
    }

    /// Of values above 0: `low` and `high` are their powers of ten, with a little room.
    fn log(values: impl Iterator<Item = f64>) -> Scale {
        let all = Scale::of(values.map(f64::log10));
        Scale { low: all.low - 0.05, high: all.high + 0.05, tick: 0.0, log: true }
    }

    fn share(&self, v: f64) -> f64 {
        ((if self.log { v.log10() } else { v }) - self.low) / (self.high - self.low)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log {
            // 1, 2 and 5 of every power of ten; only powers over a wide range.
            let steps: &[f64] = if self.high - self.low > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let powers = (self.low.floor() as i32)..=(self.high.ceil() as i32);
            let all = powers.flat_map(|p| steps.iter().map(move |m| m * 10f64.powi(p)));
            return all.filter(|x| (self.low..=self.high).contains(&x.log10())).collect();
        }
        let first = (self.low / self.tick).ceil();
        (0..12).map(|i| (first + f64::from(i)) * self.tick).take_while(|&t| t <= self.high + self.tick * 1e-6).collect()
    }

    fn label(&self, v: f64) -> String {
        // Adding zero turns -0 into 0.
        let v = v + 0.0;
        match v.abs() {
            _ if self.log => short(v),
            a if a >= 1e6 => format!("{:.3}M", v / 1e6).replace(".000M", "M"),
            a if a >= 1e4 => format!("{}k", (v / 100.0).round() / 10.0),
            a if a > 0.0 && self.tick < 1e-3 => format!("{v:.1e}"),
            _ => format!("{v:.*}", (-self.tick.log10().floor()).clamp(0.0, 6.0) as usize),
        }
    }
}

/// At most two places after the point, and a letter for thousands.
fn short(x: f64) -> String {
    let round = |x: f64| (x * 100.0).round() / 100.0;
    match x.abs() {
        a if a >= 1e9 => format!("{}G", round(x / 1e9)),
        a if a >= 1e6 => format!("{}M", round(x / 1e6)),
        a if a >= 1e4 => format!("{}k", round(x / 1e3)),
        _ => format!("{}", round(x)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(points: Vec<(f64, f64)>) -> [Series<'static>; 1] {
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

    #[test]
    fn any_lines_make_a_file() {
        let line = |points: &[(f64, f64)]| ("x".to_string(), points.to_vec());
        for lines in [
            vec![],
            vec![line(&[])],
            vec![line(&[(5.0, 2.0)])],
            vec![line(&[(1.0, 2.0), (1e9, 3.0), (0.0, 1.0), (2.0, f64::NAN)]), line(&[(3.0, 2.5)])],
        ] {
            let got = file("t", "bytes", "nats", &lines);
            assert!(got.starts_with("<svg") && got.ends_with("</svg>\n"));
            assert!(!got.contains("NaN") && !got.contains("inf"), "{got}");
        }
        let ticks = |low: f64, high: f64| Scale { low, high, tick: 0.0, log: true }.ticks();
        assert_eq!(ticks(0.0, 1.0), [1.0, 2.0, 5.0, 10.0]);
        assert_eq!(ticks(2.9, 7.1), [1e3, 1e4, 1e5, 1e6, 1e7]);
        assert_eq!([short(2_500_000.0), short(30.0)], ["2.5M", "30"]);
    }
}
