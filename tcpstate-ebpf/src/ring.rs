//! The ring buffers, when their reader is woken, and what is counted when one is full.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_CONS_POS, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    btf_maps::{ArrayOfMaps, RingBuf},
    helpers::generated::{bpf_get_smp_processor_id, bpf_ringbuf_query},
    macros::{btf_map, map},
    maps::{PerCpuArray, ring_buf::RingBufEntry},
};
use aya_log_ebpf::warn;
use tcpstate_common::record::Counter;

use crate::constants::constant;

/// Linux 5.8 and 5.9 take no other size than this one.
type Ring = RingBuf<u8, { 1 << 20 }>;

/// For each processor the one to write to, set by user space. With one for all, processors wait for each other at every record.
#[btf_map]
static RINGS: ArrayOfMaps<Ring, 1> = ArrayOfMaps::new();

/// How far the reader had read when this processor woke it last.
#[map]
static WOKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What was not sent, by [`Counter`].
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// Room for a record, or `lost` is counted.
#[inline(always)]
pub(crate) fn reserve<T: 'static>(
    context: &impl EbpfContext,
    lost: Counter,
) -> Option<RingBufEntry<T>> {
    let entry = ring().and_then(|ring| ring.reserve_untyped::<T>(0));
    if entry.is_none() && count(lost) == 0 {
        warn!(context, "ring buffer full: records are lost from here on");
    }
    entry
}

/// Sends the record. A wake-up costs more than ten records, so the reader polls, and is woken only when the buffer
/// fills faster than that, and once until it has read. How full it is is asked for one record in sixteen, chosen by the clock.
#[inline(always)]
pub(crate) fn submit<T>(entry: RingBufEntry<T>, time: u64) {
    let wakeup = if time.is_multiple_of(16) && ring().is_some_and(is_to_be_read) {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    entry.submit(u64::from(wakeup));
}

/// That of this processor.
#[inline(always)]
fn ring() -> Option<&'static Ring> {
    // SAFETY: the helper has no requirements.
    RINGS.get(unsafe { bpf_get_smp_processor_id() })
}

/// Whether it fills up, and its reader has not been told since it read last.
#[inline(always)]
fn is_to_be_read(ring: &Ring) -> bool {
    let ring = core::ptr::from_ref(ring).cast_mut().cast();
    // SAFETY: it is a ring buffer.
    let ask = |what: u32| unsafe { bpf_ringbuf_query(ring, u64::from(what)) };
    if ask(BPF_RB_AVAIL_DATA) < constant!(CONFIG.wake_bytes) {
        return false;
    }
    let Some(woken) = WOKEN.get_ptr_mut(0) else {
        return true;
    };
    // The first byte has not been read at first, and then is never the next one again.
    let read = ask(BPF_RB_CONS_POS) + 1;
    // SAFETY: the slot belongs to this CPU.
    unsafe { core::mem::replace(&mut *woken, read) != read }
}

/// Adds one to a counter of this CPU, in one instruction: an interrupt may count as well. Returns what it was just before.
#[inline(always)]
pub(crate) fn count(counter: Counter) -> u64 {
    let Some(value) = COUNTERS.get_ptr_mut(counter as u32) else {
        return 0;
    };
    // SAFETY: the slot belongs to this CPU, and is a number. Adding gives nothing back, which only newer kernels could do.
    unsafe {
        let before = core::ptr::read_volatile(value);
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(value, 1);
        before
    }
}
