//! A TCP peer of our own making behind a TUN device in the test's own network namespace: it sends what a test wants it to
//! send, and sees what the kernel answers.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::{
        fd::{AsFd as _, AsRawFd as _, RawFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::Path,
    time::{Duration, Instant},
};

use etherparse::{
    PacketBuilder, SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice,
    icmpv4::DestUnreachableHeader,
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
    },
};

/// The kernel's address on the wire.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The peer's.
pub const THERE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// How long to wait for a segment: much longer than any answer takes, so that only one that never comes fails.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where the peer's sequence numbers begin.
const ISN: u32 = 1_000_000;

/// A TCP segment, of either side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub from: u16,
    pub to: u16,
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    /// TSval and TSecr.
    pub timestamps: Option<(u32, u32)>,
    pub data: Vec<u8>,
}

impl Segment {
    /// The sequence number after it.
    pub fn end(&self) -> u32 {
        let flags = [SYN, FIN].map(|flag| u32::from(self.flags & flag != 0));
        let data = u32::try_from(self.data.len()).expect("a small segment");
        self.seq.wrapping_add(data + flags[0] + flags[1])
    }

    fn parse(packet: &[u8]) -> Option<Self> {
        // Whatever else comes here: IPv6 looks for neighbours.
        let sliced = SlicedPacket::from_ip(packet).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            return None;
        };
        let timestamps = tcp.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::Timestamp(value, echo)) => Some((value, echo)),
            _ => None,
        });
        Some(Self {
            from: tcp.source_port(),
            to: tcp.destination_port(),
            flags: tcp.header_slice()[13],
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            timestamps,
            data: tcp.payload().to_vec(),
        })
    }

    /// The packet that brings it to the kernel.
    fn packet(&self) -> Vec<u8> {
        let mut header = TcpHeader::new(self.from, self.to, self.seq, u16::MAX);
        header.acknowledgment_number = self.ack;
        header.fin = self.flags & FIN != 0;
        header.syn = self.flags & SYN != 0;
        header.rst = self.flags & RST != 0;
        header.psh = self.flags & PSH != 0;
        header.ack = self.flags & ACK != 0;
        if let Some((value, echo)) = self.timestamps {
            header
                .set_options(&[TcpOptionElement::Timestamp(value, echo)])
                .expect("there is room");
        }
        let mut packet = Vec::new();
        PacketBuilder::ipv4(THERE.octets(), HERE.octets(), 64)
            .tcp_header(header)
            .write(&mut packet, &self.data)
            .expect("a packet");
        packet
    }
}

/// The TUN device: what the kernel sends to `THERE` and what is sent to `HERE`.
pub struct Wire {
    tun: File,
    /// Segments that came while those of another connection were waited for.
    waiting: RefCell<VecDeque<Segment>>,
}

impl Wire {
    /// Lays a wire in the network namespace of the calling thread.
    pub fn new() -> Self {
        let tun = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .expect("a TUN device");
        let mut request = Interface::new();
        request.0.ifr_ifru.ifru_flags = flags(libc::IFF_TUN | libc::IFF_NO_PI);
        request.ask(tun.as_raw_fd(), libc::TUNSETIFF);
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
        for (what, address) in [
            (libc::SIOCSIFADDR, HERE),
            (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0)),
        ] {
            request.0.ifr_ifru.ifru_addr = raw(address);
            request.ask(socket.as_raw_fd(), what);
        }
        request.0.ifr_ifru.ifru_flags = flags(libc::IFF_UP | libc::IFF_RUNNING);
        request.ask(socket.as_raw_fd(), libc::SIOCSIFFLAGS);
        Self {
            tun,
            waiting: RefCell::default(),
        }
    }

    /// Whether this kernel has no TUN devices; says so then.
    pub fn is_missing(test: &str) -> bool {
        let missing = !Path::new("/dev/net/tun").exists();
        if missing {
            eprintln!("SKIPPED {test}: this kernel has no /dev/net/tun (CONFIG_TUN)");
        }
        missing
    }

    /// One packet as it is, until then.
    fn read(&self, until: Instant) -> Option<Vec<u8>> {
        loop {
            let mut packet = vec![0; 2048];
            match (&self.tun).read(&mut packet) {
                Ok(length) => {
                    packet.truncate(length);
                    return Some(packet);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("the TUN device cannot be read: {error}"),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let timeout = PollTimeout::try_from(left.as_millis() + 1).expect("a short time");
            poll(
                &mut [PollFd::new(self.tun.as_fd(), PollFlags::POLLIN)],
                timeout,
            )
            .expect("waiting for a packet");
        }
    }

    /// The next segment to this port of the peer, until then.
    fn segment(&self, to: u16, until: Instant) -> Option<Segment> {
        let mut waiting = self.waiting.borrow_mut();
        if let Some(index) = waiting.iter().position(|segment| segment.to == to) {
            return waiting.remove(index);
        }
        loop {
            let Some(segment) = Segment::parse(&self.read(until)?) else {
                continue;
            };
            if segment.to == to {
                return Some(segment);
            }
            waiting.push_back(segment);
        }
    }

    fn write(&self, packet: &[u8]) {
        let written = (&self.tun).write(packet).expect("a packet can be sent");
        assert_eq!(written, packet.len());
    }

    /// Joins the kernel with itself: what it sends to `THERE` comes from there. All that waits is sent back at once, so that
    /// segments of both ends cross; goes on until `done`, and fails when nothing has come for long.
    pub fn mirror(&self, mut done: impl FnMut() -> bool) {
        let mut until = Instant::now() + PATIENCE;
        while !done() {
            let mut packets = Vec::new();
            let mut wait = Instant::now() + Duration::from_millis(10);
            while let Some(packet) = self.read(wait) {
                packets.push(packet);
                wait = Instant::now();
                until = wait + PATIENCE;
            }
            assert!(
                Instant::now() < until,
                "the kernel sends nothing more, and yet it is not done"
            );
            for mut packet in packets {
                // Addresses change places, and the checksums stay right; other than IPv4 goes nowhere.
                if packet[0] >> 4 == 4 {
                    let (from, to) = packet[12..20].split_at_mut(4);
                    from.swap_with_slice(to);
                    self.write(&packet);
                }
            }
        }
    }

    /// Tells the kernel that its segment could not be delivered.
    pub fn unreachable(&self, segment: &Segment, why: DestUnreachableHeader) {
        // What an ICMP message quotes of the packet it answers.
        let mut quoted = segment.packet();
        let (from, to) = quoted[12..20].split_at_mut(4);
        from.swap_with_slice(to);
        let mut packet = Vec::new();
        PacketBuilder::ipv4(THERE.octets(), HERE.octets(), 64)
            .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(why))
            .write(&mut packet, &quoted[..28])
            .expect("a packet");
        self.write(&packet);
    }
}

/// One connection of the peer.
pub struct Peer<'wire> {
    wire: &'wire Wire,
    port: u16,
    kernel_port: u16,
    /// Its next sequence number.
    pub seq: u32,
    /// What it expects from the kernel next.
    pub ack: u32,
    /// Its clock of timestamps, if it sends any.
    pub clock: Option<u32>,
    echo: u32,
    /// Whether it has seen where the kernel's sequence numbers begin.
    synchronized: bool,
    /// Segments that came again.
    pub again: u32,
}

impl<'wire> Peer<'wire> {
    /// A peer that waits for the kernel's SYN to this port.
    pub fn listen(wire: &'wire Wire, port: u16) -> Self {
        Self {
            wire,
            port,
            kernel_port: 0,
            seq: ISN,
            ack: 0,
            clock: None,
            echo: 0,
            synchronized: false,
            again: 0,
        }
    }

    /// Answers the kernel's connect(): three segments.
    pub fn accept(wire: &'wire Wire, port: u16) -> Self {
        let mut peer = Self::listen(wire, port);
        peer.expect(SYN);
        peer.send(SYN | ACK, b"");
        peer.expect(ACK);
        peer
    }

    /// Connects to a listener of the kernel; with a clock, it uses timestamps.
    pub fn connect(wire: &'wire Wire, port: u16, kernel_port: u16, clock: Option<u32>) -> Self {
        let mut peer = Self {
            kernel_port,
            clock,
            ..Self::listen(wire, port)
        };
        peer.send(SYN, b"");
        peer.expect(SYN | ACK);
        peer.send(ACK, b"");
        peer
    }

    /// The segment that it would send next.
    pub fn next(&self, flags: u8) -> Segment {
        Segment {
            from: self.port,
            to: self.kernel_port,
            flags,
            seq: self.seq,
            ack: if flags & ACK == 0 { 0 } else { self.ack },
            timestamps: self.clock.map(|clock| (clock, self.echo)),
            data: Vec::new(),
        }
    }

    /// Sends what comes next.
    pub fn send(&mut self, flags: u8, data: &[u8]) -> Segment {
        let segment = Segment {
            data: data.to_vec(),
            ..self.next(flags)
        };
        // Its own SYN may be answered by a new one.
        self.synchronized &= flags & (SYN | ACK) != SYN;
        self.send_as_it_is(&segment);
        self.seq = segment.end();
        segment
    }

    /// Sends anything, and forgets it.
    pub fn send_as_it_is(&self, segment: &Segment) {
        self.wire.write(&segment.packet());
    }

    /// The next segment with something new, or a pure one.
    fn receive(&mut self, until: Instant) -> Option<Segment> {
        loop {
            let segment = self.wire.segment(self.port, until)?;
            if segment.flags & SYN != 0 && !self.synchronized {
                (self.kernel_port, self.ack) = (segment.from, segment.seq);
                self.synchronized = true;
            }
            let old = self.ack.wrapping_sub(segment.end()).cast_signed() >= 0;
            if segment.end() != segment.seq && old {
                self.again += 1;
                continue;
            }
            if let Some((value, _)) = segment.timestamps {
                self.echo = value;
            }
            if segment.flags & RST == 0 && segment.seq == self.ack {
                self.ack = segment.end();
            }
            return Some(segment);
        }
    }

    /// Waits for a segment with just these flags (PSH does not matter), passing over pure acknowledgements and what comes
    /// again; anything else fails.
    pub fn expect(&mut self, flags: u8) -> Segment {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.receive(until) {
                Some(segment) if segment.flags & !PSH == flags => return segment,
                Some(segment) if segment.flags == ACK && segment.data.is_empty() => {}
                other => panic!("expected flags {flags:#x}, got {other:?}"),
            }
        }
    }

    /// Waits for the next data, passing over pure acknowledgements.
    pub fn expect_data(&mut self) -> Segment {
        loop {
            let segment = self.expect(ACK);
            if !segment.data.is_empty() {
                return segment;
            }
        }
    }

    /// Waits until everything sent is acknowledged.
    pub fn expect_acknowledgement(&mut self) -> Segment {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.receive(until) {
                Some(segment) if segment.flags & (RST | ACK) == ACK && segment.ack == self.seq => {
                    return segment;
                }
                Some(segment) if segment.flags == ACK => {}
                other => panic!("expected an acknowledgement of {}, got {other:?}", self.seq),
            }
        }
    }

    /// Waits until a segment comes again.
    pub fn expect_again(&mut self) {
        let (before, until) = (self.again, Instant::now() + PATIENCE);
        while self.again == before {
            let step = Instant::now() + Duration::from_millis(10);
            let new = self.receive(step);
            assert!(
                new.is_none() && Instant::now() < until,
                "expected a retransmission, got {new:?}"
            );
        }
    }

    /// Nothing comes for this long.
    pub fn expect_silence(&mut self, time: Duration) {
        let segment = self.receive(Instant::now() + time);
        assert_eq!(segment, None, "the kernel was to be silent");
    }

    /// Says that the host, not the segment's port, cannot be reached.
    pub fn unreachable(&self, segment: &Segment) {
        self.wire.unreachable(segment, DestUnreachableHeader::Host);
    }
}

/// A socket of the kernel that connects from this port (0: any) to one of the peer; connect() goes on in the background.
pub fn connecting(from: u16, to: u16) -> TcpStream {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket");
    setsockopt(&socket, sockopt::ReuseAddr, &true).expect("an option");
    let address = |ip, port| SockaddrIn::from(SocketAddrV4::new(ip, port));
    if from != 0 {
        bind(socket.as_raw_fd(), &address(HERE, from)).expect("the port is free");
    }
    let result = connect(socket.as_raw_fd(), &address(THERE, to));
    assert_eq!(result, Err(nix::Error::EINPROGRESS));
    TcpStream::from(socket)
}

/// The peer accepts a connection of the kernel.
pub fn established(wire: &Wire, port: u16) -> (TcpStream, Peer<'_>) {
    let socket = connecting(0, port);
    let peer = Peer::accept(wire, port);
    socket
        .set_nonblocking(false)
        .expect("it blocks from now on");
    (socket, peer)
}

/// A listener of the kernel where the peer can reach it.
pub fn listener(port: u16) -> std::net::TcpListener {
    std::net::TcpListener::bind(SocketAddr::from((HERE, port))).expect("a listener")
}

/// The kernel closes the socket, and the peer has seen it but not answered.
pub fn close(socket: TcpStream, peer: &mut Peer<'_>) -> Segment {
    let alone = crate::support::nobody_starts();
    drop(socket);
    drop(alone);
    peer.expect(FIN | ACK)
}

/// What is asked of an interface of this namespace.
struct Interface(libc::ifreq);

impl Interface {
    fn new() -> Self {
        // SAFETY: `ifreq` is plain data, for which zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (slot, byte) in request.ifr_name.iter_mut().zip(*b"peer") {
            *slot = libc::c_char::try_from(byte).expect("ASCII");
        }
        Self(request)
    }

    fn ask(&mut self, descriptor: RawFd, what: impl TryInto<libc::Ioctl>) {
        let Ok(what) = what.try_into() else {
            unreachable!("a number of an ioctl");
        };
        // SAFETY: the request lives through the call, and these ioctls read and write one `ifreq`.
        let result = unsafe { libc::ioctl(descriptor, what, &raw mut self.0) };
        let error = std::io::Error::last_os_error();
        assert_eq!(result, 0, "ioctl {what:#x}: {error}");
    }
}

fn flags(flags: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(flags).expect("small flags")
}

fn raw(address: Ipv4Addr) -> libc::sockaddr {
    let address = *SockaddrIn::from(SocketAddrV4::new(address, 0)).as_ref();
    // SAFETY: both have 16 bytes of plain data, the family in the same place.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}
