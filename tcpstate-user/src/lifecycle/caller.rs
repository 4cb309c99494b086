//! Who took the timer of a minisocket off: the kernel functions that do, told by return addresses.

use serde::{Deserialize, Deserializer, Serialize};

/// A kernel function that ends minisockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Caller {
    /// connect() takes the 4-tuple over (`__inet_check_established`).
    Connect,
    /// A segment came: a new SYN, or data for a half-closed end (`tcp_v4_rcv`).
    Receive,
    /// A RST came (`tcp_timewait_state_process`).
    Reset,
    /// An administrator destroys the socket (`tcp_abort`).
    Abort,
    /// The network namespace goes away (`inet_twsk_purge`).
    Purge,
}

/// The names that say who it was.
const NAMES: [(&str, Caller); 11] = [
    ("__inet_check_established", Caller::Connect),
    ("__inet6_check_established", Caller::Connect),
    ("__inet_hash_connect", Caller::Connect),
    ("inet_hash_connect", Caller::Connect),
    ("tcp_v4_rcv", Caller::Receive),
    ("tcp_v6_rcv", Caller::Receive),
    ("tcp_timewait_state_process", Caller::Reset),
    ("tcp_abort", Caller::Abort),
    ("tcp_diag_destroy", Caller::Abort),
    ("inet_twsk_purge", Caller::Purge),
    ("tcp_twsk_purge", Caller::Purge),
];

/// Begin, end, and whose code is there.
type Range = (u64, u64, Caller);

/// Where those functions are in the running kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callers {
    /// In order of their addresses.
    #[serde(deserialize_with = "in_order")]
    ranges: Vec<Range>,
    timer_handler: Option<u64>,
    time_wait: Option<(u64, u64)>,
    hashdance: bool,
}

impl Callers {
    /// From the lines of `/proc/kallsyms`. Addresses are zero there for readers without the privilege.
    #[must_use]
    pub fn parse(symbols: &str) -> Self {
        let mut found = Self::default();
        let mut open: Option<(u64, Place)> = None;
        for line in symbols.lines() {
            // Address, kind, name, and for a module a tab and its name.
            let Some((address, rest)) = line.split_once(' ') else {
                continue;
            };
            let Some((_kind, name)) = rest.split_once(' ') else {
                continue;
            };
            let name = name.split_once('\t').map_or(name, |(name, _module)| name);
            found.hashdance |= name == "inet_twsk_hashdance_schedule";
            let starts = Place::named(name);
            if open.is_none() && starts.is_none() {
                continue;
            }
            let Ok(address) = u64::from_str_radix(address, 16) else {
                continue;
            };
            if let Some((start, place)) = open.filter(|(start, _)| *start < address) {
                found.add(place, start, address);
                open = None;
            }
            if let Some(place) = starts.filter(|_| address != 0) {
                open = Some((address, place));
            }
        }
        sort(&mut found.ranges);
        found
    }

    fn add(&mut self, place: Place, start: u64, end: u64) {
        match place {
            Place::Caller(caller) => self.ranges.push((start, end, caller)),
            Place::TimerHandler => self.timer_handler = Some(start),
            Place::TimeWait => self.time_wait = Some((start, end)),
        }
    }

    /// Whether nothing is known: the reader of the list was not permitted to see addresses.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Where `tcp_time_wait` begins and ends, which makes minisockets.
    #[must_use]
    pub const fn time_wait(&self) -> Option<(u64, u64)> {
        self.time_wait
    }

    /// Whether minisockets are born in `inet_twsk_hashdance_schedule` (Linux 6.10 and later); also without the privilege.
    #[must_use]
    pub const fn hashdance(&self) -> bool {
        self.hashdance
    }

    /// Address of `tw_timer_handler`, by which timers of minisockets are known.
    #[must_use]
    pub const fn timer_handler(&self) -> Option<u64> {
        self.timer_handler
    }

    /// The innermost function that we know among return addresses.
    #[must_use]
    pub fn find(&self, addresses: &[u64]) -> Option<Caller> {
        addresses.iter().find_map(|address| {
            let behind = self.ranges.partition_point(|(start, ..)| start <= address);
            let (_, end, caller) = self.ranges[..behind].last()?;
            (address < end).then_some(*caller)
        })
    }
}

fn sort(ranges: &mut [Range]) {
    ranges.sort_by_key(|(start, ..)| *start);
}

/// Whoever made a recording may have written them in any order.
fn in_order<'de, D: Deserializer<'de>>(ranges: D) -> Result<Vec<Range>, D::Error> {
    let mut ranges = Vec::deserialize(ranges)?;
    sort(&mut ranges);
    Ok(ranges)
}

/// A function that we want to know the place of.
#[derive(Clone, Copy)]
enum Place {
    Caller(Caller),
    TimerHandler,
    TimeWait,
}

impl Place {
    fn named(name: &str) -> Option<Self> {
        match name {
            // Where they begin, not a part of them.
            "tw_timer_handler" => Some(Self::TimerHandler),
            "tcp_time_wait" => Some(Self::TimeWait),
            _ => {
                // The compiler may have split a function: `tcp_v4_rcv.part.0`.
                let name = name.split_once('.').map_or(name, |(name, _part)| name);
                let of = |(wanted, caller): &(&str, Caller)| (name == *wanted).then_some(*caller);
                NAMES.iter().find_map(of).map(Self::Caller)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Caller, Callers};

    #[test]
    fn callers_are_found_by_address() {
        let callers = Callers::parse(
            "ffffffff82005000 t __inet_check_established\nffffffff82005000 t alias\n\
             ffffffff82006000 t tw_timer_handler\nffffffff82007000 T tcp_v4_rcv\n\
             ffffffff82008000 T tcp_time_wait\nffffffff82008100 T other\nffffffff82009000 t tcp_abort.cold\n\
             ffffffff82009100 t tcp_time_wait.cold\nffffffff82009200 t tw_timer_handler.part.0\nffffffff82009300 t module_function\t[module]\nffffffff82009400 t last\n",
        );
        assert!(!callers.hashdance());
        assert_eq!(callers.timer_handler(), Some(0xffff_ffff_8200_6000));
        assert_eq!(
            callers.time_wait(),
            Some((0xffff_ffff_8200_8000, 0xffff_ffff_8200_8100))
        );
        let find = |address| callers.find(&[1, address, 0]);
        assert_eq!(find(0xffff_ffff_8200_5fff), Some(Caller::Connect));
        assert_eq!(find(0xffff_ffff_8200_6000), None);
        assert_eq!(find(0xffff_ffff_8200_7010), Some(Caller::Receive));
        assert_eq!(find(0xffff_ffff_8200_8000), None);
        assert_eq!(find(0xffff_ffff_8200_9001), Some(Caller::Abort));
        assert_eq!(callers.find(&[]), None);
    }

    #[test]
    fn hidden_addresses_say_nothing() {
        let callers = Callers::parse(
            "0000000000000000 t tw_timer_handler\n0000000000000000 T tcp_v4_rcv\nx y z\n",
        );
        assert_eq!(callers, Callers::default());
    }
}
