//! What the kernel side sent, decoded and checked: nothing in a record is trusted as it comes.

mod about;
mod call;
mod socket;
mod timewait;

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytes::Buf;
use tcpstate_common::{
    record::{CallRecord, RecordKind, SocketRecord, TimeWaitRecord, TransitionRecord, flags},
    state::TcpState,
};
use zerocopy::{FromBytes, Immutable, KnownLayout};

pub use about::About;
pub use call::{CallEvent, CallStep};
pub use socket::SocketEvent;
pub use timewait::{TimeWaitEvent, TimeWaitStep};

/// Something that happened in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A full socket changed its state.
    Transition(TransitionEvent),
    /// Something happened to a TIME_WAIT minisocket.
    TimeWait(TimeWaitEvent),
    /// A full socket that was there before.
    Socket(SocketEvent),
    /// A system call has ended.
    Call(CallEvent),
}

/// Why a record could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No bytes at all.
    #[error("empty record")]
    Empty,
    /// The first byte names no kind of record.
    #[error("unknown kind of record: {0}")]
    UnknownKind(u8),
    /// Fewer bytes than this kind of record has.
    #[error("record of {actual} bytes, expected {expected}")]
    Truncated {
        /// Bytes a record of this kind has.
        expected: usize,
        /// Bytes there were.
        actual: usize,
    },
    /// A number that is no TCP state.
    #[error("no TCP state has the number {0}")]
    UnknownState(u8),
    /// A number that is none of the system calls we are told of.
    #[error("unknown system call: {0}")]
    UnknownCall(u8),
    /// A number that is neither `AF_INET` nor `AF_INET6`.
    #[error("unknown address family {0}")]
    UnknownFamily(u16),
}

/// One end of a connection. Port 0 means that the socket has no port (yet).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address; IPv4-mapped IPv6 is the IPv4 address it stands for.
    pub addr: IpAddr,
    /// The port, or 0.
    pub port: u16,
}

impl Endpoint {
    /// From a record's 16 bytes. The same as `to_canonical`, which the compiler makes a hundred instructions of.
    fn new(addr: [u8; 16], port: u16) -> Self {
        const MAPPED: u128 = 0xffff;
        let bits = u128::from_be_bytes(addr);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the lower half of an IPv4-mapped address is the IPv4 address"
        )]
        let addr = if bits >> 32 == MAPPED {
            Ipv4Addr::from_bits(bits as u32).into()
        } else {
            Ipv6Addr::from_bits(bits).into()
        };
        Self { addr, port }
    }
}

/// The transport protocol of a socket on the tracepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP; also the subflows of an MPTCP connection.
    Tcp,
    /// Multipath TCP: the socket the application holds.
    Mptcp,
    /// SCTP, with TCP's states where they fit.
    Sctp,
    /// Another one, by number.
    Other(u16),
}

impl Protocol {
    /// The protocol with this number (`IPPROTO_...`).
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            6 => Self::Tcp,
            132 => Self::Sctp,
            262 => Self::Mptcp,
            other => Self::Other(other),
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Tcp => 6,
            Self::Sctp => 132,
            Self::Mptcp => 262,
            Self::Other(number) => number,
        }
    }

    /// Its name in output: `tcp`, `mptcp`, `sctp`, or the number.
    #[must_use]
    pub fn label(self) -> Cow<'static, str> {
        match self {
            Self::Tcp => "tcp".into(),
            Self::Mptcp => "mptcp".into(),
            Self::Sctp => "sctp".into(),
            Self::Other(number) => number.to_string().into(),
        }
    }
}

/// What the current task did when it held the socket: how we know whose event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// It called connect().
    Connect,
    /// It called listen().
    Listen,
    /// It called accept().
    Accept,
    /// It called close(), or ended.
    Close,
    /// It called shutdown().
    Shutdown,
    /// It was in another system call on this socket, or in one that this kernel does not let us name.
    Syscall,
    /// It is the owner of the listener that this socket came from.
    Listener,
    /// It held the socket when we began to look (`/proc/PID/fd`).
    Scan,
}

impl Via {
    /// The word for it in every output.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Listen => "listen",
            Self::Accept => "accept",
            Self::Close => "close",
            Self::Shutdown => "shutdown",
            Self::Syscall => "syscall",
            Self::Listener => "listener",
            Self::Scan => "scan",
        }
    }
}

/// A process name as the kernel keeps it: up to 15 bytes of anything but zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Comm([u8; 16]);

impl Comm {
    /// A name from the kernel's bytes; it ends at the first zero. What old kernels leave behind that is no part of it.
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Self {
        const LOW: u128 = u128::from_ne_bytes([0x01; 16]);
        const HIGH: u128 = u128::from_ne_bytes([0x80; 16]);
        // All bytes at once: the lowest bit that is left belongs to the first byte that is zero.
        let name = u128::from_le_bytes(bytes);
        let zeros = name.wrapping_sub(LOW) & !name & HIGH;
        let end = zeros.trailing_zeros() & !7;
        let kept = 1_u128.checked_shl(end).map_or(u128::MAX, |end| end - 1);
        Self((name & kept).to_le_bytes())
    }

    /// The name as the kernel would keep it: its first 15 bytes, up to one that is zero.
    #[must_use]
    pub fn truncated(name: &str) -> Self {
        let mut bytes = [0; 16];
        for (slot, byte) in bytes.iter_mut().take(15).zip(name.bytes()) {
            *slot = byte;
        }
        Self::new(bytes)
    }

    /// The bytes before the first zero.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// As text, where bytes that are no UTF-8 become U+FFFD. Control characters are still in it: escape for output.
    #[must_use]
    pub fn to_str(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.as_bytes())
    }
}

impl std::fmt::Debug for Comm {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?}", self.to_str())
    }
}

/// A process the kernel named, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id (thread group) as the initial PID namespace counts.
    pub pid: u32,
    /// Its name.
    pub comm: Comm,
    /// How we know.
    pub via: Via,
}

/// A task that held the socket while its state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Name of the process.
    pub comm: Comm,
    /// The call it was in.
    pub via: Via,
}

/// What a TCP connection has done so far, as the kernel counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Bytes that the peer has acknowledged, SYN and FIN included (`bytes_acked`).
    pub bytes_acked: u64,
    /// Bytes that came from the peer in order, SYN and FIN included (`bytes_received`).
    pub bytes_received: u64,
    /// Segments sent again.
    pub retransmits: u32,
    /// Smoothed round-trip time in microseconds; `None` without a sample.
    pub rtt_us: Option<u32>,
}

impl Totals {
    /// `srtt_us` is in eighths of a microsecond, 0 without a sample.
    const fn new(bytes_acked: u64, bytes_received: u64, retransmits: u32, srtt_us: u32) -> Self {
        Self {
            bytes_acked,
            bytes_received,
            retransmits,
            rtt_us: match srtt_us >> 3 {
                0 => None,
                rtt => Some(rtt),
            },
        }
    }
}

/// A state transition as the kernel saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransitionEvent {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Socket cookie; `None` on kernels that do not tell (before 5.12) and with the classic tracepoint.
    pub cookie: Option<u64>,
    /// Address of the kernel's socket, an identity while it lives.
    pub socket: u64,
    /// Cookie of the listener a passive socket was made from, if the kernel told.
    pub listener_cookie: Option<u64>,
    /// Address of that listener.
    pub listener_socket: Option<u64>,
    /// Network namespace: cookie.
    pub netns_cookie: Option<u64>,
    /// Network namespace: inode number.
    pub netns: Option<u32>,
    /// Id of the socket's cgroup.
    pub cgroup: Option<u64>,
    /// User id of the socket.
    pub uid: Option<u32>,
    /// Protocol.
    pub protocol: Protocol,
    /// This host's end.
    pub local: Endpoint,
    /// The peer's end; unspecified if the socket has none (yet).
    pub remote: Endpoint,
    /// State before.
    pub old: TcpState,
    /// State after.
    pub new: TcpState,
    /// `sk_err`, a positive errno; `None` if there was no error, or if it is not known.
    pub error: Option<i32>,
    /// Whether it is known if there was an error: not with the classic tracepoint.
    pub error_known: bool,
    /// At -> CLOSE: it should have become a minisocket in this state (FIN_WAIT2 or TIME_WAIT), as far as this event tells.
    pub refused: Option<TcpState>,
    /// What the connection has done so far, at -> ESTABLISHED and at -> CLOSE.
    pub totals: Option<Totals>,
    /// The kernel may not have run our first program for it: if it did, this is the same event once more.
    pub second_look: bool,
    /// The task in whose context this happened; `None` if a packet or a timer caused it.
    pub context: Option<Context>,
}

impl Event {
    /// Decodes one record of the ring buffer.
    ///
    /// # Errors
    /// If the bytes are no record of a kind, size and content we know.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let timewait = |step| {
            with(bytes, |record: &TimeWaitRecord| {
                TimeWaitEvent::from_record(record, step).map(Self::TimeWait)
            })
        };
        let kind = bytes.first().copied().ok_or(DecodeError::Empty)?;
        match RecordKind::from_number(kind).ok_or(DecodeError::UnknownKind(kind))? {
            RecordKind::Transition => with(bytes, |record: &TransitionRecord| {
                check_family(record.family)?;
                let (old, new) = (state(record.old)?, state(record.new)?);
                Ok(Self::Transition(TransitionEvent::new(record, old, new)))
            }),
            RecordKind::TimeWaitArmed => timewait(TimeWaitStep::Armed),
            RecordKind::TimeWaitCancelled => timewait(TimeWaitStep::Cancelled),
            RecordKind::TimeWaitExpired => timewait(TimeWaitStep::Expired),
            RecordKind::TimeWaitBorn => timewait(TimeWaitStep::Born),
            RecordKind::TimeWaitRestarted => timewait(TimeWaitStep::Restarted),
            RecordKind::TimeWaitEnded => timewait(TimeWaitStep::Ended),
            RecordKind::TimeWaitTimedOut => timewait(TimeWaitStep::TimedOut),
            RecordKind::TimeWaitFreed => timewait(TimeWaitStep::Freed),
            RecordKind::TimeWaitPaired => timewait(TimeWaitStep::Paired),
            RecordKind::TimeWaitRefused => timewait(TimeWaitStep::Refused),
            RecordKind::TimeWaitFound => timewait(TimeWaitStep::Found),
            RecordKind::Socket => {
                let record: SocketRecord = read(bytes)?;
                SocketEvent::from_record(&record).map(Self::Socket)
            }
            RecordKind::Call => {
                let record: CallRecord = read(bytes)?;
                CallEvent::from_record(&record).map(Self::Call)
            }
        }
    }

    /// When it happened, in nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub const fn time(&self) -> u64 {
        match self {
            Self::Transition(event) => event.time,
            Self::TimeWait(event) => event.time,
            Self::Socket(event) => event.time,
            Self::Call(event) => event.time,
        }
    }
}

/// Reads a record where it stands or, if that is no place for numbers, somewhere else.
#[expect(
    clippy::inline_always,
    reason = "what is made of it is made where it is needed"
)]
#[inline(always)]
fn with<T: FromBytes + KnownLayout + Immutable, R>(
    bytes: &[u8],
    then: impl Fn(&T) -> Result<R, DecodeError>,
) -> Result<R, DecodeError> {
    match T::ref_from_prefix(bytes) {
        Ok((record, _)) => then(record),
        Err(_) => then(&read(bytes)?),
    }
}

fn read<T: FromBytes>(mut bytes: &[u8]) -> Result<T, DecodeError> {
    let truncated = DecodeError::Truncated {
        expected: size_of::<T>(),
        actual: bytes.remaining(),
    };
    let (record, _) = T::read_from_prefix(bytes.chunk()).map_err(|_| truncated)?;
    bytes.advance(size_of::<T>());
    Ok(record)
}

impl TransitionEvent {
    #[expect(
        clippy::inline_always,
        reason = "made where it is needed: to copy it there takes longer than to make it"
    )]
    #[inline(always)]
    fn new(record: &TransitionRecord, old: TcpState, new: TcpState) -> Self {
        let protocol = Protocol::from_number(record.protocol);
        // What a socket was connected to before it listens stays in it.
        let listener =
            new == TcpState::Listen || (old == TcpState::Listen && new == TcpState::Close);
        let (raddr, rport) = if listener {
            ([0; 16], 0)
        } else {
            (record.raddr, record.rport)
        };
        let error = (record.error > 0).then_some(record.error);
        // Who holds a socket without a file is not known: its last user, or anybody who looks at it.
        let orphan = record.flags & (flags::NO_FILE | flags::FILE_RELEASED) == flags::NO_FILE;
        let hidden = orphan && (!is_of_a_call(old, new, error) || is_destroyed(new, error));
        Self {
            time: record.time,
            // A child of MPTCP keeps its listener's cookie (`mptcp_sk_clone`).
            cookie: known(record.cookie).filter(|_| protocol == Protocol::Tcp),
            socket: record.socket,
            listener_cookie: known(record.listener_cookie),
            listener_socket: known(record.listener_socket),
            netns_cookie: known(record.netns_cookie),
            netns: (record.netns != 0).then_some(record.netns),
            cgroup: known(record.cgroup),
            uid: (record.uid != u32::MAX).then_some(record.uid),
            protocol,
            local: Endpoint::new(record.laddr, record.lport),
            remote: Endpoint::new(raddr, rport),
            old,
            new,
            error,
            error_known: record.error >= 0,
            refused: (record.flags & flags::TIME_WAIT != 0).then_some(
                if record.flags & flags::FIN_RECEIVED == 0 {
                    TcpState::FinWait2
                } else {
                    TcpState::TimeWait
                },
            ),
            totals: (record.flags & flags::TOTALS != 0).then(|| {
                Totals::new(
                    record.bytes_acked,
                    record.bytes_received,
                    record.retransmits,
                    record.srtt_us,
                )
            }),
            second_look: record.flags & flags::SECOND_LOOK != 0,
            context: (record.flags & flags::OWNED != 0 && !hidden).then(|| Context {
                pid: record.pid,
                tid: record.tid,
                comm: Comm::new(record.comm),
                via: via(record.flags, old, new),
            }),
        }
    }

    /// Whether this is a listening socket's own transition, not that of a child cloned from it.
    #[must_use]
    pub fn is_listener(&self) -> bool {
        self.new == TcpState::Listen || self.ends_listener()
    }

    /// Whether a listening socket stops to listen.
    #[must_use]
    pub fn ends_listener(&self) -> bool {
        self.old == TcpState::Listen && self.new == TcpState::Close
    }

    /// Whether this is the first event of a passive socket: a copy of its listener, with no remote end yet.
    #[must_use]
    pub fn is_child(&self) -> bool {
        self.old == TcpState::Listen && self.new == TcpState::SynRecv
    }

    /// Whether an administrator destroyed the socket (`ss -K`): the task is not its owner then (`tcp_abort`).
    #[must_use]
    pub fn is_destroyed(&self) -> bool {
        is_destroyed(self.new, self.error)
    }

    /// Whether a system call brings this about. What a packet or a timer does while a task holds the socket is done when the
    /// task lets go of it (`__release_sock`, `tcp_release_cb`), and that may be anybody who looks at it: `ss -i`, or our own
    /// list of sockets (`bpf_iter_tcp`).
    #[must_use]
    pub fn is_of_a_call(&self) -> bool {
        is_of_a_call(self.old, self.new, self.error)
    }

    /// Whether a socket begins a new life with this transition. A child is born in the state of its listener (that of
    /// MPTCP goes on to ESTABLISHED at once).
    #[must_use]
    pub fn is_birth(&self) -> bool {
        match self.old {
            TcpState::Listen => !matches!(self.new, TcpState::Listen | TcpState::Close),
            TcpState::Close => matches!(self.new, TcpState::SynSent | TcpState::Listen),
            _ => false,
        }
    }
}

/// See [`TransitionEvent::is_destroyed`].
fn is_destroyed(new: TcpState, error: Option<i32>) -> bool {
    new == TcpState::Close && error == Some(libc::ECONNABORTED)
}

/// See [`TransitionEvent::is_of_a_call`].
fn is_of_a_call(old: TcpState, new: TcpState, error: Option<i32>) -> bool {
    use TcpState::{Close, Closing, FinWait1, FinWait2, LastAck, Listen, SynSent, TimeWait};
    match (old, new) {
        (_, SynSent | Listen | LastAck) => true,
        (old, FinWait1) => old != FinWait1,
        // The call was the one that closed it; what follows are segments and timers.
        (FinWait1 | FinWait2 | Closing | LastAck | TimeWait, _) => false,
        // What was not the will of a task has an error.
        (_, Close) => error.is_none() || is_destroyed(new, error),
        _ => false,
    }
}

fn check_family(family: u16) -> Result<(), DecodeError> {
    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;
    if matches!(family, AF_INET | AF_INET6) {
        Ok(())
    } else {
        Err(DecodeError::UnknownFamily(family))
    }
}

fn known(number: u64) -> Option<u64> {
    (number != 0).then_some(number)
}

fn state(number: u8) -> Result<TcpState, DecodeError> {
    TcpState::from_number(number).ok_or(DecodeError::UnknownState(number))
}

/// The call the task was in, from the transition and from whether the socket's file was being released.
fn via(record_flags: u8, old: TcpState, new: TcpState) -> Via {
    use TcpState::{Close, FinWait1, LastAck, Listen, SynSent};
    match (old, new) {
        (Close, SynSent) => Via::Connect,
        (Close, Listen) => Via::Listen,
        _ if record_flags & (flags::FILE_RELEASED | flags::NO_FILE) != 0 => Via::Close,
        _ if record_flags & flags::FILE_KNOWN == 0 => Via::Syscall,
        (old, FinWait1 | LastAck) if old != new => Via::Shutdown,
        _ => Via::Syscall,
    }
}
