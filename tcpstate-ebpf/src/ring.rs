//! The one ring buffer, when its reader is woken, and what is counted when it is full.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    macros::map,
    maps::{PerCpuArray, RingBuf, ring_buf::RingBufEntry},
};
use aya_log_ebpf::warn;
use tcpstate_common::record::Counter;

use crate::constants::constant;

/// Its size is set by user space.
#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(1 << 24, 0);

/// What was not sent, by [`Counter`].
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// Room for a record, or `lost` is counted.
#[inline(always)]
pub(crate) fn reserve<T: 'static>(
    context: &impl EbpfContext,
    lost: Counter,
) -> Option<RingBufEntry<T>> {
    let entry = RECORDS.reserve::<T>(0);
    if entry.is_none() && count(lost) == 1 {
        warn!(context, "ring buffer full: records are lost from here on");
    }
    entry
}

/// Sends the record. A wake-up costs more than ten records, so the reader polls, and is woken only when the buffer
/// fills faster than that. How full it is is asked for one record in sixteen, chosen by the clock.
#[inline(always)]
pub(crate) fn submit<T>(entry: RingBufEntry<T>, time: u64) {
    let full = time.is_multiple_of(16)
        && RECORDS.query(u64::from(BPF_RB_AVAIL_DATA)) >= constant!(CONFIG.wake_bytes);
    let wakeup = if full {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    entry.submit(u64::from(wakeup));
}

/// Adds one to a counter of this CPU and returns its new value.
#[inline(always)]
pub(crate) fn count(counter: Counter) -> u64 {
    let Some(value) = COUNTERS.get_ptr_mut(counter as u32) else {
        return 0;
    };
    // SAFETY: the slot belongs to this CPU and the program is not preempted by itself.
    unsafe {
        *value += 1;
        *value
    }
}
