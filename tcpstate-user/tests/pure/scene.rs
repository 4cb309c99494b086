//! A scene for the periodic views: connections that close in every way.

use tcpstate_common::{
    record::{Call, CallRecord, RecordKind, TimeWaitRecord, TransitionRecord},
    state::TcpState::{
        self, Close, CloseWait, Established, FinWait1, FinWait2, LastAck, Listen, SynRecv, SynSent,
        TimeWait,
    },
};
use tcpstate_user::event::Event;
use zerocopy::IntoBytes as _;

use crate::records::{MS, owned, record, timer};

/// When the hooks were in place.
pub const START: u64 = 1_000_000 * MS;

/// Something the kernel side sends.
#[derive(Clone)]
pub enum Sent {
    Transition(TransitionRecord),
    Timer(TimeWaitRecord),
    Call(CallRecord),
}

impl Sent {
    pub fn event(&self) -> Event {
        let bytes = match self {
            Self::Transition(record) => record.as_bytes(),
            Self::Timer(record) => record.as_bytes(),
            Self::Call(record) => record.as_bytes(),
        };
        Event::decode(bytes).expect("a good record")
    }
}

/// A process was in this call on the socket of connection `cookie`; bind() asked for 10.0.0.1 and this port.
pub fn call(call: Call, cookie: u64, time: u64, pid: u32, comm: &[u8], port: u16) -> CallRecord {
    let of = owned(record(cookie, time, Close, Listen), pid, comm);
    CallRecord {
        kind: RecordKind::Call as u8,
        call: call as u8,
        family: if call == Call::Bind { 2 } else { 0 },
        protocol: of.protocol,
        port,
        time,
        cookie,
        socket: of.socket,
        netns_cookie: of.netns_cookie,
        cgroup: of.cgroup,
        addr: of.laddr,
        netns: of.netns,
        pid,
        tid: of.tid,
        padding: 0,
        comm: of.comm,
    }
}

/// The states of one connection, a step so many microseconds after the other, beginning at this millisecond.
pub fn life(
    cookie: u64,
    at: u64,
    steps: &[(TcpState, u64)],
    change: impl Fn(TransitionRecord) -> TransitionRecord,
) -> Vec<Sent> {
    let mut time = START + at * MS;
    let pairs = steps.iter().zip(&steps[1..]);
    pairs
        .map(|((old, _), (new, after))| {
            time += after * 1000;
            Sent::Transition(change(record(cookie, time, *old, *new)))
        })
        .collect()
}

/// A connection to a listener with cookie 1 on port 443, from another address each.
fn passive(cookie: u64) -> impl Fn(TransitionRecord) -> TransitionRecord {
    move |record| TransitionRecord {
        lport: 443,
        rport: 50_000 + u16::try_from(cookie).expect("a small number"),
        raddr: std::net::Ipv4Addr::new(192, 0, 2, u8::try_from(cookie).expect("a small number"))
            .to_ipv6_mapped()
            .octets(),
        listener_cookie: u64::from(record.old == Listen as u8),
        ..record
    }
}

fn is(record: &TransitionRecord, states: &[TcpState]) -> bool {
    states.iter().any(|state| *state as u8 == record.new)
}

/// A server that closes first, with peers that do, clients that reset, one unknown, one hostile.
pub fn scene() -> Vec<Sent> {
    let mut all = server();
    all.extend(clients());
    all
}

fn server() -> Vec<Sent> {
    let any = std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets();
    let listener = TransitionRecord {
        laddr: any,
        raddr: any,
        lport: 443,
        rport: 0,
        ..record(1, START + MS, Close, Listen)
    };
    let mut all = vec![Sent::Transition(owned(listener, 100, b"nginx"))];
    let closes_first = [
        (Listen, 0),
        (SynRecv, 0),
        (Established, 9),
        (FinWait1, 20_000),
        (FinWait2, 80),
    ];
    for cookie in 10..14 {
        let of = passive(cookie);
        all.extend(life(cookie, 10 * cookie, &closes_first, |record| {
            let record = of(record);
            if is(&record, &[FinWait1]) {
                owned(record, 101, b"nginx")
            } else {
                record
            }
        }));
        let (time, substate) = match cookie {
            // The last one waits for the peer's FIN.
            13 => (START + (10 * cookie + 21) * MS, FinWait2),
            _ => (START + (10 * cookie + 22) * MS, TimeWait),
        };
        let minisocket = timer(
            RecordKind::TimeWaitArmed,
            cookie,
            time,
            substate,
            60_000 * MS,
        );
        all.push(Sent::Timer(minisocket));
        let gone = of(record(cookie, time + 10_000, FinWait2, Close));
        all.push(Sent::Transition(gone));
    }
    // The peer closes first, and the application takes 250 ms.
    let closed_by_peer = [
        (Listen, 0),
        (SynRecv, 0),
        (Established, 9),
        (CloseWait, 5_000),
        (LastAck, 250_000),
        (Close, 40),
    ];
    let of = passive(20);
    all.extend(life(20, 300, &closed_by_peer, |record| {
        let record = of(record);
        if is(&record, &[LastAck]) {
            owned(record, 101, b"nginx")
        } else {
            record
        }
    }));
    all
}

fn clients() -> Vec<Sent> {
    let mut all = Vec::new();
    let connected = [(Close, 0), (SynSent, 0), (Established, 150)];
    let hostile = |record: TransitionRecord| TransitionRecord {
        cgroup: 43,
        uid: 33,
        ..owned(record, 300, b"\x1b[2J\n\",=x")
    };
    let resets = [&connected[..], &[(Close, 1_000)]].concat();
    for cookie in 30..33 {
        all.extend(life(cookie, 400 + cookie, &resets, |record| {
            if is(&record, &[SynSent, Close]) {
                hostile(record)
            } else {
                record
            }
        }));
    }
    // A process that is called as we call what is not known, and a close of which nobody knows whose it was.
    let unknown = [&connected[..], &[(FinWait1, 2_000)]].concat();
    for (cookie, name) in [(40, Some(b"unknown")), (41, None)] {
        all.extend(life(cookie, 500, &unknown, |record| match name {
            Some(name) if !is(&record, &[Established]) => owned(record, 400, name),
            _ => record,
        }));
    }
    // Refused, timed out, and met in the middle.
    let refused = [(Close, 0), (SynSent, 0), (Close, 70)];
    all.extend(life(50, 600, &refused, |record| TransitionRecord {
        error: if is(&record, &[Close]) {
            libc::ECONNREFUSED
        } else {
            0
        },
        ..owned(record, 500, b"curl")
    }));
    let timed_out = [&connected[..], &[(Close, 900_000)]].concat();
    all.extend(life(51, 700, &timed_out, |record| {
        let error = if is(&record, &[Close]) {
            libc::ETIMEDOUT
        } else {
            0
        };
        let record = TransitionRecord { error, ..record };
        if is(&record, &[SynSent]) {
            owned(record, 500, b"curl")
        } else {
            record
        }
    }));
    all.extend(life(
        52,
        1_700,
        &[(CloseWait, 0), (LastAck, 0), (Close, 30)],
        |record| record,
    ));
    all
}
