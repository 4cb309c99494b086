//! The life of a TIME_WAIT minisocket, by the kernel's generic timer tracepoints: they work where neither fentry nor kprobes
//! are permitted, at the cost of one comparison for every timer of the machine.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{
        bpf_get_smp_processor_id, bpf_get_stack, bpf_jiffies64, bpf_ktime_get_ns,
    },
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use tcpstate_common::record::{CALLERS, Counter, RecordKind, TimeWaitRecord};

use crate::{filter, memory::Timer, ring, transition::bytes};

#[btf_tracepoint(function = "timer_start")]
pub(crate) fn timewait_armed(context: BtfTracePointContext) -> i32 {
    record(&context, RecordKind::TimeWaitArmed)
}

#[btf_tracepoint(function = "timer_cancel")]
pub(crate) fn timewait_cancelled(context: BtfTracePointContext) -> i32 {
    record(&context, RecordKind::TimeWaitCancelled)
}

#[btf_tracepoint(function = "timer_expire_entry")]
pub(crate) fn timewait_expired(context: BtfTracePointContext) -> i32 {
    record(&context, RecordKind::TimeWaitExpired)
}

#[inline(always)]
fn record(context: &BtfTracePointContext, kind: RecordKind) -> i32 {
    let timer = Timer::new(context.arg::<*const u8>(0));
    let Some(minisocket) = timer.minisocket() else {
        return 0;
    };
    let ends = minisocket.ends();
    let (netns_cookie, netns) = minisocket.netns();
    if !filter::wants_netns(netns_cookie, netns)
        || !filter::wants_ends(&ends, 0)
        || !filter::wants_protocol(ends.protocol)
    {
        return 0;
    }
    let lost = Counter::LostTimeWait;
    let Some(mut entry) = ring::reserve::<TimeWaitRecord>(context, lost) else {
        return 0;
    };
    // SAFETY: the helpers have no requirements.
    let (time, ticks, cpu) = unsafe {
        (
            bpf_ktime_get_ns(),
            bpf_jiffies64(),
            bpf_get_smp_processor_id(),
        )
    };
    let record = entry.write(TimeWaitRecord {
        kind: kind as u8,
        substate: minisocket.substate(),
        family: ends.family,
        cpu,
        time,
        cookie: minisocket.cookie(),
        minisocket: minisocket.pointer(),
        netns_cookie,
        ticks,
        due: timer.due(),
        laddr: bytes(ends.laddr),
        raddr: bytes(ends.raddr),
        lport: ends.lport,
        rport: ends.rport,
        netns,
        callers: [0; CALLERS],
    });
    // A timer that is due is taken off to expire, as a rule, and a call chain costs a microsecond; before that, who takes it
    // off says why the life ends.
    if matches!(kind, RecordKind::TimeWaitCancelled)
        && ticks.cast_signed() < record.due.cast_signed()
    {
        // The first frames are those of the tracepoint itself.
        const SKIPPED: u64 = 2;
        // SAFETY: the buffer is the record's own, of this size.
        unsafe {
            bpf_get_stack(
                context.as_ptr(),
                record.callers.as_mut_ptr().cast(),
                size_of_val(&record.callers) as u32,
                SKIPPED,
            )
        };
    }
    ring::submit(entry, time);
    0
}
