//! Records as the kernel side would write them.

use tcpstate_common::{
    record::{CALLERS, RecordKind, TimeWaitRecord, TransitionRecord, flags},
    state::TcpState,
};
use tcpstate_user::event::{Event, TransitionEvent};
use zerocopy::IntoBytes as _;

/// One millisecond.
pub const MS: u64 = 1_000_000;

/// A transition of connection `cookie` at a time, between 10.0.0.1:40000 and 10.0.0.2:80, caused by a packet.
pub fn record(cookie: u64, time: u64, old: TcpState, new: TcpState) -> TransitionRecord {
    TransitionRecord {
        kind: RecordKind::Transition as u8,
        old: old as u8,
        new: new as u8,
        flags: 0,
        protocol: 6,
        family: 2,
        time,
        cookie,
        socket: 0xffff_8880_0000_0000 + cookie * 0x800,
        listener_cookie: 0,
        listener_socket: 0,
        netns_cookie: 1,
        cgroup: 42,
        laddr: std::net::Ipv4Addr::new(10, 0, 0, 1)
            .to_ipv6_mapped()
            .octets(),
        raddr: std::net::Ipv4Addr::new(10, 0, 0, 2)
            .to_ipv6_mapped()
            .octets(),
        lport: 40_000,
        rport: 80,
        netns: 4_026_531_840,
        error: 0,
        uid: 1000,
        pid: 0,
        tid: 0,
        comm: [0; 16],
        bytes_acked: 0,
        bytes_received: 0,
        retransmits: 0,
        srtt_us: 0,
    }
}

/// The same, in the context of a process that was in close(), connect() or listen().
pub fn owned(record: TransitionRecord, pid: u32, comm: &[u8]) -> TransitionRecord {
    let mut name = [0; 16];
    name[..comm.len()].copy_from_slice(comm);
    let released = record.new != TcpState::SynSent as u8 && record.new != TcpState::Listen as u8;
    let file = if released { flags::FILE_RELEASED } else { 0 };
    let flags = flags::OWNED | flags::FILE_KNOWN | file;
    TransitionRecord {
        flags,
        pid,
        tid: pid + 1,
        comm: name,
        ..record
    }
}

/// Through the bytes of the ring buffer, as in life.
pub fn event(record: &TransitionRecord) -> TransitionEvent {
    match Event::decode(record.as_bytes()) {
        Ok(Event::Transition(event)) => event,
        other => unreachable!("a transition was written: {other:?}"),
    }
}

/// Length of a tick in these records.
pub const TICK: u64 = 4 * MS;

/// Something happens to the timer of the minisocket of connection `cookie`, on CPU 0; it is due `left` later.
pub fn timer(
    kind: RecordKind,
    cookie: u64,
    time: u64,
    substate: TcpState,
    left: u64,
) -> TimeWaitRecord {
    let full = record(cookie, time, TcpState::FinWait2, TcpState::Close);
    TimeWaitRecord {
        kind: kind as u8,
        substate: substate as u8,
        family: 2,
        cpu: 0,
        time,
        cookie,
        minisocket: 0xffff_8881_0000_0000 + cookie * 0x100,
        socket: 0,
        netns_cookie: 1,
        ticks: 4_294_892_296 + time / TICK,
        due: 4_294_892_296 + (time + left) / TICK,
        laddr: full.laddr,
        raddr: full.raddr,
        lport: full.lport,
        rport: full.rport,
        netns: full.netns,
        callers: [0; CALLERS],
    }
}
