//! The local ports that connect() may pick from, as a network namespace has them set.

/// When connect() may take over the port of a TIME_WAIT that is older than a second (`tcp_tw_reuse`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reuse {
    /// Never.
    #[default]
    Never,
    /// On the loopback interface.
    Loopback,
    /// On the loopback interface, and which addresses are there is not known.
    Somewhere,
    /// Always.
    Always,
}

/// The settings of one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalPorts {
    first: u16,
    last: u16,
    /// `ip_local_reserved_ports`: first and last of each range.
    reserved: Vec<(u16, u16)>,
    /// See [`Reuse`].
    pub reuse: Reuse,
}

impl LocalPorts {
    /// From the texts of `ip_local_port_range`, `ip_local_reserved_ports` and `tcp_tw_reuse` in `/proc/sys/net/ipv4`; `None`
    /// if the range is none.
    #[must_use]
    pub fn parse(range: &str, reserved: &str, reuse: &str) -> Option<Self> {
        let mut words = range.split_ascii_whitespace();
        let mut port = || words.next()?.parse().ok();
        let (first, last) = (port()?, port()?);
        let ports = |text: &str| {
            let (from, to) = text.split_once('-').unwrap_or((text, text));
            Some((from.parse().ok()?, to.parse().ok()?))
        };
        Some(Self {
            first,
            last,
            reserved: reserved.trim().split(',').filter_map(ports).collect(),
            reuse: match reuse.trim() {
                "1" => Reuse::Always,
                "2" => Reuse::Loopback,
                _ => Reuse::Never,
            },
        })
    }

    /// Whether connect() may pick this port.
    #[must_use]
    pub fn has(&self, port: u16) -> bool {
        let reserved = |(from, to): &(u16, u16)| (*from..=*to).contains(&port);
        (self.first..=self.last).contains(&port) && !self.reserved.iter().any(reserved)
    }

    /// How many ports it may pick from.
    #[must_use]
    pub fn count(&self) -> u64 {
        let ports = (self.first..=self.last).filter(|port| self.has(*port));
        ports.count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::{LocalPorts, Reuse};

    #[test]
    fn settings_as_the_kernel_writes_them() {
        let ports = LocalPorts::parse("32768\t60999\n", "\n", "2\n").unwrap_or_default();
        assert_eq!((ports.count(), ports.reuse), (28_232, Reuse::Loopback));
        let ports = LocalPorts::parse("5000\t5019\n", "22,5001,5010-5012,5019-5100\n", "0\n");
        let ports = ports.unwrap_or_default();
        assert_eq!((ports.count(), ports.reuse), (15, Reuse::Never));
        assert!(ports.has(5000) && !ports.has(5001) && !ports.has(5020) && !ports.has(22));
        for bad in ["", "1", "a b", "1 70000"] {
            assert_eq!(LocalPorts::parse(bad, "", ""), None, "{bad}");
        }
    }
}
