//! Having memory fetched that will be read soon, so that nobody has to wait for it then.

/// What is fetched of something that is kept by number: first what tells its place and, a moment later, itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// What tells its place.
    Place,
    /// The value.
    Value,
}

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Has this brought into the cache. It does nothing on processors that we do not know how to ask.
pub(crate) fn prefetch<T>(value: &T) {
    let begin: *const i8 = std::ptr::from_ref(value).cast();
    for at in (0..size_of::<T>()).step_by(LINE) {
        line(begin.wrapping_add(at));
    }
    // It need not begin where a line does.
    line(begin.wrapping_add(size_of::<T>().saturating_sub(1)));
}

#[cfg(target_arch = "x86_64")]
fn line(at: *const i8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: It is a hint, for which any address will do.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
}

#[cfg(target_arch = "aarch64")]
fn line(at: *const i8) {
    // SAFETY: It is a hint, for which any address will do, and changes nothing.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, readonly, preserves_flags));
    };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const fn line(_: *const i8) {}
