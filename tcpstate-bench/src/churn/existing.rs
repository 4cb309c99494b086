//! Sockets and TIME_WAITs that are only there.

use std::{
    io::Read as _,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{AddressFamily, SockFlag, SockType, accept4, connect, socket},
};

use crate::link::{self, Targets};

/// How many of each.
#[derive(Clone, Debug)]
pub struct Wanted {
    connections: u32,
    time_waits: u32,
}

impl Wanted {
    pub fn parse(text: &str) -> Result<Self, String> {
        let (sockets, time_waits) = pair(text)?;
        if sockets.max(time_waits) > 1_000_000 {
            return Err("at most 1000000".to_owned());
        }
        Ok(Self {
            connections: sockets / 2,
            time_waits,
        })
    }
}

/// Two numbers with a comma.
pub fn pair(text: &str) -> Result<(u32, u32), String> {
    let numbers = text.split_once(',');
    let numbers = numbers.and_then(|(one, other)| Some((one.parse().ok()?, other.parse().ok()?)));
    numbers.ok_or_else(|| "two numbers: 1000,1000".to_owned())
}

/// What there is, as long as this lives.
pub struct Existing {
    /// Those of connections; there are listeners besides.
    pub sockets: u32,
    /// TIME_WAITs that were made; each goes after a minute.
    pub time_waits: u32,
    _holders: Vec<(Child, ChildStdout)>,
}

/// In this process's network namespace.
pub fn make(wanted: &Wanted) -> Result<Existing> {
    // Only few may raise their limit of open files: so many processes that each gets by with it.
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE)
        .context("getrlimit failed")?
        .1;
    let each = u32::try_from(descriptors.saturating_sub(100) / 2)
        .unwrap_or(u32::MAX)
        .max(1);
    let mut holders = Vec::new();
    let mut left = wanted.connections;
    let mut port = FIRST_PORT;
    while left > 0 {
        let connections = left.min(each);
        holders.push(holder(connections, port)?);
        left -= connections;
        port += 1;
    }
    let (listener, mut targets) = link::local(port)?;
    for _ in 0..wanted.time_waits {
        // The client closes first: it is dropped first.
        let (client, server) = connection(&listener, &mut targets)?;
        drop(client);
        drop(server);
    }
    Ok(Existing {
        sockets: 2 * wanted.connections,
        time_waits: wanted.time_waits,
        _holders: holders,
    })
}

const FIRST_PORT: u16 = 6000;

/// A process that keeps connections until its standard input ends, which it does with us.
fn holder(connections: u32, port: u16) -> Result<(Child, ChildStdout)> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(format!("--holder={connections},{port}"));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("no more processes")?;
    let mut answer = child.stdout.take().context("no pipe")?;
    if answer.read(&mut [0]).context("no answer")? == 0 {
        bail!("{connections} connections cannot be kept");
    }
    Ok((child, answer))
}

/// That process.
pub fn hold(connections: u32, port: u16) -> Result<Vec<(OwnedFd, OwnedFd)>> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit failed")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit failed")?;
    let (listener, mut targets) = link::local(port)?;
    (0..connections)
        .map(|_| connection(&listener, &mut targets))
        .collect()
}

/// Over loopback a connection is there when connect() returns.
fn connection(listener: &OwnedFd, targets: &mut Targets) -> Result<(OwnedFd, OwnedFd)> {
    let client = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("no more sockets")?;
    connect(client.as_raw_fd(), &targets.next()).context("connect failed")?;
    let server = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).context("accept failed")?;
    // SAFETY: the descriptor is new, and nobody else knows of it.
    Ok((client, unsafe { OwnedFd::from_raw_fd(server) }))
}
