//! The kernel's counters of a network namespace: `/proc/net/netstat`, `/proc/net/snmp` and `/proc/net/sockstat`.

use std::collections::BTreeMap;

/// Counters of one network namespace at one time, by name: `TcpExt.ListenOverflows`, `Tcp.OutRsts`, `TCP.orphan`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// Inode number of the namespace.
    pub netns: u32,
    values: BTreeMap<String, u64>,
}

impl NetCounters {
    /// None yet, of this namespace.
    #[must_use]
    pub fn new(netns: u32) -> Self {
        Self {
            netns,
            values: BTreeMap::new(),
        }
    }

    /// The value of one, if the kernel has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.values.get(name).copied()
    }

    /// Takes a file in which a line of names comes before each line of values (`netstat`, `snmp`).
    pub fn insert_table(&mut self, text: &str) {
        let lines: Vec<_> = text.lines().collect();
        for pair in lines.chunks(2) {
            let [names, values] = pair else { continue };
            let (Some((group, names)), Some((_, values))) =
                (names.split_once(':'), values.split_once(':'))
            else {
                continue;
            };
            let pairs = names
                .split_ascii_whitespace()
                .zip(values.split_ascii_whitespace());
            for (name, value) in pairs {
                self.insert(group, name, value);
            }
        }
    }

    /// Takes a file in which names and values take turns (`sockstat`).
    pub fn insert_pairs(&mut self, text: &str) {
        for line in text.lines() {
            let Some((group, pairs)) = line.split_once(':') else {
                continue;
            };
            let mut words = pairs.split_ascii_whitespace();
            while let (Some(name), Some(value)) = (words.next(), words.next()) {
                self.insert(group, name, value);
            }
        }
    }

    /// What is no count (`Tcp.MaxConn` is -1) is left out.
    fn insert(&mut self, group: &str, name: &str, value: &str) {
        if let Ok(value) = value.parse() {
            self.values.insert(format!("{group}.{name}"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::NetCounters;

    #[test]
    fn files_as_the_kernel_writes_them() {
        let mut counters = NetCounters::new(1);
        counters.insert_table(
            "TcpExt: SyncookiesSent ListenDrops\nTcpExt: 0 17\nIpExt: InNoRoutes\nIpExt: 3\n",
        );
        counters.insert_table("Tcp: RtoMin MaxConn\nTcp: 200 -1\nTcp: odd");
        counters.insert_pairs("sockets: used 7\nTCP: inuse 5 orphan 2 tw 4\nodd\nUDP: inuse\n");
        assert_eq!(counters.get("TcpExt.ListenDrops"), Some(17));
        assert_eq!(counters.get("IpExt.InNoRoutes"), Some(3));
        assert_eq!(counters.get("Tcp.RtoMin"), Some(200));
        assert_eq!(counters.get("Tcp.MaxConn"), None);
        assert_eq!(counters.get("TCP.orphan"), Some(2));
        assert_eq!(counters.get("UDP.inuse"), None);
    }
}
