//! The system call `bpf`, for the little that aya does not do, or not soon enough.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya::Btf;
use aya_obj::{
    btf::BtfKind,
    generated::{
        bpf_attach_type::{self, BPF_TRACE_FENTRY, BPF_TRACE_RAW_TP},
        bpf_attr,
        bpf_cmd::{self, BPF_MAP_UPDATE_ELEM, BPF_PROG_LOAD},
        bpf_prog_type::BPF_PROG_TYPE_TRACING,
    },
};

/// A helper that not every kernel has for a program on a BTF tracepoint.
#[derive(Clone, Copy, Debug)]
pub(super) enum Helper {
    /// `bpf_get_socket_cookie`: from Linux 5.12.
    SocketCookie = 46,
    /// `bpf_get_current_task_btf`: from Linux 5.11.
    CurrentTask = 158,
}

impl Helper {
    /// Whether the kernel takes a program on `inet_sock_set_state` that does nothing but call it: a small one tells the same
    /// as a large one, and sooner.
    pub(super) fn is_permitted(self, kernel_types: &Btf) -> bool {
        let program = [
            // r1 = the first argument: the socket
            instruction(0x79, 0x11, 0),
            // call
            instruction(0x85, 0, self as u32),
            ZERO,
            EXIT,
        ];
        kernel_types
            .id_by_type_name_kind("btf_trace_inet_sock_set_state", BtfKind::Typedef)
            .is_ok_and(|tracepoint| load(&program, BPF_TRACE_RAW_TP, tracepoint).is_ok())
    }
}

/// Whether the kernel takes a program at the entry of this function that does nothing. That there is no such function is
/// not what is asked.
pub(super) fn load_fentry(function: &str, kernel_types: &Btf) -> io::Result<()> {
    match kernel_types.id_by_type_name_kind(function, BtfKind::Func) {
        Ok(function) => load(&[ZERO, EXIT], BPF_TRACE_FENTRY, function),
        Err(_) => Ok(()),
    }
}

/// Puts a map in its place in an array of maps. The kernel waits then until no program uses what was there before.
pub(super) fn put(array: BorrowedFd<'_>, place: u32, map: BorrowedFd<'_>) -> io::Result<()> {
    let map = map.as_raw_fd();
    let mut attr = no_attributes();
    // SAFETY: all of it has been written.
    let update = unsafe { &mut attr.__bindgen_anon_2 };
    update.map_fd = array.as_raw_fd().cast_unsigned();
    update.key = &raw const place as u64;
    update.__bindgen_anon_1.value = &raw const map as u64;
    // SAFETY: what it points to lives through the call, and is of the sizes that the map has.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &attr) }.map(|_| ())
}

/// r0 = 0
const ZERO: u64 = instruction(0xb7, 0, 0);
const EXIT: u64 = instruction(0x95, 0, 0);

/// `struct bpf_insn`: code, registers (target, source), offset, constant.
const fn instruction(code: u8, registers: u8, constant: u32) -> u64 {
    code as u64 | (registers as u64) << 8 | (constant as u64) << 32
}

/// Loads a program for what has this BTF type, and lets go of it.
fn load(program: &[u64], kind: bpf_attach_type, target: u32) -> io::Result<()> {
    let mut attr = no_attributes();
    // SAFETY: all of it has been written.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = BPF_PROG_TYPE_TRACING as u32;
    load.expected_attach_type = kind as u32;
    load.attach_btf_id = target;
    load.insns = program.as_ptr() as u64;
    load.insn_cnt = u32::try_from(program.len()).unwrap_or(u32::MAX);
    load.license = c"GPL".as_ptr() as u64;
    // SAFETY: what it points to lives through the call.
    let try_load = || unsafe { bpf(BPF_PROG_LOAD, &attr) };
    let program = match try_load() {
        // Before Linux 5.11 programs count as locked memory, of which there is little by default.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            lock_any_memory();
            try_load()?
        }
        other => other?,
    };
    // SAFETY: it is new, and nobody else knows of it.
    drop(unsafe { OwnedFd::from_raw_fd(program) });
    Ok(())
}

/// As aya does when it makes maps; without the privilege it stays as it is.
fn lock_any_memory() {
    let any = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the limit lives through the call.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const any) };
}

fn no_attributes() -> bpf_attr {
    // SAFETY: every member is a number, for which zero is valid and means that it is not given.
    unsafe { mem::zeroed() }
}

/// # Safety
/// What the attributes point to must be what the command expects.
unsafe fn bpf(command: bpf_cmd, attr: &bpf_attr) -> io::Result<libc::c_int> {
    // SAFETY: the caller says so.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_ref(attr),
            size_of::<bpf_attr>(),
        )
    };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
