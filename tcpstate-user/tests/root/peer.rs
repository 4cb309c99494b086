//! A TCP peer of our own making: it sends what a test wants it to send, and sees what the kernel answers.

use std::{
    net::{SocketAddr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

use crate::wire::{ACK, FIN, HERE, PATIENCE, PSH, RST, SYN, Segment, THERE, Wire};

/// Where its sequence numbers begin.
const ISN: u32 = 1_000_000;

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

/// Disconnects a socket, and connects it to another port of the peer, in the background.
pub fn reconnect(socket: &TcpStream, to: u16) {
    crate::socket::disconnect(socket);
    socket.set_nonblocking(true).expect("an option");
    let address = SockaddrIn::from(SocketAddrV4::new(THERE, to));
    let result = connect(socket.as_raw_fd(), &address);
    assert_eq!(result, Err(nix::Error::EINPROGRESS));
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
