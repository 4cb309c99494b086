//! Tables of typed cells: what a periodic view has to say, before anybody decides how to write it.

use std::{cmp::Ordering, sync::Arc};

use ipnet::IpNet;

use crate::{
    event::{Comm, Endpoint},
    lifecycle::Phase,
};

/// Who gets to see a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Everybody.
    Always,
    /// Machine formats, and people who ask for everything.
    Wide,
    /// Machine formats.
    Machine,
    /// People; machine formats have the same in other columns.
    Text,
    /// Machine formats as they are, people as bars below the table.
    Bars,
}

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// The field in machine formats, and the word for `--sort`.
    pub name: &'static str,
    /// The heading for people, with the unit.
    pub heading: &'static str,
    /// Who gets to see it.
    pub shown: Shown,
    /// Whether it says which row this is; such columns are aligned to the left.
    pub key: bool,
}

impl Column {
    /// A column that says which row this is.
    #[must_use]
    pub const fn key(name: &'static str, heading: &'static str) -> Self {
        Self {
            name,
            heading,
            shown: Shown::Always,
            key: true,
        }
    }

    /// A column of numbers.
    #[must_use]
    pub const fn number(name: &'static str, heading: &'static str) -> Self {
        Self {
            name,
            heading,
            shown: Shown::Always,
            key: false,
        }
    }

    /// The same for these only.
    #[must_use]
    pub const fn shown(mut self, shown: Shown) -> Self {
        self.shown = shown;
        self
    }
}

/// So many samples between two times (nanoseconds), the first of them included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// Not less than this.
    pub from: u64,
    /// Less than this.
    pub to: u64,
    /// How many.
    pub count: u64,
}

/// What is in one row and column. No floating point: equal cells are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    /// It does not apply to this row.
    Blank,
    /// It is not known.
    Unknown,
    /// So many.
    Count(u64),
    /// So many or more: of the rest nobody knows yet.
    AtLeast(u64),
    /// A part of a whole; unknown if the whole is nothing.
    Share(u64, u64),
    /// So many in so many nanoseconds.
    Rate(u64, u64),
    /// So many more, or fewer, in so many nanoseconds.
    Growth(i64, u64),
    /// Nanoseconds.
    Duration(u64),
    /// A time that people read in seconds, and how much it can be trusted.
    Age(Phase),
    /// A number that is a name: of a process, a user, a namespace.
    Id(u64),
    /// One of our own words.
    Word(&'static str),
    /// The same with another spelling for people.
    Term {
        /// For machine formats.
        label: &'static str,
        /// For people.
        name: &'static str,
    },
    /// A name from strangers: to be escaped.
    Name(Arc<str>),
    /// The name of a process: to be escaped.
    Comm(Comm),
    /// An address and a port.
    Endpoint(Endpoint),
    /// A network.
    Network(IpNet),
    /// A distribution.
    Buckets(Arc<[Bucket]>),
}

impl Cell {
    /// A cell for something that may be unknown.
    pub fn known<T>(value: Option<T>, cell: impl FnOnce(T) -> Self) -> Self {
        value.map_or(Self::Unknown, cell)
    }

    /// As a number, if it is one.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "to compare and to show; counts stay below 2^53"
    )]
    pub fn number(&self) -> Option<f64> {
        match *self {
            Self::Count(number) | Self::AtLeast(number) | Self::Duration(number) => {
                Some(number as f64)
            }
            Self::Id(number) => Some(number as f64),
            Self::Growth(change, nanoseconds) => {
                (nanoseconds > 0).then(|| change as f64 * 1e9 / nanoseconds as f64)
            }
            Self::Age(age) => age.nanoseconds().map(|nanoseconds| nanoseconds as f64),
            Self::Share(part, whole) => (whole > 0).then(|| part as f64 / whole as f64),
            Self::Rate(count, nanoseconds) => {
                (nanoseconds > 0).then(|| count as f64 * 1e9 / nanoseconds as f64)
            }
            _ => None,
        }
    }

    /// What names are sorted by.
    fn rank(&self) -> (u8, String) {
        match self {
            Self::Word(label) | Self::Term { label, .. } => (0, (*label).to_owned()),
            Self::Name(name) => (0, name.to_string()),
            Self::Comm(comm) => (0, comm.to_str().into_owned()),
            Self::Unknown => (3, String::new()),
            _ => (2, String::new()),
        }
    }

    /// Largest number first, then names in their order, what is unknown last.
    fn order(&self, other: &Self) -> Ordering {
        match (self.number(), other.number()) {
            (Some(left), Some(right)) => right.total_cmp(&left),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => match (self, other) {
                (Self::Endpoint(left), Self::Endpoint(right)) => left.cmp(right),
                (Self::Network(left), Self::Network(right)) => left.cmp(right),
                _ => self.rank().cmp(&other.rank()),
            },
        }
    }
}

/// What a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// One group.
    Group,
    /// So many groups that did not make it to the top.
    Others(usize),
    /// All groups.
    Total,
}

impl RowKind {
    /// The word for it in machine formats.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Others(_) => "others",
            Self::Total => "total",
        }
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it stands for.
    pub kind: RowKind,
    /// A cell for each column.
    pub cells: Vec<Cell>,
}

/// What a view has to say of one interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows.
    pub rows: Vec<Row>,
    /// What people should know besides.
    pub notes: Vec<String>,
    /// More of the same interval, told apart otherwise.
    pub more: Vec<Section>,
}

/// A table that belongs to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The word for it in machine formats.
    pub name: &'static str,
    /// What it says.
    pub table: Table,
}

/// What is added up in a row.
pub trait Sum: Default {
    /// Adds another one.
    fn add(&mut self, other: &Self);
}

/// Sums, told apart by keys.
#[derive(Clone, Debug)]
pub struct Grouped<A> {
    /// How many cells a key has.
    pub keys: usize,
    /// No key twice.
    pub groups: Vec<(Vec<Cell>, A)>,
    /// What could not be told apart, because there were too many groups.
    pub beyond: Option<A>,
}

/// Which rows come first, and how many are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// The column to sort by.
    pub column: &'static str,
    /// So many rows; the rest is added up.
    pub top: usize,
}

impl Order {
    /// Puts groups in order, adds up those beyond the top, and then all of them. The total is left out if there is nothing
    /// to tell groups apart by.
    ///
    /// A row is made of `first`, the key of the group, and what `cells` makes of its sum.
    pub fn rows<A: Sum>(
        &self,
        columns: &[Column],
        first: &[Cell],
        groups: Grouped<A>,
        cells: impl Fn(&A) -> Vec<Cell>,
    ) -> Vec<Row> {
        let Grouped {
            keys,
            groups,
            beyond,
        } = groups;
        let before = first.len() + keys;
        let position = columns.iter().position(|column| column.name == self.column);
        let mut groups: Vec<_> = groups
            .into_iter()
            .map(|(key, sum)| {
                let row: Vec<_> = first
                    .iter()
                    .cloned()
                    .chain(key)
                    .chain(cells(&sum))
                    .collect();
                (row, sum)
            })
            .collect();
        groups.sort_by(|(left, _), (right, _)| {
            let wanted = position.map_or(Ordering::Equal, |at| left[at].order(&right[at]));
            wanted.then_with(|| by_all(left, right, before))
        });
        let (mut others, mut total) = (A::default(), A::default());
        let mut rest = 0;
        let mut rows = Vec::new();
        for (place, (cells, sum)) in groups.into_iter().enumerate() {
            total.add(&sum);
            if place < self.top {
                rows.push(Row {
                    kind: RowKind::Group,
                    cells,
                });
            } else {
                rest += 1;
                others.add(&sum);
            }
        }
        if let Some(beyond) = &beyond {
            total.add(beyond);
            others.add(beyond);
        }
        if keys == 0 {
            return rows;
        }
        let summed = |sum: &A| {
            let blank = std::iter::repeat_n(Cell::Blank, keys);
            first
                .iter()
                .cloned()
                .chain(blank)
                .chain(cells(sum))
                .collect()
        };
        if rest > 0 || beyond.is_some() {
            rows.push(Row {
                kind: RowKind::Others(rest),
                cells: summed(&others),
            });
        }
        rows.push(Row {
            kind: RowKind::Total,
            cells: summed(&total),
        });
        rows
    }
}

/// So that equal rows come in the same order every time: by all numbers, then by the key.
fn by_all(left: &[Cell], right: &[Cell], keys: usize) -> Ordering {
    let (left_key, left_numbers) = left.split_at(keys);
    let (right_key, right_numbers) = right.split_at(keys);
    left_numbers
        .iter()
        .zip(right_numbers)
        .chain(left_key.iter().zip(right_key))
        .map(|(left, right)| left.order(right))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}
