//! Output: what the lifecycle understood, written as text, JSON lines or CSV. Nothing here knows where it goes.

mod both;
pub(crate) mod cells;
mod csv;
mod disguised;
pub mod escape;
mod json;
mod parquet;
mod perfetto;
mod report;
mod table;
mod text;

use std::io;

use serde::Serialize;

use crate::{
    analysis::{Connection, Report},
    lifecycle::Transition,
    loss::{Loss, LossTotals},
};

pub(crate) use self::json::seconds;
pub use self::{
    both::Both,
    csv::Csv,
    disguised::Disguised,
    json::{Json, json_line},
    parquet::Parquet,
    perfetto::Perfetto,
    text::{Layout, Text},
};

/// Somewhere to write a run to.
pub trait Sink {
    /// One transition.
    ///
    /// # Errors
    /// If it cannot be written.
    fn transition(&mut self, transition: &Transition) -> io::Result<()>;

    /// One connection that has ended, or is still there at the end of the run.
    ///
    /// # Errors
    /// If it cannot be written.
    fn connection(&mut self, connection: &Connection) -> io::Result<()>;

    /// What a periodic view has to say of an interval.
    ///
    /// # Errors
    /// If it cannot be written.
    fn report(&mut self, report: &Report) -> io::Result<()>;

    /// Something was lost.
    ///
    /// # Errors
    /// If it cannot be written.
    fn loss(&mut self, loss: &Loss) -> io::Result<()>;

    /// The end of the run.
    ///
    /// # Errors
    /// If it cannot be written.
    fn summary(&mut self, summary: &Summary) -> io::Result<()>;

    /// Passes on everything written so far.
    ///
    /// # Errors
    /// If it cannot be written.
    fn flush(&mut self) -> io::Result<()>;

    /// The terminal has this many columns now.
    fn resize(&mut self, _columns: usize) {}
}

/// What the rows of an output are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rows {
    /// Transitions.
    #[default]
    Transitions,
    /// Connections.
    Connections,
    /// Those of tables, each with columns of its own.
    Reports,
}

/// Transitions of protocols that were not asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OtherProtocols {
    /// MPTCP.
    pub mptcp: u64,
    /// SCTP.
    pub sctp: u64,
    /// Any other.
    pub other: u64,
}

/// A whole run in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// How long the hooks were in place, in seconds.
    pub seconds: f64,
    /// Which hooks were used.
    pub hooks: Vec<&'static str>,
    /// Records that came from the kernel side, shown or not.
    pub events: u64,
    /// Rows shown.
    pub shown: u64,
    /// Connections and listeners seen, shown or not.
    pub connections: u64,
    /// Sockets that were there before.
    pub found: u64,
    /// Transitions whose old state did not follow from what was seen before.
    pub damaged: u64,
    /// Connections whose deciding port or address was not known to the end.
    pub undecided: u64,
    /// Transitions hidden because no process or cgroup is known for them.
    pub unattributed: u64,
    /// Transitions of protocols that were not asked for.
    pub other_protocols: OtherProtocols,
    /// What was lost.
    pub loss: LossTotals,
    /// A recording was not read to its end, since a signal (Ctrl-C) came.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
}

/// The name of an errno: `ECONNRESET`.
fn error_name(errno: i32) -> String {
    match nix::errno::Errno::from_raw(errno) {
        nix::errno::Errno::UnknownErrno => errno.to_string(),
        known => format!("{known:?}"),
    }
}
