//! The iterator over the TCP sockets of a network namespace: sends those that are there through the ring buffer, where they
//! stand in order with what happens meanwhile.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_ktime_get_ns, bpf_seq_write, bpf_skc_to_tcp_sock},
};
use tcpstate_common::{
    record::{Counter, RecordKind, SocketRecord, flags},
    state::TcpState,
};

use crate::{
    filter,
    memory::{Minisocket, Sock},
    ring,
    timewait::{self, Step},
    transition::bytes,
};

/// `struct bpf_iter__tcp`.
#[repr(C)]
pub(crate) struct Found {
    /// `struct bpf_iter_meta`, which begins with the `struct seq_file *` that is read from.
    meta: *const *mut c_void,
    /// `struct sock_common`: a full socket, a minisocket or a request; null at the end.
    socket: *const u8,
}

struct Context<'a>(&'a Found);

impl EbpfContext for Context<'_> {
    fn as_ptr(&self) -> *mut c_void {
        core::ptr::from_ref(self.0).cast_mut().cast()
    }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub(crate) extern "C" fn existing(found: &Found) -> i32 {
    send(found, true)
}

/// The same without full sockets.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub(crate) extern "C" fn minisockets(found: &Found) -> i32 {
    send(found, false)
}

#[inline(always)]
fn send(found: &Found, full_sockets: bool) -> i32 {
    let socket = found.socket;
    if socket.is_null() {
        return 0;
    }
    // SAFETY: the helper takes a pointer whose type the verifier knows, and gives null for what is no full TCP socket.
    let full = unsafe { bpf_skc_to_tcp_sock(socket.cast_mut().cast()) };
    let context = Context(found);
    if full.is_null() {
        minisocket(&context, Sock::new(socket));
    } else if full_sockets {
        full_socket(&context, Sock::new(full.cast::<u8>().cast_const()));
    }
    // One byte a socket: a reader that asks for so many bytes lets us send so many sockets.
    let byte = 0_u8;
    // SAFETY: the sequence is the one that is read from, and the byte lives through the call.
    unsafe { bpf_seq_write((*found.meta).cast(), (&raw const byte).cast_mut().cast(), 1) };
    0
}

#[inline(always)]
fn full_socket(context: &Context<'_>, sock: Sock) {
    let state = sock.state();
    let ends = sock.ends(false);
    let (netns_cookie, netns) = sock.netns();
    // Listeners tell whose their children are, whatever the filter.
    let wanted = state == TcpState::Listen as u8 || filter::wants_ends(&ends, 0);
    if !filter::wants_netns(netns_cookie, netns)
        || !wanted
        || !filter::wants_protocol(ends.protocol)
    {
        return;
    }
    let Some(mut entry) = ring::reserve::<SocketRecord>(context, Counter::LostSocket) else {
        return;
    };
    // SAFETY: the helper has no requirements.
    let time = unsafe { bpf_ktime_get_ns() };
    let totals = sock.totals();
    entry.write(SocketRecord {
        kind: RecordKind::Socket as u8,
        state,
        protocol: ends.protocol,
        family: ends.family,
        flags: if totals.known { flags::TOTALS } else { 0 },
        padding: 0,
        time,
        cookie: sock.cookie(),
        socket: sock.pointer(),
        netns_cookie,
        cgroup: sock.cgroup(),
        inode: sock.inode(),
        laddr: bytes(ends.laddr),
        raddr: bytes(ends.raddr),
        lport: ends.lport,
        rport: ends.rport,
        netns,
        uid: sock.uid(),
        retransmits: totals.retransmits,
        bytes_acked: totals.bytes_acked,
        bytes_received: totals.bytes_received,
        srtt_us: totals.srtt_us,
        padding2: 0,
    });
    ring::submit(entry, time);
}

#[inline(always)]
fn minisocket(context: &Context<'_>, found: Sock) {
    if found.state() != TcpState::TimeWait as u8 {
        return;
    }
    // Gives it a cookie if it has none yet: from then on it has.
    found.cookie();
    let minisocket = Minisocket::new(found.pointer());
    timewait::send(context, minisocket, &Step::found(minisocket));
}
