//! What user space tells the kernel side once, before loading. It is read-only data there, so the verifier sees
//! constants and removes the code of every filter that is not used.

use zerocopy::{Immutable, IntoBytes};

/// How many entries of one kind (ports, prefixes) are decided in the kernel.
pub const MAX_FILTERS: usize = 8;

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// An address prefix; IPv4 as IPv4-mapped IPv6. Words are in network byte order as loaded from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct Prefix {
    /// The address, already masked.
    pub address: [u64; 2],
    /// The mask.
    pub mask: [u64; 2],
}

/// Which events are worth a record. Zero switches a filter off. Ports and addresses that a socket does not have yet
/// pass: user space decides about them when they are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct KernelFilter {
    /// Only this network namespace, by cookie.
    pub netns_cookie: u64,
    /// Only sockets with an end in one of these prefixes.
    pub prefixes: [Prefix; MAX_FILTERS],
    /// Only sockets with a local port in one of these ranges.
    pub local_ports: [PortRange; MAX_FILTERS],
    /// Only sockets with a remote port in one of these ranges.
    pub remote_ports: [PortRange; MAX_FILTERS],
    /// How many of `prefixes` are used.
    pub prefix_count: u32,
    /// How many of `local_ports` are used.
    pub local_port_count: u32,
    /// How many of `remote_ports` are used.
    pub remote_port_count: u32,
    /// Only this network namespace, by inode number.
    pub netns: u32,
    /// Only this address family: 4 or 6, where IPv4-mapped IPv6 counts as 4.
    pub ip_version: u32,
    /// Only this protocol; [`KernelFilter::ANY_PROTOCOL`] for all.
    pub protocol: u32,
}

impl KernelFilter {
    /// Value of [`KernelFilter::protocol`] that lets every protocol pass.
    pub const ANY_PROTOCOL: u32 = u32::MAX;

    /// The filter that lets every event of one protocol pass.
    #[must_use]
    pub const fn all(protocol: u32) -> Self {
        const NO_PORT: PortRange = PortRange { first: 0, last: 0 };
        const NO_PREFIX: Prefix = Prefix {
            address: [0; 2],
            mask: [0; 2],
        };
        Self {
            netns_cookie: 0,
            prefixes: [NO_PREFIX; MAX_FILTERS],
            local_ports: [NO_PORT; MAX_FILTERS],
            remote_ports: [NO_PORT; MAX_FILTERS],
            prefix_count: 0,
            local_port_count: 0,
            remote_port_count: 0,
            netns: 0,
            ip_version: 0,
            protocol,
        }
    }
}

/// Everything the kernel side is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct Config {
    /// Which events are worth a record.
    pub filter: KernelFilter,
    /// Wake the reader when at least this many bytes wait in the ring buffer.
    pub wake_bytes: u64,
    /// Address of `tw_timer_handler`, by which timers of minisockets are known; 0 if they are not watched.
    pub timewait_handler: u64,
    /// Where `tcp_time_wait` begins, by which a connection that could get no minisocket is known from the call chain of its
    /// end; 0 if call chains are not looked at.
    pub time_wait_begin: u64,
    /// Where `tcp_time_wait` ends.
    pub time_wait_end: u64,
    /// How many ticks wide the bucket of the timer wheel is that a TIME_WAIT of 60 s falls into, as a power of two.
    pub bucket_shift: u32,
    /// 1 if `bpf_get_socket_cookie` may be called (Linux 5.12 and later), else 0.
    pub cookie_helper: u32,
    /// 1 if `bpf_get_current_task_btf` may be called (Linux 5.11 and later), else 0.
    pub task_helper: u32,
    /// 1 if minisockets are born in `inet_twsk_hashdance_schedule` (Linux 6.10 and later), else 0.
    pub hashdance: u32,
    /// Number of bind() in this machine's table of system calls.
    pub bind: u32,
    /// Numbers of accept() and accept4().
    pub accept: [u32; 2],
    /// Process id of user space, as the initial PID namespace counts; 0 if that is not known.
    pub own_process: u32,
}

impl Config {
    /// Everything off but the filter that lets TCP pass.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            filter: KernelFilter::all(6),
            wake_bytes: 0,
            timewait_handler: 0,
            time_wait_begin: 0,
            time_wait_end: 0,
            bucket_shift: 0,
            cookie_helper: 0,
            task_helper: 0,
            hashdance: 0,
            bind: 0,
            accept: [0; 2],
            own_process: 0,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}
