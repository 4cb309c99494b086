//! What a run shows: transitions, connections, a periodic view, or nothing.

use std::time::Duration;

use crate::{analysis::Tally, sink::Rows};

/// What is to be shown.
pub enum Shape {
    /// Transitions.
    Transitions,
    /// Connections that have ended; if `running`, at the end of the run also those that have not.
    Connections {
        /// Whether those are wanted.
        running: bool,
    },
    /// What a periodic view has to say.
    Reports(Periodic),
    /// Everything, for an export.
    Export {
        /// Transitions are wanted, too.
        transitions: bool,
        /// The states of a connection are wanted in order.
        stays: bool,
    },
    /// Nothing: it is recorded only.
    Recording,
}

/// Makes a periodic view, when it is known what can be observed.
pub type MakeTally = Box<dyn FnOnce(&Conditions) -> Box<dyn Tally>>;

/// A periodic view.
pub struct Periodic {
    /// Makes it.
    pub tally: MakeTally,
    /// How long an interval is.
    pub every: Option<Duration>,
    /// After how many reports to end.
    pub reports: Option<u64>,
}

/// What a periodic view has to know of the run.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// The life of TIME_WAIT is observed.
    pub timewait: bool,
    /// How many connections may be remembered.
    pub limit: usize,
}

impl Shape {
    /// What the rows of the output are.
    pub const fn rows(&self) -> Rows {
        match self {
            Self::Transitions | Self::Recording => Rows::Transitions,
            Self::Connections { .. } | Self::Export { .. } => Rows::Connections,
            Self::Reports(_) => Rows::Reports,
        }
    }
}
