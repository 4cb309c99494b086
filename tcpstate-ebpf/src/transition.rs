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

pub(crate) const IPPROTO_TCP: u16 = 6;
const IPPROTO_SCTP: u16 = 132;
const IPPROTO_MPTCP: u16 = 262;

/// Per CPU, at a place that the socket says: the last event there that the first program was run for and the second was not
/// yet. Whoever interrupts us, and is not looked at a second time while we are, leaves his own note at a place of his own.
#[map]
static NOTED: PerCpuArray<[u64; 1 << NOTED_BITS]> = PerCpuArray::with_max_entries(1, 0);

const NOTED_BITS: u32 = 8;

#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn transition(context: BtfTracePointContext) -> i32 {
    if let Some((noted, event)) = noted(&context) {
        *noted = event;
    }
    send(&context, 0)
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn transition_missed(context: BtfTracePointContext) -> i32 {
    if let Some((noted, event)) = noted(&context)
        && *noted == event
    {
        *noted = 0;
        return 0;
    }
    ring::count(Counter::SecondLook);
    send(&context, flags::SECOND_LOOK)
}

/// Where an event is noted, and what tells it from others: its socket and the new state.
#[inline(always)]
fn noted(context: &BtfTracePointContext) -> Option<(&'static mut u64, u64)> {
    /// 2^64 by the golden ratio: nearby addresses have places far apart.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let table = NOTED.get_ptr_mut(0)?.cast::<u64>();
    // The verifier takes the distance of two addresses for a number, and an address not.
    let socket = context.arg::<u64>(0).wrapping_sub(table as u64);
    let new: u64 = context.arg(2);
    let place = socket.wrapping_mul(SPREAD) >> (u64::BITS - NOTED_BITS);
    // SAFETY: it is within the table, which belongs to this CPU, and is one number.
    let noted = unsafe { &mut *table.add(place as usize) };
    // Sockets begin at multiples of the cache's lines, and states are small.
    Some((noted, socket.wrapping_add(new)))
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
    // connect() found no port: what the socket has of one, and of an error, is of the life before. This is asked last, as the
    // verifier looks at all that follows once more.
    let no_port = closed && old == TcpState::SynSent as i32 && sock.sent_nothing();
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
        lport: if no_port { sock.number() } else { ends.lport },
        rport: ends.rport,
        netns,
        // An error of the life before stays in a socket that is used again.
        error: if closed && !no_port { sock.error() } else { 0 },
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
