//! Read-only data that user space fills in before loading. It is frozen, so the verifier knows every value and
//! removes the branches that a kernel or a filter does not need.

use tcpstate_common::{
    config::Config,
    fields::{Format, Offsets},
};

/// Where the kernel fields are.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Offsets = Offsets::absent();

/// Filters and features.
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Config = Config::new();

/// Where the classic tracepoint has its fields.
#[unsafe(no_mangle)]
pub(crate) static FORMAT: Format = Format::absent();

/// Reads one member of a constant: volatile, since the compiler must not use the value it was built with.
macro_rules! constant {
    ($name:ident . $($member:tt)+) => {{
        // SAFETY: a reference to a static is valid and aligned; nobody writes to it.
        unsafe { core::ptr::read_volatile(&raw const $crate::constants::$name.$($member)+) }
    }};
}
pub(crate) use constant;
