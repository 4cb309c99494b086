//! TCP states, numbered and spelled as the kernel does (`include/net/tcp_states.h`).

/// A TCP state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum TcpState {
    /// Both sides may send.
    Established = 1,
    /// Active open: SYN sent.
    SynSent = 2,
    /// Passive open: SYN received.
    SynRecv = 3,
    /// Active close: FIN sent, not yet acknowledged.
    FinWait1 = 4,
    /// Active close: FIN acknowledged, the peer's FIN outstanding.
    FinWait2 = 5,
    /// Active close: both FINs acknowledged, waiting for the network to forget the connection.
    TimeWait = 6,
    /// No connection.
    Close = 7,
    /// Passive close: the peer has closed, the application has not.
    CloseWait = 8,
    /// Passive close: FIN sent, not yet acknowledged.
    LastAck = 9,
    /// Waiting for connections.
    Listen = 10,
    /// Simultaneous close: FINs crossed, ours not yet acknowledged.
    Closing = 11,
    /// Passive open, held in a request socket.
    NewSynRecv = 12,
    /// Bound, but not connected: a pseudo state of the kernel's socket dumps (6.8 and later).
    BoundInactive = 13,
}

impl TcpState {
    /// Every state, in the kernel's numbering.
    pub const ALL: [Self; 13] = [
        Self::Established,
        Self::SynSent,
        Self::SynRecv,
        Self::FinWait1,
        Self::FinWait2,
        Self::TimeWait,
        Self::Close,
        Self::CloseWait,
        Self::LastAck,
        Self::Listen,
        Self::Closing,
        Self::NewSynRecv,
        Self::BoundInactive,
    ];

    /// The state with this number, or `None` if the kernel has no such state.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1..=13 => Some(Self::ALL[number as usize - 1]),
            _ => None,
        }
    }

    /// The kernel's spelling, for people: `FIN_WAIT1`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::FinWait1 => "FIN_WAIT1",
            Self::FinWait2 => "FIN_WAIT2",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
            Self::NewSynRecv => "NEW_SYN_RECV",
            Self::BoundInactive => "BOUND_INACTIVE",
        }
    }

    /// The same in lower case, for machine formats: `fin_wait1`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::SynSent => "syn_sent",
            Self::SynRecv => "syn_recv",
            Self::FinWait1 => "fin_wait1",
            Self::FinWait2 => "fin_wait2",
            Self::TimeWait => "time_wait",
            Self::Close => "close",
            Self::CloseWait => "close_wait",
            Self::LastAck => "last_ack",
            Self::Listen => "listen",
            Self::Closing => "closing",
            Self::NewSynRecv => "new_syn_recv",
            Self::BoundInactive => "bound_inactive",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TcpState;

    #[test]
    fn numbers_are_the_kernels() {
        for (index, state) in TcpState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, index + 1);
            assert_eq!(TcpState::from_number(state as u8), Some(state));
        }
        assert_eq!(TcpState::from_number(0), None);
        assert_eq!(TcpState::from_number(14), None);
        assert_eq!(TcpState::from_number(255), None);
    }

    #[test]
    fn labels_are_names_in_lower_case() {
        for state in TcpState::ALL {
            assert!(state.name().eq_ignore_ascii_case(state.label()));
            assert!(
                !state
                    .label()
                    .contains(|letter: char| letter.is_ascii_uppercase())
            );
        }
    }
}
