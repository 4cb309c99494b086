//! Where the load runs: network namespaces that nobody else sees, and that end with us.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddrV4},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket},
};
use tcpstate_bench::Link;

/// The network namespaces, and what listens there.
pub struct Place {
    /// Of the clients, and of this process.
    pub netns: u64,
    /// Of the servers.
    pub server_netns: u64,
    /// One for each client.
    pub listeners: Vec<(OwnedFd, Targets)>,
}

/// The first of the addresses that go to the servers.
const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 0);
const VETH: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);

/// How many addresses there are at most, of both.
pub const MAX_DESTINATIONS: u32 = 1 << 22;

/// The first server's port: below those that clients get.
const PORT: u16 = 5000;

/// What the measurement asks of a network namespace.
const SETTINGS: [(&str, &str); 5] = [
    // Others may pace.
    ("net/ipv4/tcp_congestion_control", "reno"),
    ("net/ipv4/ip_local_port_range", "10000 65535"),
    // Each connection gets its TIME_WAIT, however many there are; they go with the namespace.
    ("net/ipv4/tcp_max_tw_buckets", "4000000"),
    // An address comes once: there is nothing to learn about it.
    ("net/ipv4/tcp_no_metrics_save", "1"),
    ("net/core/somaxconn", "4096"),
];

impl Place {
    /// Brings this process into new network namespaces; has to come before any thread.
    pub fn make(link: Link, servers: u16, destinations: u32) -> Result<Self> {
        enter()?;
        let server_netns = inode()?;
        if link == Link::Loopback {
            return Ok(Self {
                netns: server_netns,
                server_netns,
                listeners: listeners(servers, LOOPBACK, destinations)?,
            });
        }
        let theirs = here()?;
        enter()?;
        let (ours, netns) = (here()?, inode()?);
        let path = format!("/proc/{}/fd/{}", std::process::id(), theirs.as_raw_fd());
        ip(&format!(
            "link add name clients type veth peer name servers netns {path}"
        ))?;
        ip("address add 10.0.0.1/24 dev clients")?;
        ip("link set clients up")?;
        setns(&theirs, CloneFlags::CLONE_NEWNET).context("setns to the servers failed")?;
        ip("address add 10.0.0.2/24 dev servers")?;
        ip("link set servers up")?;
        ip("route add local 10.64.0.0/10 dev lo")?;
        until_up("servers")?;
        let listeners = listeners(servers, VETH, destinations)?;
        setns(&ours, CloneFlags::CLONE_NEWNET).context("setns to the clients failed")?;
        ip("route add 10.64.0.0/10 via 10.0.0.2")?;
        until_up("clients")?;
        Ok(Self {
            netns,
            server_netns,
            listeners,
        })
    }
}

/// Into a new network namespace, made ready.
fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)
        .context("no network namespace can be made (is this run by root?)")?;
    for (name, value) in SETTINGS {
        let path = format!("/proc/sys/{name}");
        fs::write(&path, value).with_context(|| format!("{path} cannot be set to {value}"))?;
    }
    ip("link set lo up")?;
    Ok(())
}

/// Waits until the device sends: the kernel says so up to a second later (linkwatch), and drops packets until then.
fn until_up(device: &str) -> Result<()> {
    for _ in 0..300 {
        if ip(&format!("link show {device}"))?.contains("state UP") {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("the device {device} does not come up")
}

fn here() -> Result<File> {
    File::open(NETNS).with_context(|| format!("{NETNS} cannot be opened"))
}

fn inode() -> Result<u64> {
    let file = fs::metadata(NETNS).with_context(|| format!("{NETNS} cannot be read"))?;
    Ok(file.ino())
}

const NETNS: &str = "/proc/thread-self/ns/net";

fn ip(arguments: &str) -> Result<String> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("`ip` cannot be started (is iproute2 installed?)")?;
    if !output.status.success() {
        bail!(
            "`ip {arguments}` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn listeners(count: u16, first: Ipv4Addr, destinations: u32) -> Result<Vec<(OwnedFd, Targets)>> {
    let listener = |number: u16| {
        let port = PORT + number;
        let listener = listener(port).with_context(|| format!("no listener on port {port}"))?;
        let targets = Targets {
            first: u32::from(first),
            destinations,
            next: 0,
            port,
        };
        Ok((listener, targets))
    };
    (0..count).map(listener).collect()
}

/// A listener in the network namespace that we are in, and a few addresses of it.
pub fn local(port: u16) -> Result<(OwnedFd, Targets)> {
    let listener = listener(port).with_context(|| format!("no listener on port {port}"))?;
    let targets = Targets {
        first: u32::from(LOOPBACK),
        destinations: 256,
        next: 0,
        port,
    };
    Ok((listener, targets))
}

fn listener(port: u16) -> nix::Result<OwnedFd> {
    let listener = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    bind(listener.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port))?;
    listen(&listener, Backlog::new(4096)?)?;
    Ok(listener)
}

/// Where one client connects to: one address after the other. For each the kernel takes one port after the other
/// (net/ipv4/inet_hashtables.c, `__inet_hash_connect`), so that no addresses and ports come twice before all ports have been used.
pub struct Targets {
    first: u32,
    destinations: u32,
    next: u32,
    port: u16,
}

impl Targets {
    pub fn next(&mut self) -> SockaddrIn {
        let address = Ipv4Addr::from(self.first + self.next % self.destinations);
        self.next = self.next.wrapping_add(1);
        SockaddrIn::from(SocketAddrV4::new(address, self.port))
    }
}
