//! Places boxes in layers so that arrows go from left to right and cross seldom.
//!
//! Layers by longest path; arrows over several layers get a place in each of them; the order in a
//! layer follows the mean of the neighbours' places (Sugiyama's method), swept a fixed number of
//! times, so that the same graph is always drawn the same way.

use super::graph::Graph;

/// Height of a box, and of a row in which an arrow passes.
pub(super) const BOX_HEIGHT: f64 = 40.0;
const PASS_HEIGHT: f64 = 10.0;
const GAP: f64 = 14.0;
const SWEEPS: usize = 24;

/// A place in a layer: of a box, or of an arrow that passes.
pub(super) struct Cell {
    /// The box; none for an arrow that passes.
    pub(super) vertex: Option<usize>,
    pub(super) layer: usize,
    /// Middle, in pixels.
    pub(super) y: f64,
    before: Vec<usize>,
    after: Vec<usize>,
}

/// Where everything is.
pub(super) struct Layout {
    pub(super) cells: Vec<Cell>,
    /// For each arrow, the cells that it goes through, from its box to its box.
    pub(super) routes: Vec<Vec<usize>>,
    pub(super) layers: usize,
    pub(super) height: f64,
}

/// Lays a graph out.
pub(super) fn layout(graph: &Graph) -> Layout {
    let layer_of = layers(graph);
    let mut cells: Vec<Cell> = layer_of.iter().enumerate().map(|(vertex, layer)| cell(Some(vertex), *layer)).collect();
    let mut routes = Vec::with_capacity(graph.edges.len());
    for edge in &graph.edges {
        let mut route = vec![edge.from];
        for layer in layer_of[edge.from] + 1..layer_of[edge.to] {
            route.push(cells.len());
            cells.push(cell(None, layer));
        }
        route.push(edge.to);
        for pair in route.windows(2) {
            cells[pair[0]].after.push(pair[1]);
            cells[pair[1]].before.push(pair[0]);
        }
        routes.push(route);
    }
    let count = layer_of.iter().max().map_or(0, |most| most + 1);
    let mut order: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (index, cell) in cells.iter().enumerate() {
        order[cell.layer].push(index);
    }
    for layer in &order {
        stack(&mut cells, layer);
    }
    for sweep in 0..SWEEPS {
        let forward = sweep % 2 == 0;
        for step in 0..count {
            let layer = if forward { step } else { count - 1 - step };
            arrange(&mut cells, &mut order[layer], forward);
        }
    }
    let top = cells.iter().map(|cell| cell.y - height(cell) / 2.0).fold(f64::INFINITY, f64::min);
    cells.iter_mut().for_each(|cell| cell.y -= top);
    let height = cells.iter().map(|cell| cell.y + height(cell) / 2.0).fold(0.0, f64::max);
    Layout { cells, routes, layers: count, height }
}

fn cell(vertex: Option<usize>, layer: usize) -> Cell {
    Cell { vertex, layer, y: 0.0, before: Vec::new(), after: Vec::new() }
}

fn height(cell: &Cell) -> f64 {
    if cell.vertex.is_some() { BOX_HEIGHT } else { PASS_HEIGHT }
}

/// The longest path to each box.
fn layers(graph: &Graph) -> Vec<usize> {
    let mut layers = vec![0; graph.vertices.len()];
    // a path has at most as many arrows as there are boxes
    for _ in 0..graph.vertices.len() {
        let mut moved = false;
        for edge in &graph.edges {
            if layers[edge.to] < layers[edge.from] + 1 {
                layers[edge.to] = layers[edge.from] + 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    layers
}

/// One below the other.
fn stack(cells: &mut [Cell], layer: &[usize]) {
    let mut y = 0.0;
    for index in layer {
        let half = height(&cells[*index]) / 2.0;
        y += half;
        cells[*index].y = y;
        y += half + GAP;
    }
}

/// Moves a layer's cells towards their neighbours, in order of where they want to be.
fn arrange(cells: &mut [Cell], layer: &mut [usize], forward: bool) {
    let wish = |cell: &Cell| {
        let near = if forward { &cell.before } else { &cell.after };
        match near.len() {
            0 => cell.y,
            n => near.iter().map(|other| cells[*other].y).sum::<f64>() / n as f64,
        }
    };
    let mut wishes: Vec<(f64, usize)> = layer.iter().map(|index| (wish(&cells[*index]), *index)).collect();
    wishes.sort_by(|a, b| a.0.total_cmp(&b.0));
    // neighbours that want the same place share it: blocks of cells, each at the mean of its wishes
    let mut blocks: Vec<Block> = Vec::new();
    for (at, (wish, index)) in wishes.iter().enumerate() {
        layer[at] = *index;
        let size = height(&cells[*index]) + GAP;
        let mut block = Block { sum: *wish, count: 1.0, size, cells: vec![*index] };
        while let Some(last) = blocks.last() {
            if last.middle() + last.size / 2.0 <= block.middle() - block.size / 2.0 {
                break;
            }
            let Some(last) = blocks.pop() else { break };
            block = last.joined(block);
        }
        blocks.push(block);
    }
    for block in blocks {
        let mut y = block.middle() - block.size / 2.0;
        for index in block.cells {
            let size = height(&cells[index]) + GAP;
            cells[index].y = y + size / 2.0;
            y += size;
        }
    }
}

struct Block {
    sum: f64,
    count: f64,
    size: f64,
    cells: Vec<usize>,
}

impl Block {
    fn middle(&self) -> f64 {
        self.sum / self.count
    }

    fn joined(mut self, other: Block) -> Block {
        self.sum += other.sum;
        self.count += other.count;
        self.size += other.size;
        self.cells.extend(other.cells);
        self
    }
}
