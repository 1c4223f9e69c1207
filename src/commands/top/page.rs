//! The terminal page.

use super::snapshot::Snapshot;
use crate::exit::Failure;
use crossterm::event::{self, Event, KeyCode, KeyModifiers};
use quikflow_topics::clock::SharedClock;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph};
use ratatui::{DefaultTerminal, Frame};
use std::io;
use std::time::Duration;

/// Shows looks until q, Esc or Ctrl-C.
///
/// # Errors
/// When the terminal refuses.
pub(crate) fn show(
    first: Snapshot,
    every: Duration,
    base: &str,
    clock: &SharedClock,
    look: &dyn Fn() -> Result<Snapshot, Failure>,
) -> io::Result<()> {
    let mut terminal = ratatui::try_init()?;
    let ended = turn(&mut terminal, first, every, base, clock, look);
    let restored = ratatui::try_restore();
    ended.and(restored)
}

fn turn(
    terminal: &mut DefaultTerminal,
    first: Snapshot,
    every: Duration,
    base: &str,
    clock: &SharedClock,
    look: &dyn Fn() -> Result<Snapshot, Failure>,
) -> io::Result<()> {
    let (mut now, mut before, mut trouble) = (first, None, None);
    loop {
        terminal.draw(|frame| draw(frame, &now, before.as_ref(), base, trouble.as_deref()))?;
        let until = clock.elapsed() + every;
        while let Some(left) = until.checked_sub(clock.elapsed()).filter(|left| !left.is_zero()) {
            if !event::poll(left)? {
                break;
            }
            match event::read()? {
                Event::Key(key) if matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) => return Ok(()),
                Event::Key(key) if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) => {
                    return Ok(());
                }
                Event::Resize(..) => break,
                _ => {}
            }
        }
        match look() {
            Ok(next) => {
                before = Some(std::mem::replace(&mut now, next));
                trouble = None;
            }
            Err(failure) => trouble = Some(failure.message),
        }
    }
}

fn draw(frame: &mut Frame<'_>, now: &Snapshot, before: Option<&Snapshot>, base: &str, trouble: Option<&str>) {
    let topics = now.topics(before);
    let topologies = now.topologies();
    let height = |rows: usize| Constraint::Max(u16::try_from(rows + 3).unwrap_or(u16::MAX));
    let [head, top, middle, bottom] =
        Layout::vertical([Constraint::Length(2), height(topics.len()), height(topologies.len()), Constraint::Min(3)])
            .areas(frame.area());
    let second = trouble.map_or_else(|| format!("{base} · q quits"), |trouble| format!("no answer: {trouble}"));
    let title = Line::styled(now.headline(before), Style::new().add_modifier(Modifier::BOLD));
    frame.render_widget(Paragraph::new(vec![title, Line::from(second)]), head);
    for (area, name, table) in
        [(top, "topics", topics), (middle, "topologies", topologies), (bottom, "followers", now.followers())]
    {
        let text = table.plain();
        let lines: Vec<Line<'_>> = text.lines().map(Line::from).collect();
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(name)), area);
    }
}
