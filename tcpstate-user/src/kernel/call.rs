//! The hook at the end of system calls, for who asks for it (`--syscalls`).

use aya::{Btf, Ebpf, programs::BtfTracePoint};
use tcpstate_common::fields::ABSENT;

use super::{observer::program, plan::Plan, refusal::reason};

/// Its program, and its name for people.
pub(super) const PROGRAM: &str = "call";
/// Its name for people.
pub const LABEL: &str = "system calls";

const TRACEPOINT: &str = "sys_exit";

/// Whether system calls are to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallRequest {
    /// No.
    Off,
    /// If that works.
    May,
    /// Yes; it is an error if it does not work.
    Must,
}

/// What it costs.
pub(super) const COSTS: &str = "some 20 ns for every system call of the machine";
/// What is lost without it.
pub(super) const LOSES: &str = "bind() that fails, and who accepts";

/// The numbers of bind(), accept() and accept4().
pub(super) const NUMBERS: [u32; 3] = [
    number(libc::SYS_bind),
    number(libc::SYS_accept),
    number(libc::SYS_accept4),
];

/// They are small.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a const function has no other way"
)]
const fn number(number: libc::c_long) -> u32 {
    number as u32
}

/// Loads and attaches it.
pub(super) fn attach(ebpf: &mut Ebpf, plan: &Plan, kernel_types: &Btf) -> Result<(), String> {
    // The registers that arguments are in are known to the kernel side.
    if !cfg!(target_arch = "x86_64") {
        return Err("its program is built for x86-64".to_owned());
    }
    let offsets = &plan.offsets;
    let needed = [
        offsets.call_number,
        offsets.call_fd,
        offsets.call_address,
        offsets.task_status,
        offsets.task_files,
        offsets.files_table,
        offsets.table_size,
        offsets.table_files,
        offsets.file_socket,
        offsets.socket_sock,
        offsets.socket_file,
    ];
    if needed.contains(&ABSENT) {
        return Err("fields are missing that lead from a call to its socket".to_owned());
    }
    load(ebpf, kernel_types).map_err(|error| format!("{TRACEPOINT}: {}", reason(&error)))
}

fn load(ebpf: &mut Ebpf, kernel_types: &Btf) -> Result<(), aya::programs::ProgramError> {
    let program = program::<BtfTracePoint>(ebpf, PROGRAM)?;
    program.load(TRACEPOINT, kernel_types)?;
    program.attach().map(|_| ())
}
