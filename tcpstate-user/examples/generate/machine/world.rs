//! Who talks to whom: network namespaces, processes, addresses and ports.

use std::net::Ipv4Addr;

use super::{plots::End, random::Random};

/// A group of processes that do the same.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    pub comm: &'static str,
    /// The first of its processes, and how many there are.
    pub pid: u32,
    pub processes: u64,
    pub uid: u32,
    /// Which of [`CGROUPS`].
    pub cgroup: u64,
    /// Which network namespace.
    pub netns: u32,
    /// Where it listens, if it does.
    pub port: u16,
}

/// Paths of cgroups; their ids count from [`FIRST_CGROUP`].
pub const CGROUPS: [&str; 5] = [
    "/system.slice/nginx.service",
    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3f0a.slice/cri-containerd-7d1e.scope",
    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod91bc.slice/cri-containerd-a240.scope",
    "/system.slice/postgresql.service",
    "/user.slice/user-1000.slice/session-4.scope",
];
pub const FIRST_CGROUP: u64 = 4_200;
const NETNS: u32 = 4_026_531_840;

const fn program(comm: &'static str, pid: u32, cgroup: u64, netns: u32, port: u16) -> Program {
    Program {
        comm,
        pid,
        processes: 8,
        uid: 1000 + netns,
        cgroup: FIRST_CGROUP + cgroup,
        netns: NETNS + netns * 100,
        port,
    }
}

pub const SERVERS: [Program; 4] = [
    program("nginx", 1_200, 0, 0, 443),
    program("gunicorn", 20_500, 1, 1, 8000),
    program("redis-server", 31_000, 2, 2, 6379),
    program("postgres", 900, 3, 0, 5432),
];

const CLIENTS: [Program; 4] = [
    program("nginx", 1_200, 0, 0, 0),
    program("gunicorn", 20_500, 1, 1, 0),
    program("celery", 32_000, 2, 2, 0),
    program("curl", 54_000, 4, 0, 0),
];

/// The ends of a connection, the same in all its lives.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub client: Program,
    pub server: Program,
    pub client_addr: Ipv4Addr,
    pub server_addr: Ipv4Addr,
    pub client_port: u16,
    /// The end that is on another machine, if one is.
    elsewhere: Option<End>,
}

impl Pair {
    /// The connection with this number, of so many.
    pub fn new(number: u32, seed: u64) -> Self {
        /// The local ports of a host, as Linux has them (`ip_local_port_range`).
        const FIRST: u16 = 32_768;
        const PORTS: u32 = 28_232;
        let mut random = Random::new(seed ^ u64::from(number) << 20);
        let (host, port) = (number / PORTS, number % PORTS);
        let pick = |random: &mut Random, of: &[Program; 4]| {
            let index = random.below(4);
            of[usize::try_from(index).unwrap_or_default()]
        };
        let server = pick(&mut random, &SERVERS);
        let [_, _, high, low] = host.to_be_bytes();
        Self {
            client: pick(&mut random, &CLIENTS),
            server,
            client_addr: Ipv4Addr::new(10, 1, high, low),
            server_addr: Ipv4Addr::new(10, 2, 0, u8::try_from(server.port % 251).unwrap_or(1)),
            client_port: FIRST + u16::try_from(port).unwrap_or_default(),
            elsewhere: match random.below(5) {
                0 => Some(End::Client),
                1 => Some(End::Server),
                _ => None,
            },
        }
    }

    /// Whether this end is on this machine.
    pub fn has(&self, end: End) -> bool {
        self.elsewhere != Some(end)
    }

    pub const fn program(&self, end: End) -> &Program {
        match end {
            End::Client => &self.client,
            End::Server => &self.server,
        }
    }
}
