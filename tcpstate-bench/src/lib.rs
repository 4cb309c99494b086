//! What the load generator tells the measurements.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
