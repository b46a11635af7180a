//! A plot of streams and round trips against the size of the payload, as SVG.

use crate::cases::SIZES;
use crate::cores;
use crate::floor;
use crate::harness::Case;
use crate::report;
use std::fmt::Write;
use std::io::Read;
use std::process::{Command, ExitCode, Stdio};

/// Measures all sizes, each case by the command that `part` gives for it, and writes the plot to `file`.
pub fn draw(file: &str, json: bool, part: impl Fn(&Case) -> Command) -> ExitCode {
    let (mut streams, mut trips) = (Vec::new(), Vec::new());
    for (bytes, stream, rtt) in SIZES {
        for (case, lines) in [(stream, &mut streams), (rtt, &mut trips)] {
            let Some(results) = results(part(case)) else { return ExitCode::FAILURE };
            if json {
                print!("{results}");
            }
            for (name, ns) in results.lines().filter_map(peer) {
                // A stream's floor is not a round trip.
                if case.name == rtt.name || name != floor::PING_PONG {
                    add(lines, name, *bytes as f64, ns);
                }
            }
        }
    }
    let panels = [
        Panel { title: "Stream: ns per message", left: 70.0, lines: streams },
        Panel { title: "Round trip, a fresh message each way: ns", left: 750.0, lines: trips },
    ];
    match std::fs::write(file, svg(&panels)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {file}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command prints, if it ends well.
fn results(mut command: Command) -> Option<String> {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("start a case");
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("UTF-8");
    child.wait().expect("wait for a case").success().then_some(text)
}

/// The peer and its time in one of our own JSON lines.
fn peer(line: &str) -> Option<(&str, f64)> {
    let (_, rest) = line.split_once(r#""peer":""#)?;
    let (name, rest) = rest.split_once(r#"","peer_ns":"#)?;
    Some((name, rest.split_once(',')?.0.parse().ok()?))
}

fn add(lines: &mut Vec<Line>, name: &str, bytes: f64, ns: f64) {
    let known = lines.iter().position(|line| line.name == name).unwrap_or_else(|| {
        lines.push(Line { name: name.to_owned(), points: Vec::new() });
        lines.len() - 1
    });
    lines[known].points.push((bytes, ns));
}

/// One contender.
struct Line {
    name: String,
    /// Bytes and nanoseconds.
    points: Vec<(f64, f64)>,
}

impl Line {
    /// Colour, width and dashes.
    fn look(&self) -> (&'static str, f64, &'static str) {
        match self.name.as_str() {
            "ours" => ("#c1121f", 3.5, ""),
            "ours by value" => ("#f07167", 3.5, ""),
            floor::PING_PONG | "memcpy" => ("#888888", 1.5, "2 4"),
            "rtrb+snmalloc" => ("#0b6e4f", 1.8, "7 3"),
            "rtrb+mimalloc" => ("#5fb04a", 1.8, "7 3"),
            "rtrb by value" => ("#95c623", 1.8, "7 3"),
            "crossbeam" => ("#9a7b00", 1.8, "7 3"),
            "iceoryx2" => ("#1f4fbf", 1.8, ""),
            "shaq+rts-alloc" => ("#7b2d9b", 1.8, ""),
            "ipc-channel" => ("#b8500f", 1.8, ""),
            "socket pair" => ("#0a8a9f", 1.8, ""),
            _ => ("#333333", 1.8, ""),
        }
    }
}

/// A diagram with both axes logarithmic.
struct Panel {
    title: &'static str,
    left: f64,
    lines: Vec<Line>,
}

const WIDTH: f64 = 1360.0;
const HEIGHT: f64 = 640.0;
const TOP: f64 = 70.0;
/// Of a panel's diagram; its labels are to the right of it.
const ACROSS: f64 = 460.0;
const DOWN: f64 = 470.0;
/// Between labels.
const LABEL: f64 = 15.0;

fn svg(panels: &[Panel]) -> String {
    let mut out = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" fill="#222222">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>
"##
    );
    panels.iter().for_each(|panel| panel.draw(&mut out));
    let machine = report::machine(cores::pair()).map(|(name, value)| format!("{name}: {value}")).join(" | ");
    let notes = [
        "Medians. Every byte written and read; both sides spin (ipc-channel sleeps) on cores of their own. Solid: two processes; dashed: two threads of one process; dotted: floors.",
        machine.as_str(),
    ];
    for (note, y) in notes.iter().zip([HEIGHT - 34.0, HEIGHT - 16.0]) {
        text(&mut out, 70.0, y, r#"font-size="12""#, note);
    }
    out.push_str("</svg>\n");
    out
}

fn text(out: &mut String, x: f64, y: f64, how: &str, what: &str) {
    let what = what.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, r#"<text x="{x:.1}" y="{y:.1}" {how}>{what}</text>"#);
}

fn rule(out: &mut String, from: (f64, f64), to: (f64, f64), stroke: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(out, r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{stroke}"/>"#);
}

impl Panel {
    fn draw(&self, out: &mut String) {
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let (decades, sizes) = (range(all().map(|point| point.1.log10())), range(all().map(|point| point.0.log2())));
        let x = |bytes: f64| self.left + (bytes.log2() - sizes.0) / (sizes.1 - sizes.0) * ACROSS;
        let y = |ns: f64| TOP + DOWN - (ns.log10() - decades.0) / (decades.1 - decades.0) * DOWN;
        let (right, bottom) = (self.left + ACROSS, TOP + DOWN);
        text(out, self.left, TOP - 22.0, r#"font-size="17" font-weight="bold""#, self.title);
        for decade in decades.0 as i32..=decades.1 as i32 {
            let ns = 10_f64.powi(decade);
            rule(out, (self.left, y(ns)), (right, y(ns)), "#dddddd");
            text(out, self.left - 8.0, y(ns) + 4.0, r#"text-anchor="end""#, &duration(ns));
        }
        for (bytes, ..) in SIZES {
            let at = x(*bytes as f64);
            rule(out, (at, TOP), (at, bottom), "#eeeeee");
            text(out, at, bottom + 20.0, r#"text-anchor="middle""#, &size(*bytes));
        }
        let mut labels = Vec::new();
        // Ours comes first, so it is drawn last.
        for line in self.lines.iter().rev() {
            let (colour, width, dashes) = line.look();
            let points: Vec<String> =
                line.points.iter().map(|(bytes, ns)| format!("{:.1},{:.1}", x(*bytes), y(*ns))).collect();
            let _ = writeln!(
                out,
                r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"/>"#,
                points.join(" ")
            );
            if let Some((bytes, ns)) = line.points.last() {
                labels.push((y(*ns), x(*bytes), colour, line.name.as_str()));
            }
        }
        // From top to bottom, none closer to the last than its height, all of them in the panel.
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut next = TOP;
        let mut rows: Vec<f64> = Vec::new();
        for label in &labels {
            next = label.0.max(next);
            rows.push(next);
            next += LABEL;
        }
        let mut most = bottom;
        for row in rows.iter_mut().rev() {
            *row = row.min(most);
            most = *row - LABEL;
        }
        for (row, (end_y, end_x, colour, name)) in rows.into_iter().zip(labels) {
            let leader = format!(r#"{colour}" stroke-width="0.8" stroke-opacity="0.4"#);
            rule(out, (end_x, end_y), (right + 22.0, row), &leader);
            text(out, right + 26.0, row + 4.0, &format!(r#"fill="{colour}""#), name);
        }
    }
}

/// From the whole number below all values to the one above.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    (low.floor(), high.ceil())
}

fn duration(ns: f64) -> String {
    match ns {
        0.0..1e3 => format!("{ns} ns"),
        1e3..1e6 => format!("{} us", ns / 1e3),
        _ => format!("{} ms", ns / 1e6),
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}
