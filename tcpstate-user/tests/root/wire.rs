//! The TUN device behind which a peer of our own making is (`peer.rs`), and the segments that pass there.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
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
    sys::socket::SockaddrIn,
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
pub const PATIENCE: Duration = Duration::from_secs(10);
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
    pub fn packet(&self) -> Vec<u8> {
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
    pub fn segment(&self, to: u16, until: Instant) -> Option<Segment> {
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

    pub fn write(&self, packet: &[u8]) {
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
