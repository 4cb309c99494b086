//! Every read of the kernel's memory.
//!
//! A pointer that the verifier knows by its BTF type may be loaded from directly, at an offset it knows to be
//! constant: that costs no helper call, and a page that is not there reads as zero. What lies outside the type the
//! verifier knows (`inet_sock` behind a `sock`) goes through `bpf_probe_read_kernel`.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task,
    generated::{self, bpf_get_current_task_btf, bpf_get_socket_cookie, bpf_skc_to_tcp_sock},
};
use tcpstate_common::{fields::ABSENT, record::flags};

use crate::{constants::constant, transition::IPPROTO_TCP};

const AF_INET6: u16 = 10;
/// `::ffff:0:0/96`, the second half of an IPv4-mapped address, before the IPv4 address itself.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// A `struct sock *` whose type the verifier knows.
#[derive(Clone, Copy)]
pub(crate) struct Sock(*const u8);

/// An IPv6 or IPv4-mapped address as two words in memory order.
pub(crate) type Address = [u64; 2];

/// What identifies the two ends of a connection, and what a filter needs.
pub(crate) struct Ends {
    pub(crate) family: u16,
    pub(crate) protocol: u16,
    pub(crate) lport: u16,
    pub(crate) rport: u16,
    pub(crate) laddr: Address,
    pub(crate) raddr: Address,
}

/// The listener that a passive socket was cloned from; zero if not known.
pub(crate) struct Listener {
    pub(crate) cookie: u64,
    pub(crate) socket: u64,
}

/// What a TCP socket has done so far.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) known: bool,
    pub(crate) bytes_acked: u64,
    pub(crate) bytes_received: u64,
    pub(crate) retransmits: u32,
    pub(crate) srtt_us: u32,
}

/// A task and the name of its process.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) comm: [u8; 16],
}

/// Loads through a pointer whose type the verifier knows, or zero if this kernel has no such field.
macro_rules! load {
    ($base:expr, $offset:ident as $type:ty) => {{
        let offset = constant!(OFFSETS.$offset);
        if offset == ABSENT {
            0
        } else {
            // SAFETY: user space found the field at this offset, in this size, in the kernel's BTF; the verifier
            // checks the access once more, and a fault reads as zero.
            unsafe { core::ptr::read_volatile($base.add(offset as usize).cast::<$type>()) }
        }
    }};
}

/// Reads through an address, or zero if this kernel has no such field.
macro_rules! read {
    ($base:expr, $offset:ident as $type:ty) => {{
        let offset = constant!(OFFSETS.$offset);
        if offset == ABSENT {
            <$type>::default()
        } else {
            probe::<$type>($base + u64::from(offset))
        }
    }};
}

// Behind the macros, which they use.
pub(crate) mod call;
mod minisocket;

pub(crate) use minisocket::Minisocket;

pub(crate) fn ipv4_mapped(address: u32) -> Address {
    [0, u64::from(MAPPED) | (u64::from(address) << 32)]
}

impl Sock {
    /// `pointer` must come from the arguments of a BTF program.
    pub(crate) const fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    pub(crate) fn pointer(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    pub(crate) fn ends(self, closed: bool) -> Ends {
        let family = load!(self.0, family as u16);
        let (laddr, raddr) = if family == AF_INET6 {
            (
                [
                    load!(self.0, laddr6 as u64),
                    self.second_half(constant!(OFFSETS.laddr6)),
                ],
                [
                    load!(self.0, raddr6 as u64),
                    self.second_half(constant!(OFFSETS.raddr6)),
                ],
            )
        } else {
            (
                ipv4_mapped(load!(self.0, laddr4 as u32)),
                ipv4_mapped(load!(self.0, raddr4 as u32)),
            )
        };
        Ends {
            family,
            protocol: load!(self.0, protocol as u16),
            lport: self.lport(closed),
            rport: u16::from_be(load!(self.0, rport as u16)),
            laddr,
            raddr,
        }
    }

    #[inline(always)]
    fn second_half(self, offset: u32) -> u64 {
        if offset == ABSENT {
            return 0;
        }
        self.word(offset + 8)
    }

    /// Eight bytes of a longer field.
    #[inline(always)]
    fn word(self, offset: u32) -> u64 {
        // SAFETY: as in `load!`; the field is long enough.
        unsafe { core::ptr::read_volatile(self.0.add(offset as usize).cast::<u64>()) }
    }

    /// `skc_num` is cleared before the transition to CLOSE (`inet_put_port`), `inet_sport` is not. In a socket that is used
    /// again it is still that of the life before, so it is looked at for a socket just closed only.
    #[inline(always)]
    fn lport(self, closed: bool) -> u16 {
        let port = self.number();
        let offset = constant!(OFFSETS.bound_lport);
        if port != 0 || !closed || offset == ABSENT {
            return port;
        }
        u16::from_be(match self.tcp() {
            Some(tcp) => load!(tcp.0, bound_lport as u16),
            None => probe(self.0 as u64 + u64::from(offset)),
        })
    }

    /// `skc_num`: the local port as long as the socket has it.
    #[inline(always)]
    pub(crate) fn number(self) -> u16 {
        load!(self.0, lport as u16)
    }

    /// `skc_state`, which a minisocket has too.
    #[inline(always)]
    pub(crate) fn state(self) -> u8 {
        load!(self.0, state as u8)
    }

    /// Network namespace: cookie and inode number.
    #[inline(always)]
    pub(crate) fn netns(self) -> (u64, u32) {
        let offset = constant!(OFFSETS.netns);
        if offset == ABSENT {
            return (0, 0);
        }
        let net = self.follow(offset);
        (
            load!(net, netns_cookie as u64),
            load!(net, netns_inode as u32),
        )
    }

    #[inline(always)]
    pub(crate) fn cookie(self) -> u64 {
        if constant!(CONFIG.cookie_helper) == 0 {
            return 0;
        }
        // SAFETY: the helper takes a socket whose type the verifier knows.
        unsafe { bpf_get_socket_cookie(self.0.cast_mut().cast()) }
    }

    /// -1 if it is not known.
    #[inline(always)]
    pub(crate) fn error(self) -> i32 {
        if constant!(OFFSETS.error) == ABSENT {
            return -1;
        }
        load!(self.0, error as i32)
    }

    #[inline(always)]
    pub(crate) fn uid(self) -> u32 {
        if constant!(OFFSETS.uid) == ABSENT {
            return u32::MAX;
        }
        load!(self.0, uid as u32)
    }

    /// The cgroup hangs on the socket, so it is right in any context.
    #[inline(always)]
    pub(crate) fn cgroup(self) -> u64 {
        let offset = constant!(OFFSETS.cgroup);
        let node = constant!(OFFSETS.cgroup_node);
        if offset == ABSENT || node == ABSENT {
            return 0;
        }
        let cgroup = Self(self.follow(offset));
        let node = cgroup.follow(node);
        load!(node, cgroup_id as u64)
    }

    /// The same socket with the type `struct tcp_sock` for the verifier, if it is one of TCP and the verifier may know.
    #[inline(always)]
    fn tcp(self) -> Option<Self> {
        if constant!(CONFIG.task_helper) == 0 {
            return None;
        }
        // SAFETY: the helper takes a pointer whose type the verifier knows, and gives null for what is no TCP socket.
        let tcp = unsafe { bpf_skc_to_tcp_sock(self.0.cast_mut().cast()) };
        (!tcp.is_null()).then(|| Self(tcp.cast::<u8>().cast_const()))
    }

    /// Only for sockets of TCP.
    #[inline(always)]
    pub(crate) fn totals(self) -> Totals {
        if constant!(OFFSETS.bytes_acked) == ABSENT {
            return Totals::default();
        }
        if let Some(tcp) = self.tcp() {
            return Totals {
                known: true,
                bytes_acked: load!(tcp.0, bytes_acked as u64),
                bytes_received: load!(tcp.0, bytes_received as u64),
                retransmits: load!(tcp.0, retransmits as u32),
                srtt_us: load!(tcp.0, srtt_us as u32),
            };
        }
        let address = self.0 as u64;
        Totals {
            known: true,
            bytes_acked: read!(address, bytes_acked as u64),
            bytes_received: read!(address, bytes_received as u64),
            retransmits: read!(address, retransmits as u32),
            srtt_us: read!(address, srtt_us as u32),
        }
    }

    /// Whether a socket of TCP has sent nothing in this life (`tcp_disconnect` sets the number to zero).
    #[inline(always)]
    pub(crate) fn sent_nothing(self) -> bool {
        let protocol = load!(self.0, protocol as u16);
        if protocol != IPPROTO_TCP || constant!(OFFSETS.segments_sent) == ABSENT {
            return false;
        }
        let sent = if let Some(tcp) = self.tcp() {
            load!(tcp.0, segments_sent as u32)
        } else {
            read!(self.0 as u64, segments_sent as u32)
        };
        sent == 0
    }

    /// Whether the peer's FIN has come (`tcp_fin`).
    #[inline(always)]
    pub(crate) fn fin_received(self) -> bool {
        const SOCK_DONE: u64 = 1 << 1;
        load!(self.0, sock_flags as u64) & SOCK_DONE != 0
    }

    /// Whether the current task holds the socket in process context (`lock_sock`).
    #[inline(always)]
    pub(crate) fn owned(self) -> bool {
        load!(self.0, owned as u32) != 0
    }

    /// Whether the last reference to the socket's file is gone: bits of [`flags`].
    ///
    /// `__fput` runs with a count of zero (`f_count`, up to 6.12) or a dead reference, which is negative
    /// (`f_ref`, `FILE_REF_DEAD`, from 6.13).
    #[inline(always)]
    pub(crate) fn file_flags(self) -> u8 {
        let socket = constant!(OFFSETS.socket);
        let socket_file = constant!(OFFSETS.socket_file);
        let known =
            constant!(OFFSETS.file_count) != ABSENT || constant!(OFFSETS.file_ref) != ABSENT;
        if socket == ABSENT || socket_file == ABSENT || !known {
            return 0;
        }
        let socket = Self(self.follow(socket));
        if socket.0.is_null() {
            return flags::FILE_KNOWN | flags::NO_FILE;
        }
        let file = socket.follow(socket_file);
        if file.is_null() {
            return flags::FILE_KNOWN | flags::NO_FILE;
        }
        let released = if constant!(OFFSETS.file_ref) == ABSENT {
            load!(file, file_count as u64) == 0
        } else {
            load!(file, file_ref as u64).cast_signed() < 0
        };
        if released {
            flags::FILE_KNOWN | flags::FILE_RELEASED
        } else {
            flags::FILE_KNOWN
        }
    }

    /// Inode number of the socket's file; 0 if it has none.
    #[inline(always)]
    pub(crate) fn inode(self) -> u64 {
        let steps = [
            constant!(OFFSETS.socket),
            constant!(OFFSETS.socket_file),
            constant!(OFFSETS.file_inode),
        ];
        let mut place = self;
        for offset in steps {
            if offset == ABSENT || place.0.is_null() {
                return 0;
            }
            place = Self(place.follow(offset));
        }
        if place.0.is_null() {
            return 0;
        }
        load!(place.0, inode_number as u64)
    }

    /// The listener of a passive socket, at its first event (LISTEN -> SYN_RECV) only.
    ///
    /// There the socket is still a byte copy of its listener (`sk_clone`). Up to Linux 6.12 it has its listener's cookie,
    /// later none yet. But its bind node still points to where the listener stands in the list of sockets bound to the
    /// port: what the copied `pprev` points to is the listener's own node. The list may have changed since; the node found is
    /// the listener's only if both of its pointers equal the copied ones, since a node that took its place has the listener
    /// as `next`.
    #[inline(always)]
    pub(crate) fn listener(self) -> Listener {
        let node = constant!(OFFSETS.bind_node);
        let cookie = constant!(OFFSETS.cookie);
        if node == ABSENT || cookie == ABSENT {
            return Listener {
                cookie: 0,
                socket: 0,
            };
        }
        let copied: [u64; 2] = probe(self.0 as u64 + u64::from(node));
        let found: u64 = probe(copied[1]);
        let original: [u64; 2] = probe(found);
        let copied_cookie = load!(self.0, cookie as u64);
        if found == 0 || original[0] != copied[0] || original[1] != copied[1] {
            return Listener {
                cookie: copied_cookie,
                socket: 0,
            };
        }
        let socket = found - u64::from(node);
        Listener {
            cookie: probe(socket + u64::from(cookie)),
            socket,
        }
    }

    /// Loads a pointer member; the verifier knows the type of what it points to.
    #[inline(always)]
    fn follow(self, offset: u32) -> *const u8 {
        // SAFETY: as in `load!`.
        unsafe { core::ptr::read_volatile(self.0.add(offset as usize).cast::<*const u8>()) }
    }
}

/// A `struct timer_list *` whose type the verifier knows.
#[derive(Clone, Copy)]
pub(crate) struct Timer(*const u8);

impl Timer {
    /// `pointer` must come from the arguments of a BTF program.
    pub(crate) const fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    /// The minisocket that this is the timer of, if it is one's.
    #[inline(always)]
    pub(crate) fn minisocket(self) -> Option<Minisocket> {
        let handler = constant!(CONFIG.timewait_handler);
        let within = constant!(OFFSETS.tw_timer);
        if handler == 0 || within == ABSENT || load!(self.0, timer_function as u64) != handler {
            return None;
        }
        Some(Minisocket::with_timer(self.0 as u64))
    }

    /// When it is due, in ticks.
    #[inline(always)]
    pub(crate) fn due(self) -> u64 {
        load!(self.0, timer_expires as u64)
    }
}

/// The cookie of what begins like a `struct sock` at this address: a minisocket has that of its full socket
/// (`inet_twsk_alloc`).
#[inline(always)]
fn cookie_at(address: u64) -> u64 {
    if constant!(CONFIG.cookie_helper) == 0 {
        return 0;
    }
    read!(address, cookie as u64)
}

/// Its network namespace: cookie and inode number.
#[inline(always)]
fn netns_at(address: u64) -> (u64, u32) {
    let net = read!(address, netns as u64);
    if net == 0 {
        return (0, 0);
    }
    (
        read!(net, netns_cookie as u64),
        read!(net, netns_inode as u32),
    )
}

/// Reads plain data of the kernel's at any address; zero where it cannot be read.
///
/// What the helper returns is not looked at: that would be two ways through all that comes behind. Verifiers before Linux 6.2 follow
/// each way by itself if a program calls any function (`mark_reg_unknown`: then every number matters to them), so a dozen of
/// reads would make 4,096 of them.
#[inline(always)]
pub(crate) fn probe<T: Copy>(address: u64) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address, and writes what is there or zeros.
    unsafe {
        generated::bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
        value.assume_init()
    }
}

/// Whether what returns to this address was called as this function. On x86-64 that is an instruction of five bytes, its target
/// relative to the next one; the kernel may lead it through the padding before the function. On arm64 (`bl`) it has four, its target
/// relative to itself in units of four. What is no such instruction on one of them does not lead to this very function on the other.
///
/// Without branches: the verifier of Linux 5.10 follows every way through them, eight times in a row.
#[inline(always)]
pub(crate) fn returns_from(address: u64, function: u64) -> bool {
    const CALL: u64 = 0xe8;
    const PADDING: u64 = 16;
    const BRANCH_WITH_LINK: u32 = 0b10_0101;
    let mut instruction = 0_u64;
    // SAFETY: the helper checks the address, and writes the five bytes or zeros.
    unsafe {
        generated::bpf_probe_read_kernel(
            (&raw mut instruction).cast(),
            5,
            address.wrapping_sub(5) as *const _,
        )
    };
    let last_four = (instruction >> 8) as u32;
    let target = address.wrapping_add_signed(i64::from(last_four.cast_signed()));
    let before = function.wrapping_sub(target);
    let no_call = ((instruction & 0xff) ^ CALL) | (before & !PADDING);
    let units_of_four = (last_four << 6).cast_signed() >> 4;
    let target = address
        .wrapping_sub(4)
        .wrapping_add_signed(i64::from(units_of_four));
    let no_branch = u64::from((last_four >> 26) ^ BRANCH_WITH_LINK) | (function ^ target);
    // The highest bit says that a number is not zero.
    let is_set = |number: u64| number | number.wrapping_neg();
    is_set(no_call) & is_set(no_branch) < 1 << 63
}

/// The current task, unless it is a kernel thread: one that closes a socket for others is nobody's process. Nor are we one: we
/// have no TCP sockets, but whoever reads `/proc/PID/fd` holds each file for a moment, and is the last to let it go if its owner closes it
/// just then. The process is named by the thread group leader, as `ps` does: threads have names of their own.
#[inline(always)]
pub(crate) fn current_process() -> Option<Process> {
    const PF_KTHREAD: u32 = 0x0020_0000;
    if task_flags() & PF_KTHREAD != 0 {
        return None;
    }
    let ids = bpf_get_current_pid_tgid();
    let pid = (ids >> 32) as u32;
    if pid == constant!(CONFIG.own_process) {
        return None;
    }
    Some(Process {
        pid,
        tid: ids as u32,
        comm: process_name(),
    })
}

/// `struct task_struct *` of the current task, if the verifier may know its type.
#[inline(always)]
fn task() -> Option<Sock> {
    if constant!(CONFIG.task_helper) == 0 {
        return None;
    }
    // SAFETY: the helper returns the current task, whose type the verifier knows.
    Some(Sock(
        unsafe { bpf_get_current_task_btf() }
            .cast::<u8>()
            .cast_const(),
    ))
}

#[inline(always)]
fn task_flags() -> u32 {
    if let Some(task) = task() {
        return load!(task.0, task_flags as u32);
    }
    // SAFETY: the helper has no requirements.
    read!(unsafe { bpf_get_current_task() }, task_flags as u32)
}

#[inline(always)]
fn process_name() -> [u8; 16] {
    let leader = constant!(OFFSETS.task_leader);
    let comm = constant!(OFFSETS.task_comm);
    if leader == ABSENT || comm == ABSENT {
        return bpf_get_current_comm().unwrap_or_default();
    }
    if let Some(task) = task() {
        let name = Sock(task.follow(leader));
        let halves = [name.word(comm), name.word(comm + 8)];
        // SAFETY: both are 16 bytes of plain data.
        return unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>(halves) };
    }
    // SAFETY: the helper has no requirements.
    let leader: u64 = probe(unsafe { bpf_get_current_task() } + u64::from(leader));
    probe(leader + u64::from(comm))
}
