//! The BTF tracepoint on `inet_sock_set_state`: every transition of every full socket.
//!
//! The kernel does not run a program for an event on a CPU where that program is already at another one (`prog->active`):
//! what happens in a softirq that interrupts it would be lost without a word. So there are two programs on the tracepoint, run
//! one after the other. The first notes which event it was run for, and the second takes those that it was not.

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_ns,
    macros::{btf_tracepoint, map},
    maps::PerCpuArray,
    programs::BtfTracePointContext,
};
use tcpstate_common::{
    record::{Counter, RecordKind, TransitionRecord, flags},
    state::TcpState,
};

use crate::{
    filter,
    memory::{self, Listener, Process, Sock, Totals},
    ring, timewait,
};

const IPPROTO_TCP: u16 = 6;
const IPPROTO_SCTP: u16 = 132;
const IPPROTO_MPTCP: u16 = 262;

/// What tells an event from those that interrupt it: the socket and its new state.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Event {
    socket: u64,
    new: u64,
}

/// Per CPU: the event that the first program was run for last, and the one before it.
#[map]
static NOTED: PerCpuArray<[Event; 2]> = PerCpuArray::with_max_entries(1, 0);

#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn transition(context: BtfTracePointContext) -> i32 {
    if let Some([last, before]) = noted() {
        *before = *last;
        *last = Event::of(&context);
    }
    send(&context, 0)
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn transition_missed(context: BtfTracePointContext) -> i32 {
    if let Some([last, before]) = noted()
        && *last == Event::of(&context)
    {
        // If this interrupts the second look at another event, that one is to be found as it was.
        *last = *before;
        return 0;
    }
    ring::count(Counter::SecondLook);
    send(&context, flags::SECOND_LOOK)
}

#[inline(always)]
fn noted() -> Option<&'static mut [Event; 2]> {
    // SAFETY: the slot belongs to this CPU; what interrupts us leaves it as it has found it.
    NOTED.get_ptr_mut(0).map(|slot| unsafe { &mut *slot })
}

impl Event {
    #[inline(always)]
    fn of(context: &BtfTracePointContext) -> Self {
        Self {
            socket: context.arg(0),
            new: context.arg(2),
        }
    }
}

#[inline(always)]
fn send(context: &BtfTracePointContext, mut flags: u8) -> i32 {
    let sock = Sock::new(context.arg::<*const u8>(0));
    let old: i32 = context.arg(1);
    let new: i32 = context.arg(2);

    let closed = new == TcpState::Close as i32;
    let ends = sock.ends(closed);
    let (netns_cookie, netns) = sock.netns();
    if !filter::wants_netns(netns_cookie, netns) {
        return 0;
    }
    // Listeners tell whose their children are, whatever the filter.
    let listener = is_listener(old, new);
    if !listener && !filter::wants_ends(&ends, old) {
        return 0;
    }
    if !is_wanted_protocol(ends.protocol) {
        return 0;
    }

    // A child gets its own cookie only after its first event; what it has there may be its listener's.
    let child = old == TcpState::Listen as i32 && new == TcpState::SynRecv as i32;
    let own_cookie = if child { 0 } else { sock.cookie() };
    let in_fin_wait = old == TcpState::FinWait1 as i32
        || old == TcpState::FinWait2 as i32
        || old == TcpState::Closing as i32;
    let refused = if closed && in_fin_wait {
        timewait::refused(context, sock, own_cookie)
    } else {
        0
    };

    let Some(mut entry) = ring::reserve(context, Counter::LostTransition) else {
        return 0;
    };
    // SAFETY: the helper has no requirements.
    let time = unsafe { bpf_ktime_get_ns() };
    let mut process = Process {
        pid: 0,
        tid: 0,
        comm: [0; 16],
    };
    if sock.owned()
        && let Some(current) = memory::current_process()
    {
        flags |= flags::OWNED | sock.file_flags();
        process = current;
    }
    let parent = if child {
        sock.listener()
    } else {
        Listener {
            cookie: 0,
            socket: 0,
        }
    };
    let mut totals = Totals::default();
    if ends.protocol == IPPROTO_TCP && (closed || new == TcpState::Established as i32) {
        totals = sock.totals();
        if totals.known {
            flags |= flags::TOTALS;
        }
    }
    entry.write(TransitionRecord {
        kind: RecordKind::Transition as u8,
        old: old as u8,
        new: new as u8,
        flags: flags | refused,
        protocol: ends.protocol,
        family: ends.family,
        time,
        cookie: own_cookie,
        socket: sock.pointer(),
        listener_cookie: parent.cookie,
        listener_socket: parent.socket,
        netns_cookie,
        cgroup: sock.cgroup(),
        laddr: bytes(ends.laddr),
        raddr: bytes(ends.raddr),
        lport: ends.lport,
        rport: ends.rport,
        netns,
        // An error of the life before stays in a socket that is used again.
        error: if closed { sock.error() } else { 0 },
        uid: sock.uid(),
        pid: process.pid,
        tid: process.tid,
        comm: process.comm,
        bytes_acked: totals.bytes_acked,
        bytes_received: totals.bytes_received,
        retransmits: totals.retransmits,
        srtt_us: totals.srtt_us,
    });
    ring::submit(entry, time);
    0
}

/// Whether a protocol was asked for; if not, its transition is counted.
#[inline(always)]
pub(crate) fn is_wanted_protocol(protocol: u16) -> bool {
    if filter::wants_protocol(protocol) {
        return true;
    }
    ring::count(match protocol {
        IPPROTO_MPTCP => Counter::OtherMptcp,
        IPPROTO_SCTP => Counter::OtherSctp,
        _ => Counter::OtherProtocol,
    });
    false
}

/// Whether this is a listening socket's own transition (and not that of a child cloned from it).
#[inline(always)]
pub(crate) fn is_listener(old: i32, new: i32) -> bool {
    new == TcpState::Listen as i32
        || (old == TcpState::Listen as i32 && new == TcpState::Close as i32)
}

#[inline(always)]
pub(crate) fn bytes(address: memory::Address) -> [u8; 16] {
    // SAFETY: both are 16 bytes of plain data.
    unsafe { core::mem::transmute(address) }
}
