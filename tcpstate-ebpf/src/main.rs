//! Kernel side of tcpstate: each hook turns what it sees into one fixed record in one ring buffer.
//!
//! The kernel does the least: no map look-up on the way to a record, no policy, no format. Everything a program
//! may read of the kernel's memory is in `memory.rs`; which fields exist is told by user space (`constants.rs`).

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "a target without compare-and-swap has no `fetch_add`; the processor has the addition all the same"
)]
#![expect(
    clippy::inline_always,
    reason = "the verifier knows constants and types only within one function, and a call costs"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the kernel's numbers are small where a record is narrow; user space checks them"
)]
#![expect(
    clippy::cast_ptr_alignment,
    reason = "BTF says where a field is and so how it is aligned"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the attributes of aya-ebpf pass the context by value"
)]

mod call;
mod classic;
mod constants;
mod existing;
mod filter;
mod memory;
mod ring;
mod timewait;
mod transition;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers such as `bpf_probe_read_kernel` are for programs under a licence compatible with the GPL.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
