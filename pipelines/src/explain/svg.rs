//! The graph as a drawing that needs no other program.

use super::ExplainError;
use super::graph::{Graph, Kind};
use super::layout::{BOX_HEIGHT, layout};
use crate::plan::Plan;

const MARGIN: f64 = 24.0;
const LEGEND: f64 = 40.0;
/// Between layers, for the arrows.
const CHANNEL: f64 = 90.0;
/// Width of a character of a label and of a note, on the safe side.
const LABEL_CHAR: f64 = 7.4;
const NOTE_CHAR: f64 = 5.9;
/// Longer notes are cut.
const NOTE_MOST: usize = 40;

/// (fill, stroke, text)
fn colours(kind: Kind) -> (&'static str, &'static str, &'static str) {
    match kind {
        Kind::Topic => ("#e3f0fb", "#3b78b5", "#12324f"),
        Kind::Topology => ("#fdf1d8", "#c08a1e", "#4a3405"),
        Kind::Sink => ("#e2f4e6", "#3d9255", "#123f1f"),
    }
}

/// The graph of one topology, or of all, as an SVG document.
///
/// # Errors
/// An unknown topology.
pub fn svg(plan: &Plan, topology: Option<&str>) -> Result<String, ExplainError> {
    let graph = Graph::of(plan, topology)?;
    let layout = layout(&graph);
    let note = |text: &str| -> String {
        match text.chars().count() > NOTE_MOST {
            true => text.chars().take(NOTE_MOST - 1).chain(['…']).collect(),
            false => text.to_owned(),
        }
    };
    let width_of = |vertex: usize| {
        let vertex = &graph.vertices[vertex];
        let label = vertex.label.chars().count() as f64 * LABEL_CHAR;
        label.max(note(&vertex.note).chars().count() as f64 * NOTE_CHAR) + 28.0
    };
    let mut widths = vec![0.0_f64; layout.layers];
    for cell in &layout.cells {
        if let Some(vertex) = cell.vertex {
            widths[cell.layer] = widths[cell.layer].max(width_of(vertex));
        }
    }
    let lefts: Vec<f64> = widths
        .iter()
        .scan(MARGIN, |x, width| {
            let left = *x;
            *x += width + CHANNEL;
            Some(left)
        })
        .collect();
    let width = widths.iter().map(|w| w + CHANNEL).sum::<f64>() - CHANNEL + 2.0 * MARGIN;
    let (width, height) = (width.max(460.0), layout.height + 2.0 * MARGIN + LEGEND);

    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">"
    ));
    line(
        "<defs><marker id=\"tip\" viewBox=\"0 0 10 10\" refX=\"9\" refY=\"5\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
         <path d=\"M0 0 L10 5 L0 10 z\" fill=\"#6b7280\"/></marker></defs>"
            .to_owned(),
    );
    line(format!("<rect width=\"{width:.0}\" height=\"{height:.0}\" fill=\"#ffffff\"/>"));
    let y = |cell: usize| layout.cells[cell].y + MARGIN + LEGEND;
    for (edge, route) in graph.edges.iter().zip(&layout.routes) {
        let mut path = String::new();
        for (hop, pair) in route.windows(2).enumerate() {
            let (from, to) = (pair[0], pair[1]);
            let (a, b) = (layout.cells[from].layer, layout.cells[to].layer);
            let (x1, x2) = (lefts[a] + widths[a], lefts[b] - if layout.cells[to].vertex.is_some() { 2.0 } else { 0.0 });
            let (y1, y2) = (y(from), y(to));
            // an arrow that passes goes straight through its layer
            let start = match hop {
                0 => format!("M{x1:.1} {y1:.1}"),
                _ => format!(" L{x1:.1} {y1:.1}"),
            };
            let bend = (x2 - x1) / 2.0;
            path.push_str(&format!("{start} C{:.1} {y1:.1} {:.1} {y2:.1} {x2:.1} {y2:.1}", x1 + bend, x2 - bend));
        }
        let dash = if edge.table { " stroke-dasharray=\"5 4\"" } else { "" };
        line(format!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"#6b7280\" stroke-width=\"1.3\"{dash} marker-end=\"url(#tip)\"/>"
        ));
    }
    for (cell, place) in layout.cells.iter().enumerate() {
        let Some(vertex) = place.vertex else { continue };
        let (left, width) = (lefts[place.layer], widths[place.layer]);
        let of = &graph.vertices[vertex];
        line(boxed(of.kind, left, y(cell) - BOX_HEIGHT / 2.0, width, BOX_HEIGHT));
        let (_, _, text) = colours(of.kind);
        let middle = left + width / 2.0;
        line(format!(
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"13\" font-weight=\"600\" fill=\"{text}\">{}</text>",
            y(cell) - 3.0,
            escaped(&of.label)
        ));
        line(format!(
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10.5\" fill=\"{text}\" fill-opacity=\"0.75\">{}</text>",
            y(cell) + 12.0,
            escaped(&note(&of.note))
        ));
    }
    let legend = [(Kind::Topic, "topic"), (Kind::Topology, "topology"), (Kind::Sink, "sink")];
    for (index, (kind, name)) in legend.into_iter().enumerate() {
        let left = MARGIN + index as f64 * 100.0;
        line(boxed(kind, left, MARGIN - 8.0, 22.0, 14.0));
        line(format!("<text x=\"{:.0}\" y=\"{:.0}\" font-size=\"12\" fill=\"#374151\">{name}</text>", left + 30.0, MARGIN + 4.0));
    }
    line(format!(
        "<path d=\"M{0:.0} {2:.0} L{1:.0} {2:.0}\" stroke=\"#6b7280\" stroke-width=\"1.3\" stroke-dasharray=\"5 4\"/>\
         <text x=\"{3:.0}\" y=\"{4:.0}\" font-size=\"12\" fill=\"#374151\">read as a table</text>",
        MARGIN + 300.0,
        MARGIN + 330.0,
        MARGIN,
        MARGIN + 338.0,
        MARGIN + 4.0
    ));
    line("</svg>".to_owned());
    Ok(out)
}

fn boxed(kind: Kind, left: f64, top: f64, width: f64, height: f64) -> String {
    let (fill, stroke, _) = colours(kind);
    let round = match kind {
        Kind::Topic => height / 2.0,
        Kind::Topology => 4.0,
        Kind::Sink => 0.0,
    };
    format!(
        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"{round:.1}\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"1.2\"/>"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
