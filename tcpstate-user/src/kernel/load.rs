//! Hands the kernel side to the kernel, and puts the programs of a hook in their places.

use std::time::Duration;

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{BtfTracePoint, ProgramError, TracePoint},
};
use tcpstate_common::config::Config;

use super::{
    call, in_initial_pid_namespace, observer,
    plan::{Plan, Request},
    refusal::{maps_reason, reason},
    rings::{self, Rings},
};
use crate::clock;

/// The kernel side, built from `tcpstate-ebpf` by `cargo xtask ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/tcpstate.bpf.o");

const TRACEPOINT: &str = "inet_sock_set_state";

/// The kernel has taken maps and programs.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) rings: Rings,
}

/// It reads the types of the kernel when it is made, which takes a while: so one is made early. It serves once.
pub(super) type Prepared = EbpfLoader<'static>;

/// The maps, the ring buffers to write to, and the programs, which the kernel looks at while it puts the ring buffers in their
/// places.
pub(super) fn load(
    plan: &Plan,
    request: &Request,
    prepared: &mut Option<Prepared>,
    load_programs: impl Fn(&mut Ebpf) -> Result<(), String>,
) -> Result<Loaded, String> {
    let mut size = rings::size_of_each(request.buffer).map_err(|error| format!("{error:#}"))?;
    loop {
        let mut ebpf = load_maps(plan, request, size, prepared.take())?;
        let (rings, placing) =
            Rings::new(&mut ebpf, size).map_err(|error| maps_reason(error.as_ref()))?;
        load_programs(&mut ebpf)?;
        match placing.wait() {
            Ok(()) => return Ok(Loaded { ebpf, rings }),
            Err(error) => {
                size = Rings::other_size(size, &error).ok_or_else(|| maps_reason(&error))?;
            }
        }
    }
}

/// Hands over the constants and makes the maps. The programs are not loaded yet.
fn load_maps(
    plan: &Plan,
    request: &Request,
    size: u32,
    prepared: Option<Prepared>,
) -> Result<Ebpf, String> {
    let (time_wait_begin, time_wait_end) = plan
        .timewait
        .filter(|observer| observer.asks_the_call_chain())
        .and_then(|_| plan.callers.time_wait())
        .unwrap_or_default();
    let [bind, accept, accept4] = call::NUMBERS;
    let processors = rings::processors().map_err(|error| format!("{error:#}"))?;
    let config = Config {
        filter: request.filter,
        // The other three quarters are for what arrives while the reader wakes up.
        wake_bytes: u64::from(size) / 4,
        timewait_handler: plan.callers.timer_handler().unwrap_or_default(),
        time_wait_begin,
        time_wait_end,
        bucket_shift: bucket_shift(clock::tick()),
        cookie_helper: plan.cookie_helper.into(),
        task_helper: plan.task_helper.into(),
        hashdance: plan.callers.hashdance().into(),
        bind,
        accept: [accept, accept4],
        own_process: in_initial_pid_namespace()
            .then(std::process::id)
            .unwrap_or_default(),
    };
    let mut loader: EbpfLoader<'_> = prepared.unwrap_or_default();
    loader
        .override_global("CONFIG", zerocopy::IntoBytes::as_bytes(&config), true)
        .override_global(
            "OFFSETS",
            zerocopy::IntoBytes::as_bytes(&plan.offsets),
            true,
        )
        .override_global("FORMAT", zerocopy::IntoBytes::as_bytes(&plan.format), true)
        .map_max_entries(rings::MAP, processors);
    loader.load(OBJECT).map_err(|error| maps_reason(&error))
}

/// In the order in which they are to be run: the second takes what the first one missed.
pub(super) const TRANSITION: [&str; 2] = ["transition", "transition_missed"];

pub(super) fn load_btf(ebpf: &mut Ebpf, kernel_types: &Btf) -> Result<(), String> {
    TRANSITION
        .iter()
        .try_for_each(|name| {
            observer::program::<BtfTracePoint>(ebpf, name)?.load(TRACEPOINT, kernel_types)
        })
        .map_err(|error| reason(&error))
}

pub(super) fn attach_btf(ebpf: &mut Ebpf) -> Result<(), ProgramError> {
    TRANSITION.iter().try_for_each(|name| {
        observer::program::<BtfTracePoint>(ebpf, name)?
            .attach()
            .map(|_| ())
    })
}

/// How wide the bucket of the timer wheel is that a timer of 60 s lies in, in ticks as a power of two: `LVL_START` in
/// `kernel/time/timer.c`, with levels of 64 buckets, each level 8 times as coarse as the one before.
fn bucket_shift(tick: Duration) -> u32 {
    let ticks = Duration::from_secs(60).as_nanos() / tick.as_nanos().max(1);
    let finer = |level: &u32| 63 << (3 * level) <= ticks;
    (0..8).take_while(finer).fold(0, |shift, _| shift + 3)
}

pub(super) const CLASSIC: &str = "classic";

pub(super) fn load_classic(ebpf: &mut Ebpf) -> Result<(), String> {
    observer::program::<TracePoint>(ebpf, CLASSIC)
        .and_then(TracePoint::load)
        .map_err(|error| reason(&error))
}

pub(super) fn attach_classic(ebpf: &mut Ebpf) -> Result<(), ProgramError> {
    observer::program::<TracePoint>(ebpf, CLASSIC)?
        .attach("sock", TRACEPOINT)
        .map(|_| ())
}
