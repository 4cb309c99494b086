//! A system call that has just ended: which one, its arguments, and the socket it was about.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_get_current_task, generated::bpf_probe_read_user};
use tcpstate_common::fields::ABSENT;

use super::{AF_INET6, Address, cookie_at, ipv4_mapped, netns_at, probe};
use crate::constants::constant;

/// A `struct pt_regs *` whose type the verifier knows: the registers that the call was made with (x86-64).
#[derive(Clone, Copy)]
pub(crate) struct Registers(*const u8);

/// An address as a program hands it over (`struct sockaddr_in`, `struct sockaddr_in6`); family 0 if it cannot be read.
#[derive(Clone, Copy, Default)]
pub(crate) struct Asked {
    pub(crate) family: u16,
    pub(crate) port: u16,
    pub(crate) addr: Address,
}

/// The address of the `struct sock` of a socket that the current task holds; the verifier does not know its type.
#[derive(Clone, Copy)]
pub(crate) struct Held(u64);

impl Held {
    pub(crate) fn pointer(self) -> u64 {
        self.0
    }

    /// `sk_protocol`; 0 if it is none of IP.
    #[inline(always)]
    pub(crate) fn protocol(self) -> u16 {
        const AF_INET: u16 = 2;
        match read!(self.0, family as u16) {
            AF_INET | AF_INET6 => read!(self.0, protocol as u16),
            _ => 0,
        }
    }

    #[inline(always)]
    pub(crate) fn cookie(self) -> u64 {
        cookie_at(self.0)
    }

    #[inline(always)]
    pub(crate) fn netns(self) -> (u64, u32) {
        netns_at(self.0)
    }
}

impl Registers {
    /// `pointer` must come from the arguments of a BTF program.
    pub(crate) const fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    /// The number of the call; numbers are below 1,000.
    #[inline(always)]
    pub(crate) fn number(self) -> u32 {
        load!(self.0, call_number as u64) as u32
    }

    /// The first argument.
    #[inline(always)]
    pub(crate) fn fd(self) -> u32 {
        load!(self.0, call_fd as u64) as u32
    }

    /// The address that the second argument points to. The program may write to it meanwhile; nobody does.
    #[inline(always)]
    pub(crate) fn address(self) -> Asked {
        let at = load!(self.0, call_address as u64);
        let [family, port, low, high] = user::<[u16; 4]>(at);
        let addr = if family == AF_INET6 {
            user(at + 8)
        } else {
            ipv4_mapped(u32::from(low) | u32::from(high) << 16)
        };
        Asked {
            family,
            port: u16::from_be(port),
            addr,
        }
    }
}

/// Whether the task is a program of 32 bits, whose calls have other numbers (`TS_COMPAT`).
#[inline(always)]
pub(crate) fn is_compat() -> bool {
    const TS_COMPAT: u32 = 2;
    read!(task(), task_status as u32) & TS_COMPAT != 0
}

/// The socket behind a file descriptor of the current task. Another thread may have closed it meanwhile, and got the
/// same number for something else: a file is taken for a socket only if that has it as its file.
#[inline(always)]
pub(crate) fn socket(fd: u32) -> Option<Held> {
    let table = read!(read!(task(), task_files as u64), files_table as u64);
    if fd >= read!(table, table_size as u32) {
        return None;
    }
    let file: u64 = probe(read!(table, table_files as u64) + 8 * u64::from(fd));
    let socket = read!(file, file_socket as u64);
    let sock = read!(socket, socket_sock as u64);
    let is_socket = file != 0 && sock != 0 && read!(socket, socket_file as u64) == file;
    is_socket.then_some(Held(sock))
}

#[inline(always)]
fn task() -> u64 {
    // SAFETY: the helper has no requirements.
    unsafe { bpf_get_current_task() }
}

/// Reads plain data of the current program; zero where it cannot be read.
#[inline(always)]
fn user<T: Copy>(address: u64) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address, and writes what is there or zeros.
    unsafe {
        bpf_probe_read_user(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
        value.assume_init()
    }
}
