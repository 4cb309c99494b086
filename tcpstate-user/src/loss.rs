//! What we know we did not see.

use serde::{Serialize, Serializer, ser::SerializeMap};

/// Why something was not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossKind {
    /// The ring buffer was full: transitions the kernel side could not send.
    RingFull,
    /// A record that could not be decoded.
    Undecodable,
    /// Connections forgotten because the table of open connections was full.
    TableFull,
    /// Records that were still waiting for the output when the run ended.
    Unread,
    /// Sockets that were there before, and could not be sent because the ring buffer was full.
    NotFound,
    /// Events that the kernel did not run our programs for, because they interrupted one on the same CPU.
    Missed,
    /// Records that a recording has no place for, because writing it did not keep up.
    Unrecorded,
}

impl LossKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::RingFull,
        Self::Undecodable,
        Self::TableFull,
        Self::Unread,
        Self::NotFound,
        Self::Missed,
        Self::Unrecorded,
    ];

    /// The word for it in machine formats.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::Undecodable => "undecodable",
            Self::TableFull => "table_full",
            Self::Unread => "unread",
            Self::NotFound => "not_found",
            Self::Missed => "missed",
            Self::Unrecorded => "unrecorded",
        }
    }

    /// What it is and what to do about it, for people.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::RingFull => {
                "transitions lost, the ring buffer was full; use a larger --buffer, a filter, or a faster output"
            }
            Self::Undecodable => {
                "records could not be decoded; please report this with the output of `tcpstate probe`"
            }
            Self::TableFull => {
                "connections forgotten, the table was full; use a larger --max-connections or a filter"
            }
            Self::Missed => {
                "events at most not seen, they interrupted our programs on the same CPU"
            }
            Self::NotFound => {
                "sockets that were there before could not be read, the ring buffer was full; use a larger --buffer"
            }
            Self::Unrecorded => {
                "records are not in the recording, the disk was too slow; use a filter or a faster disk"
            }
            Self::Unread => {
                "records not shown, they still waited for the output at the end; use a filter or a faster output"
            }
        }
    }
}

/// Something was lost between two points in time (nanoseconds of `CLOCK_MONOTONIC`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Why.
    pub kind: LossKind,
    /// How many, since the last report.
    pub count: u64,
    /// Not before this.
    pub from: u64,
    /// Not after this.
    pub to: u64,
}

/// Everything lost in a run, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossTotals([u64; LossKind::ALL.len()]);

impl LossTotals {
    /// How much of this kind.
    #[must_use]
    pub const fn get(&self, kind: LossKind) -> u64 {
        self.0[kind as usize]
    }

    /// Whether nothing was lost.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }

    /// Takes a counter's present value and returns what is new since the last time.
    pub const fn advance(&mut self, kind: LossKind, total: u64) -> u64 {
        let new = total.saturating_sub(self.0[kind as usize]);
        self.0[kind as usize] += new;
        new
    }
}

impl Serialize for LossTotals {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(LossKind::ALL.len()))?;
        for kind in LossKind::ALL {
            map.serialize_entry(kind.label(), &self.get(kind))?;
        }
        map.end()
    }
}
