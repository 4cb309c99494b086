//! The life of a TIME_WAIT minisocket: one record for whatever hook sees it.

mod fentry;
mod kprobe;
mod timer;

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{
        bpf_get_smp_processor_id, bpf_get_stack, bpf_jiffies64, bpf_ktime_get_ns,
    },
    macros::map,
    maps::PerCpuArray,
};
use tcpstate_common::{
    record::{CALLERS, Counter, RecordKind, TimeWaitRecord, flags},
    state::TcpState,
};

use crate::{
    constants::constant,
    filter,
    memory::{self, Ends, Minisocket, Sock},
    ring,
    transition::bytes,
};

/// Return addresses, innermost first.
type Callers = [u64; CALLERS];

/// What a record says besides what the minisocket itself does.
pub(crate) struct Step {
    kind: RecordKind,
    /// When the timer is due, in ticks.
    due: u64,
    /// Address of the full socket, or 0.
    socket: u64,
    callers: Wanted,
}

impl Step {
    /// It is there.
    #[inline(always)]
    pub(crate) fn found(minisocket: Minisocket) -> Self {
        Self {
            kind: RecordKind::TimeWaitFound,
            due: minisocket.due(),
            socket: 0,
            callers: Wanted::No,
        }
    }
}

/// Whether a record says who was at it. A call chain costs a microsecond.
#[derive(Clone, Copy)]
enum Wanted {
    No,
    Yes,
    /// Not if the timer is taken off because it expires.
    BeforeExpiry,
}

/// Sends a record of a minisocket, if it is wanted.
#[inline(always)]
pub(crate) fn send(context: &impl EbpfContext, minisocket: Minisocket, step: &Step) {
    let ends = minisocket.ends();
    let netns = minisocket.netns();
    if !is_wanted(&ends, netns) {
        return;
    }
    let cookie = minisocket.cookie();
    if matches!(
        step.kind,
        RecordKind::TimeWaitArmed | RecordKind::TimeWaitBorn
    ) {
        remember(cookie);
    }
    let substate = minisocket.substate();
    // SAFETY: the helper has no requirements.
    let ticks = unsafe { bpf_jiffies64() };
    let lost = match step.kind {
        RecordKind::TimeWaitFound => Counter::LostSocket,
        _ => Counter::LostTimeWait,
    };
    let Some(mut entry) = ring::reserve::<TimeWaitRecord>(context, lost) else {
        return;
    };
    // SAFETY: the helpers have no requirements.
    let (time, cpu) = unsafe { (bpf_ktime_get_ns(), bpf_get_smp_processor_id()) };
    let record = entry.write(TimeWaitRecord {
        kind: step.kind as u8,
        substate,
        family: ends.family,
        cpu,
        time,
        cookie,
        minisocket: minisocket.pointer(),
        socket: step.socket,
        netns_cookie: netns.0,
        ticks,
        due: step.due,
        laddr: bytes(ends.laddr),
        raddr: bytes(ends.raddr),
        lport: ends.lport,
        rport: ends.rport,
        netns: netns.1,
        callers: [0; CALLERS],
    });
    match step.callers {
        Wanted::No => {}
        Wanted::Yes => call_chain(context, &raw mut record.callers, 0),
        Wanted::BeforeExpiry => {
            if ticks.cast_signed() < expires(substate, step.due).cast_signed() {
                call_chain(context, &raw mut record.callers, OF_TRACEPOINT);
            }
        }
    }
    ring::submit(entry, time);
}

/// A full socket was refused a minisocket that would have had this state.
#[inline(always)]
fn send_refused(context: &impl EbpfContext, sock: Sock, substate: u8) {
    let ends = sock.ends(false);
    let netns = sock.netns();
    if !is_wanted(&ends, netns) {
        return;
    }
    let Some(mut entry) = ring::reserve::<TimeWaitRecord>(context, Counter::LostTimeWait) else {
        return;
    };
    // SAFETY: the helpers have no requirements.
    let (time, cpu) = unsafe { (bpf_ktime_get_ns(), bpf_get_smp_processor_id()) };
    entry.write(TimeWaitRecord {
        kind: RecordKind::TimeWaitRefused as u8,
        substate,
        family: ends.family,
        cpu,
        time,
        cookie: sock.cookie(),
        minisocket: 0,
        socket: sock.pointer(),
        netns_cookie: netns.0,
        ticks: 0,
        due: 0,
        laddr: bytes(ends.laddr),
        raddr: bytes(ends.raddr),
        lport: ends.lport,
        rport: ends.rport,
        netns: netns.1,
        callers: [0; CALLERS],
    });
    ring::submit(entry, time);
}

#[inline(always)]
fn is_wanted(ends: &Ends, (cookie, inode): (u64, u32)) -> bool {
    filter::wants_netns(cookie, inode)
        && filter::wants_ends(ends, 0)
        && filter::wants_protocol(ends.protocol)
}

/// `__inet_twsk_schedule(tw, timeo, rearm)`: the timer is about to be started.
#[inline(always)]
fn scheduled(context: &impl EbpfContext, minisocket: Minisocket, ticks: i32, again: bool) {
    // What does not run any more is not started again (`mod_timer_pending`).
    if again && minisocket.pending() {
        started(context, minisocket, ticks, RecordKind::TimeWaitRestarted, 0);
    }
    if !again && constant!(CONFIG.hashdance) == 0 {
        started(context, minisocket, ticks, RecordKind::TimeWaitBorn, 0);
    }
}

/// `inet_twsk_hashdance_schedule(tw, sk, .., timeo)`: a minisocket takes the place of a full socket, and its timer is about
/// to be started. The call of `__inet_twsk_schedule` in it may have been inlined.
#[inline(always)]
fn born(context: &impl EbpfContext, minisocket: Minisocket, socket: u64, ticks: i32) {
    started(context, minisocket, ticks, RecordKind::TimeWaitBorn, socket);
}

#[inline(always)]
fn started(
    context: &impl EbpfContext,
    minisocket: Minisocket,
    ticks: i32,
    kind: RecordKind,
    socket: u64,
) {
    // SAFETY: the helper has no requirements.
    let now = unsafe { bpf_jiffies64() };
    let step = Step {
        kind,
        due: now.wrapping_add_signed(i64::from(ticks)),
        socket,
        callers: Wanted::No,
    };
    send(context, minisocket, &step);
}

/// `tcp_twsk_destructor(sk)`: it is freed. In a network namespace that is gone, that may be the first that is heard of its
/// end: `inet_twsk_deschedule_put` may have been inlined into `inet_twsk_purge`.
#[inline(always)]
fn freed(context: &impl EbpfContext, minisocket: Minisocket) {
    if minisocket.is_netns_gone() {
        let step = Step {
            kind: RecordKind::TimeWaitFreed,
            due: minisocket.due(),
            socket: 0,
            callers: Wanted::Yes,
        };
        send(context, minisocket, &step);
    }
}

/// `inet_twsk_deschedule_put(tw)`: it ends now, unless its timer has just expired on another CPU.
#[inline(always)]
fn descheduled(context: &impl EbpfContext, minisocket: Minisocket) {
    if minisocket.pending() {
        let step = Step {
            kind: RecordKind::TimeWaitEnded,
            due: minisocket.due(),
            socket: 0,
            callers: Wanted::Yes,
        };
        send(context, minisocket, &step);
    }
}

/// `tw_timer_handler(timer)`: its time is over.
#[inline(always)]
fn timed_out(context: &impl EbpfContext, timer: u64) {
    let minisocket = Minisocket::with_timer(timer);
    let step = Step {
        kind: RecordKind::TimeWaitTimedOut,
        due: minisocket.due(),
        socket: 0,
        callers: Wanted::No,
    };
    send(context, minisocket, &step);
}

/// `inet_twsk_hashdance(tw, sk, ..)`, after the timer was started: a minisocket takes the place of a full socket.
#[inline(always)]
fn paired(context: &impl EbpfContext, minisocket: Minisocket, socket: u64) {
    let step = Step {
        kind: RecordKind::TimeWaitPaired,
        due: 0,
        socket,
        callers: Wanted::No,
    };
    send(context, minisocket, &step);
}

/// The tick at which a timer expires: when the bucket of the timer wheel is emptied that it lies in (`calc_index` in
/// `kernel/time/timer.c`). In FIN_WAIT2 the time may be any, so the bucket is not known.
#[inline(always)]
fn expires(substate: u8, due: u64) -> u64 {
    let shift = constant!(CONFIG.bucket_shift) & 63;
    if substate == TcpState::TimeWait as u8 {
        ((due >> shift) + 1) << shift
    } else {
        due
    }
}

/// Cookie of the connection whose minisocket was born last on this CPU.
#[map]
static LAST_BORN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn remember(cookie: u64) {
    if constant!(CONFIG.time_wait_begin) == 0 {
        return;
    }
    if let Some(last) = LAST_BORN.get_ptr_mut(0) {
        // SAFETY: the slot belongs to this CPU.
        unsafe { *last = cookie };
    }
}

/// Says whether `tcp_time_wait` closes this socket without having made a minisocket of it on this CPU. A full socket closes
/// some microseconds after its minisocket was born, so hardly any call chain has to be looked at. `tcp_time_wait` is in the
/// chain itself if the compiler has not made a jump of its last call (`tcp_done`), else as what its caller called.
///
/// Bits of [`flags`].
#[inline(always)]
pub(crate) fn refused(context: &impl EbpfContext, sock: Sock, cookie: u64) -> u8 {
    let begin = constant!(CONFIG.time_wait_begin);
    let end = constant!(CONFIG.time_wait_end);
    if begin == 0 {
        return 0;
    }
    // Without cookies every call chain is looked at: the next socket may have the address of this one.
    if cookie != 0 && LAST_BORN.get(0).is_none_or(|last| *last == cookie) {
        return 0;
    }
    let mut callers = MaybeUninit::<Callers>::uninit();
    call_chain(context, callers.as_mut_ptr(), OF_TRACEPOINT);
    // SAFETY: all of it has been written.
    let callers = unsafe { callers.assume_init() };
    let mut found = 0;
    let mut index = 0;
    while index < CALLERS {
        let address = callers[index];
        let within = address.wrapping_sub(begin).wrapping_sub(1) < end - begin;
        if within || memory::returns_from(address, begin) {
            found = if sock.fin_received() {
                flags::TIME_WAIT | flags::FIN_RECEIVED
            } else {
                flags::TIME_WAIT
            };
            break;
        }
        index += 1;
    }
    // Through memory the verifier does not follow the value: that of Linux 5.10 would go through the rest of the program once
    // for each.
    let found = core::hint::black_box(found);
    // SAFETY: a local variable.
    unsafe { core::ptr::read_volatile(&raw const found) }
}

/// How many of the first frames are those of a tracepoint itself.
const OF_TRACEPOINT: u64 = 2;

/// Writes to all of `callers`: what is beyond the chain is zero.
#[inline(always)]
fn call_chain(context: &impl EbpfContext, callers: *mut Callers, skipped: u64) {
    // SAFETY: the buffer is of this size.
    unsafe {
        bpf_get_stack(
            context.as_ptr(),
            callers.cast(),
            size_of::<Callers>() as u32,
            skipped,
        )
    };
}
