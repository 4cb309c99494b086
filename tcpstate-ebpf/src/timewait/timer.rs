//! By the kernel's generic timer tracepoints: they work where neither fentry nor kprobes are permitted, at the cost of one
//! comparison for every timer of the machine.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use tcpstate_common::record::RecordKind;

use super::{Step, Wanted, send};
use crate::memory::Timer;

#[btf_tracepoint(function = "timer_start")]
pub(crate) fn timer_armed(context: BtfTracePointContext) -> i32 {
    record(&context, RecordKind::TimeWaitArmed, Wanted::No)
}

#[btf_tracepoint(function = "timer_cancel")]
pub(crate) fn timer_cancelled(context: BtfTracePointContext) -> i32 {
    record(
        &context,
        RecordKind::TimeWaitCancelled,
        Wanted::BeforeExpiry,
    )
}

#[btf_tracepoint(function = "timer_expire_entry")]
pub(crate) fn timer_expired(context: BtfTracePointContext) -> i32 {
    record(&context, RecordKind::TimeWaitExpired, Wanted::No)
}

#[inline(always)]
fn record(context: &BtfTracePointContext, kind: RecordKind, callers: Wanted) -> i32 {
    let timer = Timer::new(context.arg::<*const u8>(0));
    if let Some(minisocket) = timer.minisocket() {
        let step = Step {
            kind,
            due: timer.due(),
            socket: 0,
            callers,
        };
        send(context, minisocket, &step);
    }
    0
}
