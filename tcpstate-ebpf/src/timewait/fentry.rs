//! By fentry and fexit on the functions that minisockets go through: every start, every end, and every refusal.

use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};

use super::{born, descheduled, freed, paired, scheduled, send_refused, timed_out};
use crate::memory::{Minisocket, Sock};

#[fentry(function = "__inet_twsk_schedule")]
pub(crate) fn fentry_scheduled(context: FEntryContext) -> i32 {
    let minisocket = Minisocket::new(context.arg::<*const u8>(0) as u64);
    scheduled(
        &context,
        minisocket,
        context.arg(1),
        context.arg::<u8>(2) != 0,
    );
    0
}

#[fentry(function = "inet_twsk_deschedule_put")]
pub(crate) fn fentry_descheduled(context: FEntryContext) -> i32 {
    let minisocket = Minisocket::new(context.arg::<*const u8>(0) as u64);
    descheduled(&context, minisocket);
    0
}

#[fentry(function = "tw_timer_handler")]
pub(crate) fn fentry_timed_out(context: FEntryContext) -> i32 {
    timed_out(&context, context.arg::<*const u8>(0) as u64);
    0
}

#[fentry(function = "inet_twsk_hashdance_schedule")]
pub(crate) fn fentry_born(context: FEntryContext) -> i32 {
    let minisocket = Minisocket::new(context.arg::<*const u8>(0) as u64);
    let socket = context.arg::<*const u8>(1) as u64;
    born(&context, minisocket, socket, context.arg(3));
    0
}

#[fentry(function = "tcp_twsk_destructor")]
pub(crate) fn fentry_freed(context: FEntryContext) -> i32 {
    let minisocket = Minisocket::new(context.arg::<*const u8>(0) as u64);
    freed(&context, minisocket);
    0
}

#[fentry(function = "inet_twsk_hashdance")]
pub(crate) fn fentry_paired(context: FEntryContext) -> i32 {
    let minisocket = Minisocket::new(context.arg::<*const u8>(0) as u64);
    paired(&context, minisocket, context.arg::<*const u8>(1) as u64);
    0
}

/// What it returns comes after its three arguments.
#[fexit(function = "inet_twsk_alloc")]
pub(crate) fn fexit_allocated(context: FExitContext) -> i32 {
    if context.arg::<*const u8>(3).is_null() {
        let sock = Sock::new(context.arg::<*const u8>(0));
        send_refused(&context, sock, context.arg::<i32>(2) as u8);
    }
    0
}
