//! System calls that failed for want of a port or an address, and whose they were.

use super::{
    By, Opened,
    group::{Groups, Interval},
    key::{Dimension, Key, Subject},
    table::{Cell, Column, Order, RowKind, Section, Shown, Sum, Table},
};
use crate::event::Process;

/// How often a call has failed, by process and what it asked for.
#[derive(Debug)]
pub(super) struct Failures {
    name: &'static str,
    by: By,
    columns: Vec<Column>,
    calls: Groups<Calls>,
}

#[derive(Clone, Debug, Default)]
struct Calls(u64);

impl Failures {
    /// Under this name in machine formats, told apart by process and this; the column is that of the count.
    pub(super) fn new(name: &'static str, what: Dimension, count: Column) -> Self {
        /// More than anybody reads.
        const GROUPS: usize = 65_536;
        let by = By::new(&[Dimension::Pid, what], (24, 64));
        Self {
            name,
            columns: by.columns().into_iter().chain([count]).collect(),
            by,
            calls: Groups::new(GROUPS),
        }
    }

    /// What calls with this subject have in common.
    pub(super) fn key(&self, subject: &Subject, process: Option<&Process>) -> Key {
        self.by.key_of(subject, Opened::Active, process)
    }

    /// One has failed.
    pub(super) fn add(&mut self, key: Key) {
        let place = self.calls.place(key, None);
        self.calls.sum(place).0 += 1;
    }

    /// What the interval has brought; `netns` says who is shown the network namespace.
    pub(super) fn section(&mut self, top: usize, netns: Shown) -> Section {
        let order = Order {
            column: "failed",
            top,
        };
        let calls = self.calls.end(&self.by);
        let rows = order.rows(&self.columns, &[], calls, |calls: &Calls| {
            vec![Cell::Count(calls.0)]
        });
        let columns = self.columns.iter().map(|column| match column.name {
            "netns" => column.shown(netns),
            _ => *column,
        });
        Section {
            name: self.name,
            table: Table {
                columns: columns.collect(),
                rows: rows
                    .into_iter()
                    .filter(|row| row.kind != RowKind::Total)
                    .collect(),
                notes: Vec::new(),
                more: Vec::new(),
            },
        }
    }
}

impl Sum for Calls {
    fn add(&mut self, other: &Self) {
        self.0 += other.0;
    }
}

impl Interval for Calls {
    fn end(&mut self) -> Option<Self> {
        let ended = std::mem::take(self);
        (ended.0 > 0).then_some(ended)
    }
}
