//! A socket that the kernel's list of TCP sockets has.

use tcpstate_common::{
    record::{SocketRecord, flags},
    state::TcpState,
};

use super::{DecodeError, Endpoint, Protocol, Totals, check_family, known, state};

/// A full socket that was found, and what it was doing then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketEvent {
    /// When it was found (nanoseconds of `CLOCK_MONOTONIC`).
    pub time: u64,
    /// Socket cookie; `None` before Linux 5.12.
    pub cookie: Option<u64>,
    /// Address of the kernel's socket, an identity while it lives.
    pub socket: u64,
    /// Network namespace: cookie.
    pub netns_cookie: Option<u64>,
    /// Network namespace: inode number.
    pub netns: Option<u32>,
    /// Id of the socket's cgroup.
    pub cgroup: Option<u64>,
    /// User id of the socket.
    pub uid: Option<u32>,
    /// Protocol.
    pub protocol: Protocol,
    /// This host's end.
    pub local: Endpoint,
    /// The peer's end; unspecified if the socket has none.
    pub remote: Endpoint,
    /// The state it was in.
    pub state: TcpState,
    /// What the connection had done so far.
    pub totals: Option<Totals>,
    /// Inode number of its file, by which `/proc/PID/fd` knows it; `None` for orphans and those not accepted yet.
    pub inode: Option<u64>,
}

impl SocketEvent {
    pub(super) fn from_record(record: &SocketRecord) -> Result<Self, DecodeError> {
        check_family(record.family)?;
        let state = state(record.state)?;
        // What a socket was connected to before it listens stays in it.
        let remote = if state == TcpState::Listen {
            Endpoint::new([0; 16], 0)
        } else {
            Endpoint::new(record.raddr, record.rport)
        };
        Ok(Self {
            time: record.time,
            cookie: known(record.cookie),
            socket: record.socket,
            netns_cookie: known(record.netns_cookie),
            netns: (record.netns != 0).then_some(record.netns),
            cgroup: known(record.cgroup),
            uid: (record.uid != u32::MAX).then_some(record.uid),
            protocol: Protocol::from_number(record.protocol),
            local: Endpoint::new(record.laddr, record.lport),
            remote,
            state,
            totals: (record.flags & flags::TOTALS != 0).then(|| {
                Totals::new(
                    record.bytes_acked,
                    record.bytes_received,
                    record.retransmits,
                    record.srtt_us,
                )
            }),
            inode: known(record.inode),
        })
    }
}
