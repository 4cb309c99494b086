//! The end of every system call of the machine: what no state transition tells.
//!
//! Which process accepts a connection is known by no state; nor is it that bind() found no port, since the socket stays where
//! it is.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_cgroup_id, bpf_ktime_get_ns},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use tcpstate_common::record::{Call, CallRecord, Counter, RecordKind};

use crate::{
    constants::constant,
    filter,
    memory::{
        self,
        call::{Asked, Held, Registers, is_compat, socket},
    },
    ring,
    transition::bytes,
};

const EADDRINUSE: i64 = 98;

#[btf_tracepoint(function = "sys_exit")]
pub(crate) fn call(context: BtfTracePointContext) -> i32 {
    let registers = Registers::new(context.arg(0));
    let returned: i64 = context.arg(1);
    let number = registers.number();
    let is_in_use = number == constant!(CONFIG.bind) && returned == -EADDRINUSE;
    let is_accept = number == constant!(CONFIG.accept[0]) || number == constant!(CONFIG.accept[1]);
    if is_in_use && let Some(sock) = socket(registers.fd()) {
        send(&context, Call::Bind, sock, &registers.address());
    } else if is_accept
        && returned >= 0
        && let Some(sock) = socket(returned as u32)
    {
        send(&context, Call::Accept, sock, &Asked::default());
    }
    0
}

#[inline(always)]
fn send(context: &BtfTracePointContext, call: Call, sock: Held, asked: &Asked) {
    let (netns_cookie, netns) = sock.netns();
    let protocol = sock.protocol();
    if is_compat()
        || protocol == 0
        || !filter::wants_netns(netns_cookie, netns)
        || !filter::wants_protocol(protocol)
    {
        return;
    }
    let Some(process) = memory::current_process() else {
        return;
    };
    let Some(mut entry) = ring::reserve(context, Counter::LostCall) else {
        return;
    };
    // SAFETY: the helpers have no requirements.
    let (time, cgroup) = unsafe { (bpf_ktime_get_ns(), bpf_get_current_cgroup_id()) };
    entry.write(CallRecord {
        kind: RecordKind::Call as u8,
        call: call as u8,
        family: asked.family,
        protocol,
        port: asked.port,
        time,
        cookie: sock.cookie(),
        socket: sock.pointer(),
        netns_cookie,
        cgroup,
        addr: bytes(asked.addr),
        netns,
        pid: process.pid,
        tid: process.tid,
        padding: 0,
        comm: process.comm,
    });
    ring::submit(entry, time);
}
