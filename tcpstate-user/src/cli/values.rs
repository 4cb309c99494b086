//! Values of flags: what is written on the command line, and what it means. An error says what to write instead.

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;
use tcpstate_common::{config::PortRange, state::TcpState};

use super::args::ProtocolChoice;
use crate::event::Protocol;

/// A time that is more than nothing: seconds, or with a unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    const HINT: &str = "give seconds, or a number with a unit: 90, 1.5, 60s, 2m";
    let duration = match text.parse::<f64>() {
        Ok(seconds) if seconds < 0.0 => Some(Duration::ZERO),
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => text
            .parse::<jiff::SignedDuration>()
            .ok()
            .map(|duration| Duration::try_from(duration).unwrap_or_default()),
    };
    let duration = duration.ok_or(HINT)?;
    if duration.is_zero() {
        return Err(format!("must be more than nothing; {HINT}"));
    }
    Ok(duration)
}

/// Bytes of a ring buffer, as a power of two.
pub fn buffer(text: &str) -> Result<u32, String> {
    const HINT: &str = "give bytes with K, M or G from 64K to 1G, for example 64M";
    let (digits, shift) = match text
        .trim()
        .to_ascii_uppercase()
        .trim_end_matches("IB")
        .trim_end_matches('B')
    {
        text if text.ends_with('K') => (text.trim_end_matches('K').to_owned(), 10),
        text if text.ends_with('M') => (text.trim_end_matches('M').to_owned(), 20),
        text if text.ends_with('G') => (text.trim_end_matches('G').to_owned(), 30),
        text => (text.to_owned(), 0),
    };
    digits
        .parse::<u32>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|bytes| (1 << 16..=1 << 30).contains(bytes))
        .map(u32::next_power_of_two)
        .ok_or_else(|| HINT.to_owned())
}

/// A recording. Others mean a stream by `-`, and a recording is none.
pub fn recording(path: PathBuf) -> Result<PathBuf, &'static str> {
    if path.as_os_str() == "-" {
        return Err("a recording is a file, no stream: give its name (./- if that is its name)");
    }
    Ok(path)
}

/// Where output goes.
pub fn output(path: PathBuf) -> Result<PathBuf, &'static str> {
    if path.as_os_str() == "-" {
        return Err("leave it out for standard output (./- is a file of that name)");
    }
    Ok(path)
}

/// A cgroup, which the machine or the recording has to know.
pub fn cgroup(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err(
            "give a path below the cgroup root, as /proc/PID/cgroup has it after `0::`".to_owned(),
        );
    }
    Ok(text.to_owned())
}

/// How many of something.
pub fn count<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let number = text.parse::<u64>().ok().filter(|number| *number != 0);
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("give a number from 1 to {}", u64::MAX))
}

/// A process.
pub fn pid(text: &str) -> Result<u32, String> {
    let pid = text.parse().ok().filter(|pid| *pid != 0);
    pid.ok_or_else(|| format!("give process ids from 1 to {}: 1234,5678", u32::MAX))
}

/// How many connections to remember.
pub fn connections(text: &str) -> Result<usize, String> {
    text.parse::<usize>()
        .ok()
        .filter(|number| (1..=100_000_000).contains(number))
        .ok_or_else(|| "give a number from 1 to 100000000".to_owned())
}

/// A port, or a range of them.
pub fn ports(text: &str) -> Result<PortRange, String> {
    const HINT: &str = "give ports from 1 to 65535, or ranges of them: 80,443,8000-8999";
    let port = |text: &str| {
        text.parse::<u16>()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(HINT)
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last {
        return Err(format!("the range ends before it begins; {HINT}"));
    }
    Ok(PortRange { first, last })
}

/// An address, or a network.
pub fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map(unmapped)
        .map_err(|_| {
            "give an address, or a network with a prefix length: 10.0.0.0/8, 2001:db8::/32"
                .to_owned()
        })
}

/// An IPv4-mapped network is the IPv4 network it stands for, as everywhere here.
fn unmapped(net: IpNet) -> IpNet {
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6
            .addr()
            .to_ipv4_mapped()
            .and_then(|addr| ipnet::Ipv4Net::new(addr, v6.prefix_len() - 96).ok())
            .map_or(net, IpNet::V4),
        other => other,
    }
}

/// A TCP state by its name, if it is of use; else `why` says why not.
pub fn state(
    text: &str,
    is_of_use: impl Fn(TcpState) -> bool,
    why: &str,
) -> Result<TcpState, String> {
    let wanted = text.trim().replace('-', "_");
    let known = TcpState::ALL
        .into_iter()
        .find(|state| state.name().eq_ignore_ascii_case(&wanted));
    if let Some(state) = known.filter(|state| is_of_use(*state)) {
        return Ok(state);
    }
    let why = known.map_or(String::new(), |_| format!("{why}; "));
    Err(format!("{why}give {}", labels(is_of_use)))
}

/// The names of those states.
pub fn labels(is_of_use: impl Fn(TcpState) -> bool) -> String {
    let useful = TcpState::ALL.into_iter().filter(|state| is_of_use(*state));
    useful.map(TcpState::label).collect::<Vec<_>>().join(", ")
}

/// A state that a transition is from or to.
pub fn transition_state(text: &str) -> Result<TcpState, String> {
    state(text, is_seen, "no transition is from or to it")
}

/// A state that a connection can have been in.
pub fn connection_state(text: &str) -> Result<TcpState, String> {
    let possible = |state| is_seen(state) && state != TcpState::Listen;
    state(text, possible, "no connection is in it")
}

/// Request sockets change their states without telling, and the other is one of the kernel's lists only.
fn is_seen(state: TcpState) -> bool {
    !matches!(state, TcpState::NewSynRecv | TcpState::BoundInactive)
}

/// A protocol by its name.
pub fn protocol(text: &str) -> Result<ProtocolChoice, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(ProtocolChoice::One(Protocol::Tcp)),
        "mptcp" => Ok(ProtocolChoice::One(Protocol::Mptcp)),
        "sctp" => Ok(ProtocolChoice::One(Protocol::Sctp)),
        "all" => Ok(ProtocolChoice::All),
        _ => Err("give tcp, mptcp, sctp or all".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        buffer, connection_state, count, duration, network, pid, ports, protocol, transition_state,
    };

    #[test]
    fn durations() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "nan", "inf", "1e30", "1e400", "soon"] {
            let why = duration(bad).err().unwrap_or_default();
            assert!(why.starts_with("give seconds"), "{bad}: {why}");
        }
        for bad in ["0", "0s", "-1", "-inf", "-2m"] {
            let why = duration(bad).err().unwrap_or_default();
            assert!(why.starts_with("must be more than nothing"), "{bad}: {why}");
        }
    }

    #[test]
    fn whole_numbers() {
        assert_eq!(count("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(count("1"), Ok(1_usize));
        assert_eq!(pid("4194304"), Ok(4_194_304));
        for bad in ["", "0", "-1", "1.5", "18446744073709551616", "one"] {
            let why = count::<u64>(bad).err().unwrap_or_default();
            assert!(why.starts_with("give a number from 1"), "{bad}: {why}");
            let why = pid(bad).err().unwrap_or_default();
            assert!(why.starts_with("give process ids from 1"), "{bad}: {why}");
        }
        assert!(count::<u8>("256").is_err());
    }

    #[test]
    fn buffers_are_powers_of_two() {
        assert_eq!(buffer("16M"), Ok(16 << 20));
        assert_eq!(buffer("100k"), Ok(128 << 10));
        assert_eq!(buffer("1GiB"), Ok(1 << 30));
        for bad in [
            "", "0", "1", "63K", "2G", "4096M", "-1M", "M", "1.5M", "16X",
        ] {
            assert!(buffer(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn port_ranges() {
        assert!(matches!(ports("80"), Ok(range) if range.first == 80 && range.last == 80));
        assert!(matches!(ports("1-65535"), Ok(range) if range.first == 1 && range.last == 65535));
        for bad in [
            "", "0", "65536", "70000", "80-", "-80", "90-80", "http", "1-2-3",
        ] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks() {
        let shown = |text: &str| network(text).map(|net| net.to_string());
        assert_eq!(shown("10.0.0.0/8"), Ok("10.0.0.0/8".into()));
        assert_eq!(shown("192.0.2.7"), Ok("192.0.2.7/32".into()));
        assert_eq!(shown("2001:db8::/32"), Ok("2001:db8::/32".into()));
        assert_eq!(shown("::ffff:10.0.0.0/104"), Ok("10.0.0.0/8".into()));
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0",
            "2001:db8::/129",
            "host",
            "10.0.0.0/-1",
        ] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn states_and_protocols_by_name() {
        use tcpstate_common::state::TcpState;
        for state in [transition_state, connection_state] {
            assert_eq!(state("close_wait"), Ok(TcpState::CloseWait));
            assert_eq!(state("FIN-WAIT1"), Ok(TcpState::FinWait1));
            for bad in ["FIN_WAIT_1", "", "new_syn_recv", "bound_inactive"] {
                assert!(state(bad).is_err(), "{bad}");
            }
        }
        assert_eq!(transition_state("listen"), Ok(TcpState::Listen));
        assert!(connection_state("listen").is_err());
        assert!(protocol("SCTP").is_ok());
        assert!(protocol("udp").is_err());
    }
}
