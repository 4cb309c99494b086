//! What a run shows: transitions, connections, a periodic view, or nothing.

use std::time::Duration;

use crate::{analysis::Tally, settings::Settings, sink::Rows};

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
pub type MakeTally = Box<dyn FnOnce(&Conditions<'_>) -> Box<dyn Tally>>;

/// A periodic view.
pub struct Periodic {
    /// Makes it.
    pub tally: MakeTally,
    /// Whether it tells of system calls.
    pub calls: bool,
    /// How long an interval is.
    pub every: Option<Duration>,
    /// After how many reports to end.
    pub reports: Option<u64>,
    /// Whether it has to know what network namespaces have set.
    pub settings: bool,
    /// Its reports are shown by somebody else.
    pub silent: bool,
}

/// What a periodic view has to know of the run.
#[derive(Clone, Copy, Debug)]
pub struct Conditions<'a> {
    /// The life of TIME_WAIT is observed.
    pub timewait: bool,
    /// System calls are watched.
    pub calls: bool,
    /// The hook tells errors of sockets.
    pub errors: bool,
    /// How many connections may be remembered.
    pub limit: usize,
    /// Since when is watched, or was recorded (nanoseconds of `CLOCK_MONOTONIC`).
    pub begins: u64,
    /// The hooks in use.
    pub hooks: &'a [&'static str],
    /// What network namespaces had set when the run began, where that could be read.
    pub settings: &'a [Settings],
    /// Addresses are those that were seen.
    pub addresses: bool,
}

impl Shape {
    /// Whether system calls that failed are told of.
    pub const fn tells_calls(&self) -> bool {
        matches!(self, Self::Reports(Periodic { calls: true, .. }))
    }

    /// Whether nothing is to be written but messages.
    pub const fn is_silent(&self) -> bool {
        matches!(
            self,
            Self::Recording | Self::Reports(Periodic { silent: true, .. })
        )
    }

    /// Whether there is something to show before the end.
    pub const fn shows_meanwhile(&self) -> bool {
        match self {
            Self::Transitions | Self::Connections { .. } | Self::Export { .. } => true,
            Self::Reports(periodic) => periodic.every.is_some(),
            Self::Recording => false,
        }
    }

    /// Whether the settings of network namespaces have to be known.
    pub const fn wants_settings(&self) -> bool {
        match self {
            Self::Transitions | Self::Connections { .. } | Self::Export { .. } => false,
            Self::Reports(periodic) => periodic.settings,
            Self::Recording => true,
        }
    }

    /// What the rows of the output are.
    pub const fn rows(&self) -> Rows {
        match self {
            Self::Transitions | Self::Recording => Rows::Transitions,
            Self::Connections { .. } | Self::Export { .. } => Rows::Connections,
            Self::Reports(_) => Rows::Reports,
        }
    }
}
