//! A plot as an SVG file of its own: points joined by lines, x in a logarithmic scale, a legend.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 52.0;
/// Of lines, in order: told apart by most eyes and in grey.
const COLOURS: [&str; 6] = ["#0b6bcb", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#334155"];

/// A line of a plot.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub name: String,
    /// (x, y), x above 0.
    pub points: Vec<(f64, f64)>,
}

/// The file. Without a finite point, a frame alone.
pub(crate) fn svg(title: &str, x_label: &str, y_label: &str, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|l| &l.points).filter(|p| p.0 > 0.0 && p.1.is_finite());
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (x_low, x_high) = range(&mut all().map(|p| p.0.log10()));
    let (y_low, y_high) = range(&mut all().map(|p| p.1));
    let (x_low, x_high) = if x_low < x_high { (x_low - 0.05, x_high + 0.05) } else { (x_low - 0.5, x_low + 0.5) };
    let room = (0.06 * (y_high - y_low)).max(1e-3);
    let (y_low, y_high) = (y_low - room, y_high + room);
    let px = |x: f64| LEFT + (x.log10() - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT);
    let py = |y: f64| TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fdfdfc\"/>\n<text x=\"{LEFT}\" y=\"18\" font-size=\"14\" font-weight=\"bold\" fill=\"#1c2024\">{title}</text>\n"
    );
    let (bottom, right, middle) = (HEIGHT - BOTTOM, WIDTH - RIGHT, (LEFT + WIDTH - RIGHT) / 2.0);
    let label = "fill=\"#60666c\"";
    let _ =
        writeln!(out, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" {label}>{x_label}</text>", HEIGHT - 12.0);
    let _ = writeln!(
        out,
        "<text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\" {label}>{y_label}</text>",
        (TOP + bottom) / 2.0
    );
    if all().next().is_none() {
        return out + "</svg>\n";
    }
    for x in ticks_log(x_low, x_high) {
        let at = px(x);
        let _ = writeln!(
            out,
            "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#d9dde1\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\" {label}>{}</text>",
            bottom + 16.0,
            short(x)
        );
    }
    for y in ticks(y_low, y_high) {
        let at = py(y);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#d9dde1\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" {label}>{y:.2}</text>",
            LEFT - 8.0,
            at + 4.0
        );
    }
    for (i, line) in lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let place = |p: &&(f64, f64)| p.0 > 0.0 && p.1.is_finite();
        let points: Vec<String> =
            line.points.iter().filter(place).map(|p| format!("{:.1},{:.1}", px(p.0), py(p.1))).collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" points=\"{}\"/>",
            points.join(" ")
        );
        for (x, y) in line.points.iter().filter(place) {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.8\" fill=\"{colour}\"><title>{}: {} at {}</title></circle>",
                px(*x),
                py(*y),
                line.name,
                y,
                short(*x)
            );
        }
        let at = LEFT + 10.0 + 150.0 * (i % 4) as f64;
        let down = TOP - 8.0 - 14.0 * (i / 4) as f64;
        let _ = writeln!(
            out,
            "<path d=\"M{at} {down}h16\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{}\" y=\"{}\" fill=\"#1c2024\">{}</text>",
            at + 22.0,
            down + 4.0,
            line.name
        );
    }
    out + "</svg>\n"
}

/// 1, 2 and 5 of every power of ten; only powers over a wide range.
fn ticks_log(low: f64, high: f64) -> Vec<f64> {
    let wide = high - low > 3.0;
    let powers = (low.floor() as i32)..=(high.ceil() as i32);
    let of = |p: i32| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(p));
    let inside = |x: &f64| (low..=high).contains(&x.log10());
    powers.flat_map(of).filter(inside).filter(|x| !wide || (x.log10() - x.log10().round()).abs() < 1e-9).collect()
}

fn ticks(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low) / 5.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&t| t >= raw).unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|&y| y <= high).collect()
}

fn short(x: f64) -> String {
    match x {
        x if x >= 1e9 => format!("{}G", round(x / 1e9)),
        x if x >= 1e6 => format!("{}M", round(x / 1e6)),
        x if x >= 1e3 => format!("{}k", round(x / 1e3)),
        x => format!("{}", round(x)),
    }
}

fn round(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_lines_make_a_plot() {
        let line = |points: &[(f64, f64)]| Line { name: "x".into(), points: points.to_vec() };
        for lines in [
            vec![],
            vec![line(&[])],
            vec![line(&[(5.0, 2.0)])],
            vec![line(&[(1.0, 2.0), (1e9, 3.0), (0.0, 1.0), (2.0, f64::NAN)]), line(&[(3.0, 2.5)])],
        ] {
            let got = svg("t", "bytes", "nats", &lines);
            assert!(got.starts_with("<svg") && got.ends_with("</svg>\n"));
            assert!(!got.contains("NaN") && !got.contains("inf"), "{got}");
        }
    }

    #[test]
    fn ticks_lie_inside() {
        assert_eq!(ticks_log(0.0, 1.0), [1.0, 2.0, 5.0, 10.0]);
        assert_eq!(ticks_log(2.9, 7.1), [1e3, 1e4, 1e5, 1e6, 1e7]);
        assert_eq!(ticks(2.9, 3.5), [3.0, 3.2, 3.4000000000000004]);
        assert_eq!(short(2_500_000.0), "2.5M");
    }
}
