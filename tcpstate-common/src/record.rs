//! The records that cross the ring buffer.
//!
//! Every record starts with one byte that says its kind. Nothing in a record is trusted by the reader:
//! states and kinds stay numbers here and are checked by user space.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The kind of a record: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A [`TransitionRecord`].
    Transition = 1,
    /// A [`TimeWaitRecord`] of the timer tracepoints: the timer of a minisocket was started, for the first time or again.
    TimeWaitArmed = 2,
    /// A [`TimeWaitRecord`] of the timer tracepoints: the timer was taken off, to be started again, to expire, or for good.
    TimeWaitCancelled = 3,
    /// A [`TimeWaitRecord`] of the timer tracepoints: the timer expires.
    TimeWaitExpired = 4,
    /// A [`TimeWaitRecord`] of the functions themselves: a minisocket was born.
    TimeWaitBorn = 5,
    /// A [`TimeWaitRecord`] of the functions themselves: its time was started again.
    TimeWaitRestarted = 6,
    /// A [`TimeWaitRecord`] of the functions themselves: it ends before its time.
    TimeWaitEnded = 7,
    /// A [`TimeWaitRecord`] of the functions themselves: its time is over.
    TimeWaitTimedOut = 8,
    /// A [`TimeWaitRecord`] of the functions themselves: it is freed, in a network namespace that is gone.
    TimeWaitFreed = 13,
    /// A [`TimeWaitRecord`] that says which full socket a minisocket came from, where cookies do not.
    TimeWaitPaired = 9,
    /// A [`TimeWaitRecord`] of a full socket that was refused a minisocket.
    TimeWaitRefused = 10,
    /// A [`SocketRecord`]: a full socket that was found.
    Socket = 11,
    /// A [`TimeWaitRecord`]: a minisocket that was found.
    TimeWaitFound = 12,
    /// A [`CallRecord`]: what a system call brought that no state tells.
    Call = 14,
}

impl RecordKind {
    /// By number, from 1.
    const ALL: [Self; 14] = [
        Self::Transition,
        Self::TimeWaitArmed,
        Self::TimeWaitCancelled,
        Self::TimeWaitExpired,
        Self::TimeWaitBorn,
        Self::TimeWaitRestarted,
        Self::TimeWaitEnded,
        Self::TimeWaitTimedOut,
        Self::TimeWaitPaired,
        Self::TimeWaitRefused,
        Self::Socket,
        Self::TimeWaitFound,
        Self::TimeWaitFreed,
        Self::Call,
    ];

    /// The kind with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1..=14 => Some(Self::ALL[number as usize - 1]),
            _ => None,
        }
    }
}

const _: () = {
    let mut at = 0;
    while at < RecordKind::ALL.len() {
        at += 1;
        assert!(RecordKind::ALL[at - 1] as usize == at);
    }
};

/// Bits of [`TransitionRecord::flags`].
pub mod flags {
    /// The current task held the socket in process context (`sk_lock.owned`): pid, tid and comm are
    /// those of a task that was in a system call on this very socket.
    pub const OWNED: u8 = 1 << 0;
    /// The last reference to the socket's file was gone: the task was in close(), not in shutdown().
    pub const FILE_RELEASED: u8 = 1 << 1;
    /// The socket has no `struct socket` any more (orphan) or not yet (not accepted).
    pub const NO_FILE: u8 = 1 << 2;
    /// [`NO_FILE`] and [`FILE_RELEASED`] could be read; if not set, both bits say nothing.
    pub const FILE_KNOWN: u8 = 1 << 3;
    /// The totals of a TCP socket were read: at -> ESTABLISHED and at -> CLOSE.
    pub const TOTALS: u8 = 1 << 4;
    /// At -> CLOSE: `tcp_time_wait` was at it, and no minisocket was born on this CPU just before.
    pub const TIME_WAIT: u8 = 1 << 5;
    /// With [`TIME_WAIT`]: the peer's FIN has come (`SOCK_DONE`).
    pub const FIN_RECEIVED: u8 = 1 << 6;
    /// The first program was not run for this transition, as far as the second can tell: if it was, this is the same once more.
    pub const SECOND_LOOK: u8 = 1 << 7;
}

/// Where every record has its time, by which those of several processors are put in order.
pub const TIME_OFFSET: usize = 8;

const _: () = assert!(
    offset_of!(TransitionRecord, time) == TIME_OFFSET
        && offset_of!(TimeWaitRecord, time) == TIME_OFFSET
        && offset_of!(SocketRecord, time) == TIME_OFFSET
        && offset_of!(CallRecord, time) == TIME_OFFSET
);

/// One state transition of one socket, as `inet_sock_set_state` saw it.
///
/// Zero means "not known" for every id; addresses of `AF_INET` stand in the last four bytes of an IPv4-mapped
/// IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct TransitionRecord {
    /// [`RecordKind::Transition`].
    pub kind: u8,
    /// The state the socket was in, as the kernel numbers it.
    pub old: u8,
    /// The state it is in now.
    pub new: u8,
    /// See [`flags`].
    pub flags: u8,
    /// Protocol number (`IPPROTO_TCP`, `IPPROTO_MPTCP`, `IPPROTO_SCTP`).
    pub protocol: u16,
    /// `AF_INET` or `AF_INET6`, as the socket was made.
    pub family: u16,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Socket cookie (Linux 5.12 and later), never reused. Zero at the first event of a passive socket, which has no cookie
    /// of its own yet: the next event at the same `socket` tells.
    pub cookie: u64,
    /// Address of the `struct sock`: an identity only while the socket lives.
    pub socket: u64,
    /// Cookie of the listener a passive socket was cloned from.
    pub listener_cookie: u64,
    /// Address of that listener's `struct sock`.
    pub listener_socket: u64,
    /// Cookie of the network namespace, never reused.
    pub netns_cookie: u64,
    /// Id of the socket's cgroup (the inode number of its directory).
    pub cgroup: u64,
    /// Local address, in network byte order.
    pub laddr: [u8; 16],
    /// Remote address, in network byte order.
    pub raddr: [u8; 16],
    /// Local port, in host byte order.
    pub lport: u16,
    /// Remote port, in host byte order.
    pub rport: u16,
    /// Inode number of the network namespace; reused by the kernel.
    pub netns: u32,
    /// `sk_err`: a positive errno, or 0; -1 if it is not known.
    pub error: i32,
    /// Owner of the socket (`sk_uid`); `u32::MAX` if not known.
    pub uid: u32,
    /// Process id (thread group), only with [`flags::OWNED`].
    pub pid: u32,
    /// Thread id, only with [`flags::OWNED`].
    pub tid: u32,
    /// Name of the process (its thread group leader), only with [`flags::OWNED`]; ends at the first zero byte.
    pub comm: [u8; 16],
    /// What a TCP socket has done so far (`bytes_acked`), only with [`flags::TOTALS`].
    pub bytes_acked: u64,
    /// `bytes_received`, only with [`flags::TOTALS`].
    pub bytes_received: u64,
    /// Segments sent again (`total_retrans`), only with [`flags::TOTALS`].
    pub retransmits: u32,
    /// Smoothed round-trip time in eighths of a microsecond (`srtt_us`), 0 if there was no sample yet, only with
    /// [`flags::TOTALS`].
    pub srtt_us: u32,
}

/// How many return addresses a [`TimeWaitRecord`] holds.
pub const CALLERS: usize = 8;

/// Something happened to the timer of a TIME_WAIT minisocket (`struct inet_timewait_sock`).
///
/// From the timer tracepoints: on one CPU nothing comes between the cancellation of a timer and its next start or expiry, if
/// there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct TimeWaitRecord {
    /// One of the `TimeWait...` kinds.
    pub kind: u8,
    /// `tw_substate`: FIN_WAIT2 or TIME_WAIT, as the kernel numbers states.
    pub substate: u8,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// The CPU this happened on.
    pub cpu: u32,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Socket cookie, that of the full socket.
    pub cookie: u64,
    /// Address of the minisocket; zero if it was refused.
    pub minisocket: u64,
    /// Address of the full socket, if it was told.
    pub socket: u64,
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// The clock of timers, now: ticks since some time before the kernel started.
    pub ticks: u64,
    /// When the timer is due, in ticks.
    pub due: u64,
    /// Local address, in network byte order.
    pub laddr: [u8; 16],
    /// Remote address, in network byte order.
    pub raddr: [u8; 16],
    /// Local port, in host byte order.
    pub lport: u16,
    /// Remote port, in host byte order.
    pub rport: u16,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Return addresses, innermost first, zero where there are no more: who took the timer off.
    pub callers: [u64; CALLERS],
}

/// A full socket that the kernel's list of TCP sockets has.
///
/// Zero means "not known" for every id, as in [`TransitionRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SocketRecord {
    /// [`RecordKind::Socket`].
    pub kind: u8,
    /// The state it is in, as the kernel numbers it.
    pub state: u8,
    /// Protocol number.
    pub protocol: u16,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// See [`flags`]: only [`flags::TOTALS`].
    pub flags: u8,
    /// Always zero.
    pub padding: u8,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Socket cookie.
    pub cookie: u64,
    /// Address of the `struct sock`.
    pub socket: u64,
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// Id of the socket's cgroup.
    pub cgroup: u64,
    /// Inode number of the socket's file, by which `/proc/PID/fd` knows it; 0 if it has none (orphan, not accepted).
    pub inode: u64,
    /// Local address, in network byte order.
    pub laddr: [u8; 16],
    /// Remote address, in network byte order.
    pub raddr: [u8; 16],
    /// Local port, in host byte order.
    pub lport: u16,
    /// Remote port, in host byte order.
    pub rport: u16,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Owner of the socket (`sk_uid`); `u32::MAX` if not known.
    pub uid: u32,
    /// Segments sent again, only with [`flags::TOTALS`], as all that follow.
    pub retransmits: u32,
    /// `bytes_acked`.
    pub bytes_acked: u64,
    /// `bytes_received`.
    pub bytes_received: u64,
    /// Smoothed round-trip time in eighths of a microsecond, 0 if there was no sample yet.
    pub srtt_us: u32,
    /// Always zero.
    pub padding2: u32,
}

/// What a [`CallRecord`] tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Call {
    /// bind() found the address in use (`EADDRINUSE`).
    Bind = 1,
    /// accept() or accept4() gave a socket to the task.
    Accept = 2,
}

/// A system call has ended, and the task in it has what no state transition tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct CallRecord {
    /// [`RecordKind::Call`].
    pub kind: u8,
    /// A [`Call`].
    pub call: u8,
    /// `AF_INET` or `AF_INET6`, of the address that was asked for; 0 if it could not be read, and with [`Call::Accept`].
    pub family: u16,
    /// Protocol number.
    pub protocol: u16,
    /// The port that was asked for, in host byte order; 0 for any.
    pub port: u16,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Socket cookie; zero if nobody has asked for it yet.
    pub cookie: u64,
    /// Address of the `struct sock`.
    pub socket: u64,
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// Id of the task's cgroup.
    pub cgroup: u64,
    /// The address that was asked for, in network byte order.
    pub addr: [u8; 16],
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Process id (thread group).
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Always zero.
    pub padding: u32,
    /// Name of the process.
    pub comm: [u8; 16],
}

/// Counters kept per CPU in the kernel, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Transitions that found the ring buffer full: lost.
    LostTransition = 0,
    /// Transitions of MPTCP sockets that were not asked for.
    OtherMptcp = 1,
    /// Transitions of SCTP sockets that were not asked for.
    OtherSctp = 2,
    /// Transitions of another protocol that were not asked for.
    OtherProtocol = 3,
    /// Records of minisockets that found the ring buffer full: lost.
    LostTimeWait = 4,
    /// Sockets that were there before, and found the ring buffer full.
    LostSocket = 5,
    /// Transitions that the first program was not run for, because it was at another one on that CPU: sent by the second.
    SecondLook = 6,
    /// Records of system calls that found the ring buffer full: lost.
    LostCall = 7,
}

impl Counter {
    /// How many counters there are.
    pub const COUNT: u32 = 8;
}

const _: () = {
    assert!(size_of::<TransitionRecord>() == 160);
    assert!(size_of::<TimeWaitRecord>() == 168);
    assert!(size_of::<SocketRecord>() == 128);
    assert!(size_of::<CallRecord>() == 96);
    assert!(align_of::<TransitionRecord>() == 8 && align_of::<TimeWaitRecord>() == 8);
    assert!(size_of::<TransitionRecord>().is_multiple_of(8));
};
