//! A chart of cost against size: both axes are logarithmic, so that what grows in proportion is a straight line of slope 1.

use std::fmt::Write as _;

/// A line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    /// Its name.
    pub name: String,
    /// Its points, by size.
    pub points: Vec<(f64, f64)>,
}

/// One of the charts of a picture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chart {
    /// What it shows, with the unit.
    pub title: String,
    /// Its lines.
    pub lines: Vec<Line>,
}

/// The width of a picture, and the height and margins of each chart in it.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 44.0;

/// Colors that are told apart by most people, also on a dark background.
const COLORS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"];

/// The least vertical distance of two names, in pixels.
const NAME_HEIGHT: f64 = 13.0;

/// A logarithmic axis from one pixel to another.
struct Axis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// One that has all of these values, with whole powers of ten at its ends if `round`.
    fn new(values: impl Iterator<Item = f64> + Clone, round: bool, from: f64, to: f64) -> Self {
        let logs = values.filter(|value| *value > 0.0).map(f64::log10);
        let (mut least, mut most) =
            (logs.clone().fold(f64::INFINITY, f64::min), logs.fold(f64::NEG_INFINITY, f64::max));
        if !least.is_finite() || !most.is_finite() {
            (least, most) = (0.0, 1.0);
        }
        if round {
            (least, most) = (least.floor(), most.ceil());
        }
        if most - least < 1e-9 {
            (least, most) = (least - 0.5, most + 0.5);
        }
        Self { least, most, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.max(f64::MIN_POSITIVE).log10() - self.least) / (self.most - self.least);
        self.from + (self.to - self.from) * part
    }

    /// The powers of ten on it.
    fn tens(&self) -> Vec<f64> {
        let (first, last) = (self.least.ceil() as i32, self.most.floor() as i32);
        (first..=last).map(|power| 10f64.powi(power)).collect()
    }
}

/// A picture of charts below one another, whose sizes are of `unit`.
pub(crate) fn picture(unit: &str, charts: &[Chart]) -> String {
    let height = HEIGHT * charts.len() as f64;
    let mut svg = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#808080\">"
    );
    for (n, chart) in charts.iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate(0 {})\">", n as f64 * HEIGHT);
        draw(&mut svg, unit, chart);
        let _ = writeln!(svg, "</g>");
    }
    svg += "</svg>\n";
    svg
}

fn draw(svg: &mut String, unit: &str, chart: &Chart) {
    let points = chart.lines.iter().flat_map(|line| line.points.iter());
    let mut sizes: Vec<f64> = points.clone().map(|point| point.0).collect();
    let x = Axis::new(sizes.iter().copied(), false, LEFT, WIDTH - RIGHT);
    let y = Axis::new(points.map(|point| point.1), true, HEIGHT - BOTTOM, TOP);
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"20\" font-weight=\"bold\">{}</text>",
        escaped(&chart.title)
    );
    for ten in y.tens() {
        let at = y.at(ten);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#808080\" stroke-opacity=\"0.3\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{ten}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    for size in sizes {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{size}</text>",
            x.at(size),
            HEIGHT - BOTTOM + 18.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0,
        escaped(unit)
    );
    lines(svg, chart, &x, &y);
}

fn lines(svg: &mut String, chart: &Chart, x: &Axis, y: &Axis) {
    let mut names = Vec::new();
    for (line, color) in chart.lines.iter().zip(COLORS.iter().cycle()) {
        // Zero has no place on a logarithmic axis.
        let points = line.points.iter().filter(|point| point.1 > 0.0);
        let points: Vec<(f64, f64)> = points.map(|point| (x.at(point.0), y.at(point.1))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (x, y) in &points {
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>");
        }
        names.extend(points.last().map(|(_, y)| (*y, &line.name, color)));
    }
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut below = f64::NEG_INFINITY;
    for (at, name, color) in names {
        below = at.max(below + NAME_HEIGHT);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\">{}</text>",
            WIDTH - RIGHT + 8.0,
            below + 4.0,
            escaped(name)
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)]) -> Chart {
        let line = Line { name: "a < b".to_owned(), points: points.to_vec() };
        Chart { title: "CPU, s & more".to_owned(), lines: vec![line] }
    }

    #[test]
    fn proportional_cost_is_a_straight_line() {
        let svg = picture("services", &[chart(&[(100.0, 1.0), (1000.0, 10.0), (10_000.0, 100.0)])]);
        let line = svg.lines().find(|line| line.starts_with("<polyline")).unwrap();
        let points = line.split('"').nth(1).unwrap();
        let points: Vec<Vec<f64>> = points
            .split(' ')
            .map(|point| point.split(',').map(|number| number.parse().unwrap()).collect())
            .collect();
        let [first, middle, last] = points.as_slice() else { panic!("{line}") };
        for axis in [0, 1] {
            assert!((first[axis] + last[axis] - 2.0 * middle[axis]).abs() < 0.2, "{line}");
        }
        assert_eq!((first[0], last[1]), (LEFT, TOP));
    }

    #[test]
    fn text_is_escaped_and_every_size_is_named() {
        let svg = picture("services", &[chart(&[(100.0, 1.0), (250.0, 3.0)])]);
        assert!(svg.contains("CPU, s &amp; more") && svg.contains("a &lt; b"));
        assert!(svg.contains(">100</text>") && svg.contains(">250</text>"));
    }

    #[test]
    fn nothing_and_zero_have_a_picture() {
        for points in [&[][..], &[(1.0, 0.0)], &[(5.0, 2.0)]] {
            let svg = picture("streams", &[chart(points), chart(points)]);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
