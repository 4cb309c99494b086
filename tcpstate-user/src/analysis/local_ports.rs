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
    /// `ip_local_reserved_ports`: first and last of each range, in order and apart from each other.
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
            reserved: apart(reserved.trim().split(',').filter_map(ports).collect()),
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
        let behind = self.reserved.partition_point(|(from, _)| *from <= port);
        let reserved = self.reserved[..behind].last();
        (self.first..=self.last).contains(&port) && reserved.is_none_or(|(_, to)| *to < port)
    }

    /// How many ports it may pick from.
    #[must_use]
    pub fn count(&self) -> u64 {
        let ports = |from: u16, to: u16| (u64::from(to) + 1).saturating_sub(from.into());
        let reserved = self.reserved.iter();
        let reserved = reserved.map(|(from, to)| ports(self.first.max(*from), self.last.min(*to)));
        ports(self.first, self.last) - reserved.sum::<u64>()
    }
}

/// Ranges in order, where those that overlap are one.
fn apart(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.retain(|(from, to)| from <= to);
    ranges.sort_unstable();
    ranges.dedup_by(|(from, to), (_, before)| {
        let overlap = *from <= *before;
        if overlap {
            *before = (*before).max(*to);
        }
        overlap
    });
    ranges
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
        let ports = LocalPorts::parse("10 19", "15-16,0-11,16-17,11,60-50,9,19-65535", "");
        let ports = ports.unwrap_or_default();
        let free = (0..=u16::MAX).filter(|port| ports.has(*port));
        assert_eq!(free.collect::<Vec<_>>(), [12, 13, 14, 18]);
        assert_eq!(ports.count(), 4);
        for bad in ["", "1", "a b", "1 70000"] {
            assert_eq!(LocalPorts::parse(bad, "", ""), None, "{bad}");
        }
    }
}
