//! The classic tracepoint `sock:inet_sock_set_state`, for kernels where the BTF one cannot be attached.
//!
//! It sees only the fields of the tracepoint: no cookie, no namespace, no owner, no error, no cgroup.

use aya_ebpf::{
    EbpfContext, helpers::generated::bpf_ktime_get_ns, macros::tracepoint,
    programs::TracePointContext,
};
use tcpstate_common::{
    record::{Counter, RecordKind, TransitionRecord},
    state::TcpState,
};

use crate::{
    constants::constant,
    filter,
    memory::{self, Ends},
    ring,
    transition::{bytes, is_listener, is_wanted_protocol},
};

const AF_INET6: u16 = 10;

/// Reads one field of the tracepoint's record.
macro_rules! field {
    ($context:expr, $name:ident) => {
        memory::probe($context.as_ptr() as u64 + u64::from(constant!(FORMAT.$name)))
    };
}

#[tracepoint(category = "sock", name = "inet_sock_set_state")]
pub(crate) fn classic(context: TracePointContext) -> u32 {
    let old: i32 = field!(context, old);
    let new: i32 = field!(context, new);
    let family: u16 = field!(context, family);
    let (laddr, raddr) = if family == AF_INET6 {
        (field!(context, laddr6), field!(context, raddr6))
    } else {
        (
            memory::ipv4_mapped(field!(context, laddr4)),
            memory::ipv4_mapped(field!(context, raddr4)),
        )
    };
    let ends = Ends {
        family,
        protocol: field!(context, protocol),
        // Before the port of an active open is chosen, that of the socket's life before may stand there.
        lport: if new == TcpState::SynSent as i32 {
            0
        } else {
            field!(context, lport)
        },
        rport: field!(context, rport),
        laddr,
        raddr,
    };
    if !is_listener(old, new) && !filter::wants_ends(&ends, old) {
        return 0;
    }
    if !is_wanted_protocol(ends.protocol) {
        return 0;
    }

    let Some(mut entry) = ring::reserve(&context, Counter::LostTransition) else {
        return 0;
    };
    // SAFETY: the helper has no requirements.
    let time = unsafe { bpf_ktime_get_ns() };
    entry.write(TransitionRecord {
        kind: RecordKind::Transition as u8,
        old: old as u8,
        new: new as u8,
        flags: 0,
        protocol: ends.protocol,
        family,
        time,
        cookie: 0,
        socket: field!(context, socket),
        listener_cookie: 0,
        listener_socket: 0,
        netns_cookie: 0,
        cgroup: 0,
        laddr: bytes(ends.laddr),
        raddr: bytes(ends.raddr),
        lport: ends.lport,
        rport: ends.rport,
        netns: 0,
        error: -1,
        uid: u32::MAX,
        pid: 0,
        tid: 0,
        comm: [0; 16],
        bytes_acked: 0,
        bytes_received: 0,
        retransmits: 0,
        srtt_us: 0,
    });
    ring::submit(entry, time);
    0
}
