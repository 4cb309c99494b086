//! What a time is measured of: each state, and the close as a whole.

use tcpstate_common::state::TcpState;

/// Something that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// SYN_SENT of a connect() that succeeded.
    SynSent,
    /// SYN_SENT of one that failed.
    ConnectFailed,
    /// SYN_RECV, as far as the state tracepoint shows it.
    SynRecv,
    /// ESTABLISHED.
    Established,
    /// FIN_WAIT1: until the peer has acknowledged our FIN.
    FinWait1,
    /// FIN_WAIT2: until the peer's FIN, in the full socket and the minisocket.
    FinWait2,
    /// CLOSING: the FINs crossed.
    Closing,
    /// TIME_WAIT, from its first start to its end.
    TimeWait,
    /// CLOSE_WAIT: until the application closes.
    CloseWait,
    /// LAST_ACK: until the peer has acknowledged our FIN.
    LastAck,
    /// From our FIN to the start of TIME_WAIT, or to CLOSE if there is none.
    ActiveClose,
    /// From the peer's FIN to CLOSE.
    PassiveClose,
}

impl Measure {
    /// In the order of a life.
    pub const ALL: [Self; 12] = [
        Self::SynSent,
        Self::ConnectFailed,
        Self::SynRecv,
        Self::Established,
        Self::FinWait1,
        Self::FinWait2,
        Self::Closing,
        Self::TimeWait,
        Self::CloseWait,
        Self::LastAck,
        Self::ActiveClose,
        Self::PassiveClose,
    ];

    /// The word for it in machine formats.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::SynSent => "syn_sent",
            Self::ConnectFailed => "connect_failed",
            Self::SynRecv => "syn_recv",
            Self::Established => "established",
            Self::FinWait1 => "fin_wait1",
            Self::FinWait2 => "fin_wait2",
            Self::Closing => "closing",
            Self::TimeWait => "time_wait",
            Self::CloseWait => "close_wait",
            Self::LastAck => "last_ack",
            Self::ActiveClose => "active_close",
            Self::PassiveClose => "passive_close",
        }
    }

    /// The same for people: states as the kernel spells them.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => TcpState::SynSent.name(),
            Self::ConnectFailed => "connect failed",
            Self::SynRecv => TcpState::SynRecv.name(),
            Self::Established => TcpState::Established.name(),
            Self::FinWait1 => TcpState::FinWait1.name(),
            Self::FinWait2 => TcpState::FinWait2.name(),
            Self::Closing => TcpState::Closing.name(),
            Self::TimeWait => TcpState::TimeWait.name(),
            Self::CloseWait => TcpState::CloseWait.name(),
            Self::LastAck => TcpState::LastAck.name(),
            Self::ActiveClose => "active close",
            Self::PassiveClose => "passive close",
        }
    }

    /// Those that belong to a state; CLOSE stands for the close as a whole.
    #[must_use]
    pub const fn of_state(state: TcpState) -> &'static [Self] {
        match state {
            TcpState::SynSent => &[Self::SynSent, Self::ConnectFailed],
            TcpState::SynRecv => &[Self::SynRecv],
            TcpState::Established => &[Self::Established],
            TcpState::FinWait1 => &[Self::FinWait1],
            TcpState::FinWait2 => &[Self::FinWait2],
            TcpState::Closing => &[Self::Closing],
            TcpState::TimeWait => &[Self::TimeWait],
            TcpState::CloseWait => &[Self::CloseWait],
            TcpState::LastAck => &[Self::LastAck],
            TcpState::Close => &[Self::ActiveClose, Self::PassiveClose],
            TcpState::Listen | TcpState::NewSynRecv | TcpState::BoundInactive => &[],
        }
    }

    /// What ends with this transition.
    pub(super) const fn ending(old: TcpState, new: TcpState) -> Option<Self> {
        match (old, new) {
            (TcpState::SynSent, TcpState::Close) => Some(Self::ConnectFailed),
            (TcpState::Close, _) => None,
            _ => match Self::of_state(old) {
                [first, ..] => Some(*first),
                [] => None,
            },
        }
    }
}
