//! What happens to a TIME_WAIT minisocket, and to its timer.

use tcpstate_common::{
    record::{CALLERS, TimeWaitRecord},
    state::TcpState,
};

use super::{DecodeError, Endpoint, TransitionEvent, check_family, known, state};

/// What happened. The timer tracepoints tell what was done to the timer, from which the rest follows; the functions of
/// minisockets tell it themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeWaitStep {
    /// Timer tracepoints: started, the first time or again. Some starts are not told.
    Armed,
    /// Timer tracepoints: taken off, to be started again, to expire (then that follows on the same CPU), or for good.
    Cancelled,
    /// Timer tracepoints: it expires.
    Expired,
    /// Functions: born, with its timer started.
    Born,
    /// Functions: its time was started again.
    Restarted,
    /// Functions: it ends before its time.
    Ended,
    /// Functions: its time is over.
    TimedOut,
    /// Functions: it is freed, and its network namespace is gone. That may be the only sign of its end.
    Freed,
    /// It took the place of the full socket at this address; told where cookies do not.
    Paired,
    /// There is none: the full socket at this address was refused one.
    Refused,
    /// It was found in the kernel's list.
    Found,
}

/// Something happened to a minisocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeWaitEvent {
    /// What.
    pub step: TimeWaitStep,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The CPU it happened on.
    pub cpu: u32,
    /// Socket cookie of the connection.
    pub cookie: Option<u64>,
    /// Address of the minisocket: an identity while it lives.
    pub minisocket: u64,
    /// Address of the full socket, if it was told.
    pub socket: Option<u64>,
    /// Network namespace: cookie.
    pub netns_cookie: Option<u64>,
    /// Network namespace: inode number.
    pub netns: Option<u32>,
    /// This host's end.
    pub local: Endpoint,
    /// The peer's end.
    pub remote: Endpoint,
    /// FIN_WAIT2 or TIME_WAIT; of a refused one, which it would have been.
    pub substate: TcpState,
    /// The clock of timers, in ticks.
    pub ticks: u64,
    /// When the timer is (or was) due, in ticks.
    pub due: u64,
    /// Return addresses in the kernel, innermost first; zero where there are no more.
    pub callers: [u64; CALLERS],
}

impl TimeWaitEvent {
    /// Whether it has the ends of this full socket.
    #[must_use]
    pub fn has_ends_of(&self, full: &TransitionEvent) -> bool {
        (self.local, self.remote) == (full.local, full.remote)
    }

    pub(super) fn from_record(
        record: &TimeWaitRecord,
        step: TimeWaitStep,
    ) -> Result<Self, DecodeError> {
        check_family(record.family)?;
        let substate = match state(record.substate)? {
            substate @ (TcpState::FinWait2 | TcpState::TimeWait) => substate,
            other => return Err(DecodeError::UnknownState(other as u8)),
        };
        Ok(Self {
            step,
            time: record.time,
            cpu: record.cpu,
            cookie: known(record.cookie),
            minisocket: record.minisocket,
            socket: known(record.socket),
            netns_cookie: known(record.netns_cookie),
            netns: (record.netns != 0).then_some(record.netns),
            local: Endpoint::new(record.laddr, record.lport),
            remote: Endpoint::new(record.raddr, record.rport),
            substate,
            ticks: record.ticks,
            due: record.due,
            callers: record.callers,
        })
    }
}
