//! Reports of periodic views for people: a header, a table as wide as what is in it, bars, and notes.

use std::{borrow::Cow, fmt::Write as _};

use super::{
    cells::{self, cut},
    escape,
    text::{duration, endpoint},
};
use crate::{
    analysis::{Bucket, Cell, Column, Report, Row, RowKind, Shown, Table},
    clock::Clock,
    lifecycle::{Bound, Phase},
};

/// Words of our own in the columns of names.
const UNKNOWN: &str = "unknown";
const OTHERS: &str = "others";
const TOTAL: &str = "total";

/// One block of text, as wide as the terminal if that can be.
pub(super) fn draw(report: &Report, clock: &Clock, wide: bool, columns: usize) -> String {
    let mut text = String::new();
    header(&mut text, report, clock);
    // Who asks for everything gets it.
    let most = if wide { usize::MAX } else { columns };
    table(&mut text, &report.table, wide, most);
    for row in &report.table.rows {
        bars(&mut text, &report.table.columns, row, columns);
    }
    for note in &report.table.notes {
        put(&mut text, format_args!("# {note}\n"));
    }
    let more = report.table.more.iter().map(|section| &section.table);
    for section in more.filter(|section| !section.rows.is_empty()) {
        text.push('\n');
        table(&mut text, section, wide, most);
        for note in &section.notes {
            put(&mut text, format_args!("# {note}\n"));
        }
    }
    text.push('\n');
    text
}

/// When, how long, what was lost, and by which hooks: all that decides how far the numbers can be trusted.
fn header(text: &mut String, report: &Report, clock: &Clock) {
    let time = clock.time_of_day(report.to);
    let time = time.split('.').next().unwrap_or_default();
    let nanoseconds = report.to.saturating_sub(report.from);
    put(
        text,
        format_args!(
            "# {time} {} {}.{:02} s, ",
            report.view,
            nanoseconds / 1_000_000_000,
            nanoseconds % 1_000_000_000 / 10_000_000,
        ),
    );
    match report.lost {
        0 => text.push_str("nothing lost\n"),
        lost => put(text, format_args!("LOST {lost}\n")),
    }
    // With two or three of them the line would be too long for a terminal.
    let hooks = report.hooks.join(", ");
    put(text, format_args!("# hooks: {hooks}\n"));
}

fn table(text: &mut String, table: &Table, wide: bool, columns: usize) {
    let shown: Vec<_> = (0..table.columns.len())
        .filter(|&at| match table.columns[at].shown {
            Shown::Always | Shown::Text => true,
            Shown::Wide => wide,
            Shown::Machine | Shown::Bars => false,
        })
        .collect();
    let mut lines = vec![
        shown
            .iter()
            .map(|&at| Cow::Borrowed(table.columns[at].heading))
            .collect::<Vec<_>>(),
    ];
    for row in &table.rows {
        let mut cells: Vec<_> = shown
            .iter()
            .map(|&at| match &row.cells[at] {
                Cell::Unknown if !table.columns[at].key => Cow::Borrowed("-"),
                Cell::Blank if row.kind != RowKind::Group => Cow::Borrowed(""),
                known => cell(known),
            })
            .collect();
        if let Some(place) = sum_label(table, row, &shown) {
            cells[place.0] = place.1;
        }
        lines.push(cells);
    }
    let widths = widths(&lines, table, &shown, columns);
    for line in &lines {
        let start = text.len();
        for ((cell, width), &at) in line.iter().zip(&widths).zip(&shown) {
            let cell = cut(cell, *width);
            let missing = width.saturating_sub(cells::width(&cell));
            if table.columns[at].key {
                put(text, format_args!("{cell}{:missing$} ", ""));
            } else {
                put(text, format_args!("{:missing$}{cell} ", ""));
            }
        }
        while text.len() > start && text.ends_with(' ') {
            text.pop();
        }
        text.push('\n');
    }
}

/// What sums are called stands in the first empty column of the key.
fn sum_label(table: &Table, row: &Row, shown: &[usize]) -> Option<(usize, Cow<'static, str>)> {
    let label = match row.kind {
        RowKind::Group => return None,
        RowKind::Others(0) => OTHERS.into(),
        RowKind::Others(groups) => format!("{OTHERS} ({groups})").into(),
        RowKind::Total => TOTAL.into(),
    };
    let place = shown
        .iter()
        .position(|&at| table.columns[at].key && row.cells[at] == Cell::Blank)?;
    Some((place, label))
}

/// As wide as the widest cell; if that is too wide for the terminal, names are cut, the longest first.
fn widths(
    lines: &[Vec<Cow<'_, str>>],
    table: &Table,
    shown: &[usize],
    columns: usize,
) -> Vec<usize> {
    const NAME: usize = 8;
    let mut widths: Vec<_> = (0..shown.len())
        .map(|at| {
            let column = lines.iter().filter_map(|line| line.get(at));
            column.map(|cell| cells::width(cell)).max().unwrap_or(0)
        })
        .collect();
    // Numbers do not get wider from one interval to the next, as long as they are not large.
    for (width, &at) in widths.iter_mut().zip(shown) {
        if !table.columns[at].key {
            *width = (*width).max(6);
        }
    }
    let named = |at: usize| {
        let mut cells = table.rows.iter().map(|row| &row.cells[shown[at]]);
        cells.any(|cell| matches!(cell, Cell::Name(_) | Cell::Comm(_)))
    };
    // Our own words are never cut.
    let mut least = vec![NAME; shown.len()];
    for (at, label) in table
        .rows
        .iter()
        .filter_map(|row| sum_label(table, row, shown))
    {
        least[at] = least[at].max(cells::width(&label));
    }
    let total = |widths: &[usize]| widths.iter().map(|width| width + 1).sum::<usize>() - 1;
    while !widths.is_empty() && total(&widths) > columns {
        let longest = (0..shown.len())
            .filter(|&at| named(at) && widths[at] > least[at])
            .max_by_key(|&at| widths[at]);
        match longest {
            Some(at) => widths[at] -= 1,
            None => break,
        }
    }
    widths
}

fn cell(cell: &Cell) -> Cow<'static, str> {
    match cell {
        Cell::Blank => Cow::Borrowed("-"),
        Cell::Unknown => UNKNOWN.into(),
        Cell::Count(number) | Cell::Id(number) => number.to_string().into(),
        Cell::AtLeast(number) => format!(">={number}").into(),
        Cell::Share(..) => cell.number().map_or(Cow::Borrowed("-"), |share| {
            format!("{:.1}", share * 100.0).into()
        }),
        Cell::Rate(..) => cell.number().map_or(Cow::Borrowed("-"), |rate| match rate {
            ..100.0 => format!("{rate:.1}").into(),
            _ => format!("{rate:.0}").into(),
        }),
        Cell::Growth(..) => cell
            .number()
            .map_or(Cow::Borrowed("-"), |rate| format!("{rate:.1}").into()),
        Cell::Duration(nanoseconds) => milliseconds(*nanoseconds).into(),
        Cell::Age(age) => {
            let mut text = String::new();
            duration(&mut text, Some(*age), 1_000_000_000);
            text.into()
        }
        Cell::Word(name) | Cell::Term { name, .. } => Cow::Borrowed(name),
        Cell::Name(text) => name(text).into(),
        Cell::Comm(comm) => name(&comm.to_str()).into(),
        Cell::Endpoint(end) => {
            let mut text = String::new();
            endpoint(&mut text, *end, false);
            // Without a port it stands for all ports.
            match text.strip_suffix(":-") {
                Some(address) => address.to_owned().into(),
                None => text.into(),
            }
        }
        Cell::Network(network) => network.to_string().into(),
        Cell::Buckets(_) => Cow::Borrowed(""),
    }
}

/// A name from strangers. One that would pass for a word of ours is spelled otherwise.
fn name(name: &str) -> String {
    let escaped = escape::word(name);
    let ours = [UNKNOWN, OTHERS, TOTAL, "none", "-"];
    match escaped.chars().next() {
        Some(first) if ours.contains(&&*escaped) => {
            let rest = &escaped[first.len_utf8()..];
            format!("\\u{{{:x}}}{rest}", u32::from(first))
        }
        Some(_) => escaped.into_owned(),
        None => "\"\"".to_owned(),
    }
}

fn milliseconds(nanoseconds: u64) -> String {
    let mut text = String::new();
    duration(
        &mut text,
        Some(Phase::new(nanoseconds, Bound::Exact)),
        1_000_000,
    );
    text
}

/// What stands before a bar.
const BEFORE: usize = 30;

/// The distribution of one row as bars.
fn bars(text: &mut String, columns: &[Column], row: &Row, width: usize) {
    let buckets = row.cells.iter().find_map(|cell| match cell {
        Cell::Buckets(buckets) if !buckets.is_empty() => Some(buckets),
        _ => None,
    });
    let Some(buckets) = buckets else { return };
    text.push('\n');
    let mut title = String::new();
    let keys = columns
        .iter()
        .zip(&row.cells)
        .filter(|(column, _)| column.key && matches!(column.shown, Shown::Always | Shown::Text));
    for (_, value) in keys.filter(|(_, value)| **value != Cell::Blank) {
        put(&mut title, format_args!(" {}", cell(value)));
    }
    match row.kind {
        RowKind::Group => {}
        RowKind::Others(_) => put(&mut title, format_args!(" {OTHERS}")),
        RowKind::Total => put(&mut title, format_args!(" {TOTAL}")),
    }
    let title = cut(&title, width.saturating_sub(BEFORE));
    put(
        text,
        format_args!("{:>8}  {:>8} {:>8} {title}\n", "MS", "TO", "COUNT"),
    );
    let most = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(0);
    for bucket in buckets.iter() {
        bar(text, bucket, most, width);
    }
}

fn bar(text: &mut String, bucket: &Bucket, most: u64, width: usize) {
    let room = u64::try_from(width.saturating_sub(BEFORE).clamp(10, 60)).unwrap_or(10);
    let length = u128::from(bucket.count) * u128::from(room) / u128::from(most.max(1));
    let length = usize::try_from(length).unwrap_or(0);
    // What is there is seen.
    let length = length.max(usize::from(bucket.count > 0));
    put(
        text,
        format_args!(
            "{:>8}..{:<8} {:>8}  {}\n",
            milliseconds(bucket.from),
            milliseconds(bucket.to),
            bucket.count,
            "#".repeat(length),
        ),
    );
    while text.ends_with(" \n") {
        text.truncate(text.len() - 2);
        text.push('\n');
    }
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = text.write_fmt(arguments);
}
