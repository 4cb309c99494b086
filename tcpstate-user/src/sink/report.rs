//! Reports of periodic views in machine formats: JSON objects and CSV rows with the same names and values.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{escape, json::seconds};
use crate::{
    analysis::{Bucket, Cell, Column, Report, Row, RowKind, Shown, Table},
    clock::Clock,
};

/// A report as it is written: one line.
#[derive(Debug, Serialize)]
pub(super) struct ReportLine<'a> {
    event: &'static str,
    from: String,
    to: String,
    seconds: f64,
    hooks: &'a [&'static str],
    lost: u64,
    rows: Vec<RowLine<'a>>,
    #[serde(flatten)]
    more: BTreeMap<&'static str, Vec<RowLine<'a>>>,
}

/// One row of it.
#[derive(Debug)]
struct RowLine<'a> {
    columns: &'a [Column],
    row: &'a Row,
}

impl<'a> ReportLine<'a> {
    pub(super) fn new(report: &'a Report, clock: &Clock) -> Self {
        Self {
            event: report.view,
            from: clock.rfc3339(report.from),
            to: clock.rfc3339(report.to),
            seconds: seconds(report.to.saturating_sub(report.from)),
            hooks: &report.hooks,
            lost: report.lost,
            rows: rows(&report.table),
            more: report
                .table
                .more
                .iter()
                .map(|section| (section.name, rows(&section.table)))
                .collect(),
        }
    }
}

fn rows(table: &Table) -> Vec<RowLine<'_>> {
    let columns = &table.columns;
    table
        .rows
        .iter()
        .map(|row| RowLine { columns, row })
        .collect()
}

impl Serialize for RowLine<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("row", self.row.kind.label())?;
        map.serialize_entry("groups", &groups(self.row.kind))?;
        for (column, cell) in machine(self.columns).zip(cells(self.columns, self.row)) {
            map.serialize_entry(column.name, &Value(cell))?;
        }
        map.end()
    }
}

/// Of how many groups a row is the sum.
fn groups(kind: RowKind) -> Option<usize> {
    match kind {
        RowKind::Others(groups) => Some(groups),
        RowKind::Group | RowKind::Total => None,
    }
}

/// The columns that are not for people only.
fn machine(columns: &[Column]) -> impl Iterator<Item = &Column> {
    columns.iter().filter(|column| column.shown != Shown::Text)
}

fn cells<'a>(columns: &'a [Column], row: &'a Row) -> impl Iterator<Item = &'a Cell> {
    columns
        .iter()
        .zip(&row.cells)
        .filter(|(column, _)| column.shown != Shown::Text)
        .map(|(_, cell)| cell)
}

/// A cell in JSON.
struct Value<'a>(&'a Cell);

#[derive(Serialize)]
struct BucketLine {
    from: f64,
    to: f64,
    count: u64,
}

impl BucketLine {
    fn new(bucket: &Bucket) -> Self {
        Self {
            from: seconds(bucket.from),
            to: seconds(bucket.to),
            count: bucket.count,
        }
    }
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Cell::Blank | Cell::Unknown => serializer.serialize_none(),
            Cell::Count(number) | Cell::AtLeast(number) | Cell::Id(number) => {
                serializer.serialize_u64(*number)
            }
            Cell::Share(..) | Cell::Rate(..) | Cell::Growth(..) => {
                self.0.number().serialize(serializer)
            }
            Cell::Duration(nanoseconds) => serializer.serialize_f64(seconds(*nanoseconds)),
            Cell::Age(age) => age.nanoseconds().map(seconds).serialize(serializer),
            Cell::Word(label) | Cell::Term { label, .. } => serializer.serialize_str(label),
            Cell::Name(name) => serializer.serialize_str(name),
            Cell::Comm(comm) => serializer.serialize_str(&comm.to_str()),
            Cell::Endpoint(_) => match endpoint(self.0) {
                Some(end) => serializer.serialize_str(&end),
                None => serializer.serialize_none(),
            },
            Cell::Network(network) => serializer.collect_str(network),
            Cell::Buckets(buckets) => serializer.collect_seq(buckets.iter().map(BucketLine::new)),
        }
    }
}

/// `address:port`, or the address alone where the port does not matter.
fn endpoint(cell: &Cell) -> Option<String> {
    match cell {
        Cell::Endpoint(end) if end.addr.is_unspecified() && end.port == 0 => None,
        Cell::Endpoint(end) if end.port == 0 => Some(end.addr.to_string()),
        Cell::Endpoint(end) => Some(std::net::SocketAddr::new(end.addr, end.port).to_string()),
        _ => None,
    }
}

/// The header of CSV: tables that belong to a report have their columns in the same rows, each name once.
pub(super) fn csv_header(report: &Report) -> Vec<&'static str> {
    let mut header = vec!["from", "to", "seconds", "hooks", "lost", "row", "groups"];
    if !report.table.more.is_empty() {
        header.push("table");
    }
    header.extend(csv_columns(report));
    header
}

/// The columns of all tables of a report, each name once.
fn csv_columns(report: &Report) -> Vec<&'static str> {
    let mut names: Vec<_> = Vec::new();
    for (_, table) in tables(report) {
        let missing = machine(&table.columns).filter(|column| !names.contains(&column.name));
        let missing: Vec<_> = missing.map(|column| column.name).collect();
        names.extend(missing);
    }
    names
}

/// The tables of a report; the first has the name `rows`, as in JSON.
fn tables(report: &Report) -> impl Iterator<Item = (&'static str, &Table)> {
    let more = report.table.more.iter();
    let more = more.map(|section| (section.name, &section.table));
    std::iter::once(("rows", &report.table)).chain(more)
}

/// One row for each of the tables, with the time of the report.
pub(super) fn csv_rows(report: &Report, clock: &Clock) -> impl Iterator<Item = Vec<String>> {
    let line = ReportLine::new(report, clock);
    let before = [
        line.from,
        line.to,
        line.seconds.to_string(),
        line.hooks.join("; "),
        line.lost.to_string(),
    ];
    let names = csv_columns(report);
    let several = !report.table.more.is_empty();
    tables(report).flat_map(move |(name, table)| {
        // Where the cells of this table belong.
        let places: Vec<_> = machine(&table.columns)
            .map(|column| names.iter().position(|name| *name == column.name))
            .collect();
        let (before, width) = (before.clone(), names.len());
        table.rows.iter().map(move |row| {
            let mut record = before.to_vec();
            record.push(row.kind.label().to_owned());
            record.push(
                groups(row.kind)
                    .map(|groups| groups.to_string())
                    .unwrap_or_default(),
            );
            if several {
                record.push(name.to_owned());
            }
            let first = record.len();
            record.resize(first + width, String::new());
            for (place, cell) in places.iter().zip(cells(&table.columns, row)) {
                if let Some(slot) = place.and_then(|place| record.get_mut(first + place)) {
                    *slot = csv_cell(cell);
                }
            }
            record
        })
    })
}

/// A cell in CSV: names are escaped, since a reader that goes line by line must not be led astray.
fn csv_cell(cell: &Cell) -> String {
    match cell {
        Cell::Blank | Cell::Unknown => String::new(),
        Cell::Count(number) | Cell::AtLeast(number) | Cell::Id(number) => number.to_string(),
        Cell::Share(..) | Cell::Rate(..) | Cell::Growth(..) => cell
            .number()
            .map(|number| number.to_string())
            .unwrap_or_default(),
        Cell::Duration(nanoseconds) => seconds(*nanoseconds).to_string(),
        Cell::Age(age) => age
            .nanoseconds()
            .map(|nanoseconds| seconds(nanoseconds).to_string())
            .unwrap_or_default(),
        Cell::Word(label) | Cell::Term { label, .. } => (*label).to_owned(),
        Cell::Name(name) => escape::text(name).into_owned(),
        Cell::Comm(comm) => escape::text(&comm.to_str()).into_owned(),
        Cell::Endpoint(_) => endpoint(cell).unwrap_or_default(),
        Cell::Network(network) => network.to_string(),
        Cell::Buckets(buckets) => {
            let mut text = String::new();
            for bucket in buckets.iter() {
                let space = if text.is_empty() { "" } else { " " };
                let (from, to) = (seconds(bucket.from), seconds(bucket.to));
                // Writing to a string does not fail.
                let _ = write!(text, "{space}{from}:{to}:{}", bucket.count);
            }
            text
        }
    }
}
