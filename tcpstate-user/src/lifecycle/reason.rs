//! Why minisockets end, and how that is known.

/// Why a minisocket ended, that it was restarted, or that there was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// TIME_WAIT began anew: a retransmitted FIN or another old segment came.
    Restarted,
    /// Its time was over.
    Expired,
    /// connect() took the 4-tuple over (tcp_tw_reuse).
    ReusedConnect,
    /// An acceptable new SYN took the 4-tuple over.
    ReusedSyn,
    /// A RST came.
    Rst,
    /// Data came for an end that had been closed: answered with a RST.
    ResetHalfClose,
    /// An administrator destroyed it (`ss -K`).
    Destroyed,
    /// Its network namespace went away.
    NamespaceGone,
    /// A connection got no minisocket: there were too many (tcp_max_tw_buckets), or no memory.
    Overflow,
    /// It was taken off before its time, and the kernel did not let us see by whom.
    Unknown,
}

impl Reason {
    /// The word for it in every output.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Restarted => "restarted",
            Self::Expired => "expired",
            Self::ReusedConnect => "reused_connect",
            Self::ReusedSyn => "reused_syn",
            Self::Rst => "rst",
            Self::ResetHalfClose => "reset_half_close",
            Self::Destroyed => "destroyed",
            Self::NamespaceGone => "namespace_gone",
            Self::Overflow => "overflow",
            Self::Unknown => "unknown",
        }
    }
}

/// How a reason is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownBy {
    /// The kernel said so: by what it did, or by who did it.
    Kernel,
    /// It follows from other things that the kernel said.
    Inferred,
}

impl KnownBy {
    /// The word for it in every output.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Inferred => "inferred",
        }
    }
}

/// A reason, and how it is known.
pub(super) type Why = (Reason, KnownBy);
