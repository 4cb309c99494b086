//! What a network namespace has set that decides what becomes of TCP connections (`/proc/sys/net`, see `ip-sysctl.rst` of the
//! kernel).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::analysis::{LocalPorts, Reuse};

/// The settings that matter here, below `/proc/sys/net`; and what every kernel since 5.8 has if nobody changed it, where
/// that is one value.
pub const SETTINGS: [(&str, Option<&str>); 22] = [
    ("core/somaxconn", Some("4096")),
    ("ipv4/ip_local_port_range", Some("32768 60999")),
    ("ipv4/ip_local_reserved_ports", Some("")),
    ("ipv4/tcp_abort_on_overflow", Some("0")),
    ("ipv4/tcp_fin_timeout", Some("60")),
    ("ipv4/tcp_keepalive_intvl", Some("75")),
    ("ipv4/tcp_keepalive_probes", Some("9")),
    ("ipv4/tcp_keepalive_time", Some("7200")),
    // These three depend on the memory of the machine.
    ("ipv4/tcp_max_orphans", None),
    ("ipv4/tcp_max_syn_backlog", None),
    ("ipv4/tcp_max_tw_buckets", None),
    ("ipv4/tcp_orphan_retries", Some("0")),
    ("ipv4/tcp_retries2", Some("15")),
    ("ipv4/tcp_rfc1337", Some("0")),
    ("ipv4/tcp_syn_retries", Some("6")),
    ("ipv4/tcp_synack_retries", Some("5")),
    ("ipv4/tcp_syncookies", Some("1")),
    ("ipv4/tcp_timestamps", Some("1")),
    // Until Linux 4.12; what is there all the same is a kernel of somebody's own.
    ("ipv4/tcp_tw_recycle", Some("0")),
    ("ipv4/tcp_tw_reuse", Some("2")),
    // Since Linux 6.15.
    ("ipv4/tcp_tw_reuse_delay", Some("1000")),
    ("ipv4/tcp_fastopen", Some("1")),
];

/// The settings of one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Its inode number.
    pub netns: u32,
    /// By the last part of their name; those that the kernel does not have, or has for the whole machine only (in the first
    /// namespace), are left out.
    pub values: BTreeMap<String, String>,
}

impl Settings {
    /// The value of one, if it is known.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Takes a setting as the kernel writes it (columns are separated by tabs).
    pub fn insert(&mut self, path: &str, text: &str) {
        let words: Vec<_> = text.split_ascii_whitespace().collect();
        self.values.insert(name(path).to_owned(), words.join(" "));
    }

    /// The local ports that connect() may pick from, if they are known. `addresses` says whether those of connections are the
    /// ones that were seen.
    #[must_use]
    pub fn local_ports(&self, addresses: bool) -> Option<LocalPorts> {
        let mut ports = LocalPorts::parse(
            self.get("ip_local_port_range")?,
            self.get("ip_local_reserved_ports").unwrap_or_default(),
            self.get("tcp_tw_reuse").unwrap_or_default(),
        )?;
        if ports.reuse == Reuse::Loopback && !addresses {
            ports.reuse = Reuse::Somewhere;
        }
        Some(ports)
    }

    /// Those that somebody has changed, as far as that can be told.
    pub fn changed(&self) -> impl Iterator<Item = (&str, &str)> {
        SETTINGS.iter().filter_map(|(path, default)| {
            let name = name(path);
            let value = self.get(name)?;
            (value != (*default)?).then_some((name, value))
        })
    }
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::Settings;

    #[test]
    fn what_somebody_has_changed() {
        let mut settings = Settings::default();
        settings.insert("ipv4/ip_local_port_range", "32768\t60999\n");
        settings.insert("ipv4/ip_local_reserved_ports", "\n");
        settings.insert("ipv4/tcp_max_tw_buckets", "131072\n");
        settings.insert("ipv4/tcp_fin_timeout", "30\n");
        settings.insert("core/somaxconn", "128\n");
        let changed: Vec<_> = settings.changed().collect();
        assert_eq!(changed, [("somaxconn", "128"), ("tcp_fin_timeout", "30")]);
        let ports = settings.local_ports(true).map(|ports| ports.count());
        assert_eq!(ports, Some(28_232));
        assert_eq!(Settings::default().local_ports(true), None);
    }
}
