//! What the load generator and the measurements both know: what a load can be, and what is said of it.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Who closes first, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    #[default]
    /// The client, which so gets the TIME_WAIT
    ClientClose,
    /// The server
    ServerClose,
    /// The client, with SO_LINGER 0: a RST and no TIME_WAIT
    Rst,
}

impl Mode {
    /// How often the tracepoint is passed for a connection, by both its ends: SYN_SENT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE, and SYN_RECV,
    /// ESTABLISHED, CLOSE_WAIT, LAST_ACK, CLOSE; or, with a RST, SYN_SENT, ESTABLISHED, CLOSE, and SYN_RECV, ESTABLISHED, CLOSE.
    #[must_use]
    pub const fn transitions(self) -> u64 {
        match self {
            Self::ClientClose | Self::ServerClose => 10,
            Self::Rst => 6,
        }
    }

    /// How many TIME_WAITs a connection leaves.
    #[must_use]
    pub const fn time_waits(self) -> u64 {
        match self {
            Self::ClientClose | Self::ServerClose => 1,
            Self::Rst => 0,
        }
    }
}

/// What the packets go over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Link {
    #[default]
    /// The loopback device of one network namespace
    Loopback,
    /// A veth pair between two network namespaces
    Veth,
}

impl Link {
    /// With what the addresses begin that clients connect to, and no others.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Loopback => "127.1.",
            Self::Veth => "10.64.",
        }
    }
}

/// What `churn` prints at its end, as one line of JSON.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Churned {
    /// Who closes, and how: client-close, server-close or rst.
    pub mode: String,
    /// Over what: loopback or veth.
    pub link: String,
    /// How many clients there were, each with a server of its own.
    pub threads: usize,
    /// The network namespace of the clients, as its inode number.
    pub netns: u64,
    /// The network namespace of the servers: the same one on loopback.
    pub server_netns: u64,
    /// Every connection that was made from the beginning to the end, warm-up included.
    pub connections_all: u64,
    /// Those that ended while it was measured.
    pub connections: u64,
    /// How long it was measured.
    pub seconds: f64,
    /// Connections a second while it was measured.
    pub per_second: f64,
    /// From before `connect()` to after the client's `close()`, in microseconds.
    pub latency_us: Latency,
    /// What went wrong, by system call and error, and how often, warm-up included.
    pub errors: BTreeMap<String, u64>,
    /// User and system time of the load generator itself while it was measured; it includes the kernel's work on its packets.
    pub cpu_seconds: f64,
}

/// Percentiles.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Latency {
    /// Half of the connections took at most this.
    pub p50: u64,
    /// Nine of ten.
    pub p90: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1000.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}
