//! By kprobes at the beginning of the same functions: a refusal is known by the call chain of the full socket's end instead,
//! since a probe of what a function returns is not told its arguments.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};

use super::{born, descheduled, freed, paired, scheduled, timed_out};
use crate::memory::Minisocket;

#[kprobe(function = "__inet_twsk_schedule")]
pub(crate) fn kprobe_scheduled(context: ProbeContext) -> u32 {
    let (Some(minisocket), Some(ticks), Some(again)) =
        (context.arg(0), context.arg(1), context.arg::<u8>(2))
    else {
        return 0;
    };
    scheduled(&context, Minisocket::new(minisocket), ticks, again != 0);
    0
}

#[kprobe(function = "inet_twsk_deschedule_put")]
pub(crate) fn kprobe_descheduled(context: ProbeContext) -> u32 {
    if let Some(minisocket) = context.arg(0) {
        descheduled(&context, Minisocket::new(minisocket));
    }
    0
}

#[kprobe(function = "tw_timer_handler")]
pub(crate) fn kprobe_timed_out(context: ProbeContext) -> u32 {
    if let Some(timer) = context.arg(0) {
        timed_out(&context, timer);
    }
    0
}

#[kprobe(function = "inet_twsk_hashdance_schedule")]
pub(crate) fn kprobe_born(context: ProbeContext) -> u32 {
    if let (Some(minisocket), Some(socket), Some(ticks)) =
        (context.arg(0), context.arg(1), context.arg(3))
    {
        born(&context, Minisocket::new(minisocket), socket, ticks);
    }
    0
}

#[kprobe(function = "tcp_twsk_destructor")]
pub(crate) fn kprobe_freed(context: ProbeContext) -> u32 {
    if let Some(minisocket) = context.arg(0) {
        freed(&context, Minisocket::new(minisocket));
    }
    0
}

#[kprobe(function = "inet_twsk_hashdance")]
pub(crate) fn kprobe_paired(context: ProbeContext) -> u32 {
    if let (Some(minisocket), Some(socket)) = (context.arg(0), context.arg(1)) {
        paired(&context, Minisocket::new(minisocket), socket);
    }
    0
}
