//! From when on something is worth telling, and why from then on. All can be set on the command line.

use std::time::Duration;

use clap::Args;

use super::real;

/// Nobody asks about fewer TIME_WAITs than this.
pub const MANY_TIME_WAITS: u64 = 1000;
/// A share of the local ports towards one destination: above it connect() has to search for long, and little is left for a
/// peak (`__inet_hash_connect` tries every other port first).
pub const PORTS_SHARE: f64 = 0.8;
/// Seconds: what runs out within them runs out before anybody has read, decided and deployed something.
pub const PORTS_SOON: f64 = 300.0;
/// Of the same address by the same process: who fails once may have tried whether somebody is there.
pub const FAILED_BINDS: u64 = 3;
/// Seconds: what stays longer than this in a state that only passes is waited for by nobody. Applications close within
/// milliseconds, networks answer within a few seconds.
pub const STAY: f64 = 10.0;
/// Sockets of one process and service that stay: fewer may be half-closed on purpose.
pub const STAYING: u64 = 10;
/// Connections to or from one service that fail: fewer are a restart or a wrong address, and no incident.
pub const FAILED: u64 = 10;
/// Of all to or from that service: below it retries hide it.
pub const FAILED_SHARE: f64 = 0.05;
/// New connections a second from one process to one destination: each holds a port for a minute after it, so that 20 a
/// second hold 1200, and handshakes begin to cost.
pub const CONNECTION_RATE: f64 = 20.0;
/// Seconds: who is done with a connection sooner than this made it for one request.
pub const SHORT_LIFE: f64 = 1.0;
/// A share of tcp_max_tw_buckets from which a peak may reach it.
pub const BUCKETS_SHARE: f64 = 0.8;
/// TIME_WAITs that a RST ended: single ones are of peers that were in a hurry.
pub const CUT_SHORT: u64 = 10;
/// Segments that were refused in TIME_WAIT for an old timestamp: a single one is a duplicate that the network held up.
pub const REFUSED_IN_WAIT: u64 = 3;
/// New connections from ports that were in TIME_WAIT still: fewer are not asked about.
pub const TAKEN_OVER: u64 = 100;
/// New connections a second from one address to one service. A Linux client, or a NAT in front of many, has 28,232 ports by
/// default: at 470 a second they come round within a minute, the time of TIME_WAIT.
pub const PEER_RATE: f64 = 470.0;
/// Closes at one listening port from which it shows who closes first.
pub const CLOSES: u64 = 100;
/// A share of all closes that are simultaneous: a few in a hundred are usual where both sides close after an answer.
pub const CLOSING_SHARE: f64 = 0.05;
/// A share of tcp_max_orphans. The kernel takes one orphan for two or four if they do not get on (`tcp_out_of_resources`),
/// and so begins to reset them before there are as many as that.
pub const ORPHANS_SHARE: f64 = 0.25;

/// Thresholds of all rules.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Thresholds")]
pub struct Thresholds {
    /// time-wait: TIME_WAITs in a network namespace that are worth a word
    #[arg(long, value_name = "N", default_value_t = MANY_TIME_WAITS, value_parser = number)]
    pub many_time_waits: u64,

    /// ports: share of the local ports towards one destination that is too much, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = PORTS_SHARE, value_parser = share)]
    pub ports_share: f64,

    /// ports: seconds until there is none that are too few
    #[arg(long, value_name = "SECS", default_value_t = PORTS_SOON, value_parser = positive)]
    pub ports_soon: f64,

    /// bind: failures of one process at one port that are too many
    #[arg(long, value_name = "N", default_value_t = FAILED_BINDS, value_parser = count)]
    pub failed_binds: u64,

    /// close-wait, pile-up, failed: seconds in a state that only passes that are too long [default: 10, or nine tenths of the
    /// watch, or of the recording, if that is shorter]
    #[arg(long, value_name = "SECS", value_parser = positive)]
    pub stay: Option<f64>,

    /// close-wait, pile-up: sockets that stay so long, of one process and service, that are too many
    #[arg(long, value_name = "N", default_value_t = STAYING, value_parser = count)]
    pub staying: u64,

    /// failed, reset: connections with one service that are too many
    #[arg(long, value_name = "N", default_value_t = FAILED, value_parser = count)]
    pub failed: u64,

    /// failed, reset: share of all with that service that is too much, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = FAILED_SHARE, value_parser = share)]
    pub failed_share: f64,

    /// churn: new connections a second from one process to one destination that are too many
    #[arg(long, value_name = "RATE", default_value_t = CONNECTION_RATE, value_parser = positive)]
    pub connection_rate: f64,

    /// churn: seconds that a connection is used at most if it is for one request
    #[arg(long, value_name = "SECS", default_value_t = SHORT_LIFE, value_parser = positive)]
    pub short_life: f64,

    /// overflow: share of tcp_max_tw_buckets that is too much, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = BUCKETS_SHARE, value_parser = share)]
    pub buckets_share: f64,

    /// cut-short: TIME_WAITs in a network namespace that a RST ended that are too many
    #[arg(long, value_name = "N", default_value_t = CUT_SHORT, value_parser = count)]
    pub cut_short: u64,

    /// nat: segments refused in TIME_WAIT for an old timestamp that are too many
    #[arg(long, value_name = "N", default_value_t = REFUSED_IN_WAIT, value_parser = count)]
    pub refused_in_wait: u64,

    /// nat: new connections from ports in TIME_WAIT that are worth a word
    #[arg(long, value_name = "N", default_value_t = TAKEN_OVER, value_parser = count)]
    pub taken_over: u64,

    /// nat: new connections a second from one address to one service that are worth a word
    #[arg(long, value_name = "RATE", default_value_t = PEER_RATE, value_parser = positive)]
    pub peer_rate: f64,

    /// first-close, closing: closes that are enough to say something
    #[arg(long, value_name = "N", default_value_t = CLOSES, value_parser = count)]
    pub closes: u64,

    /// closing: share of simultaneous closes that is worth a word, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = CLOSING_SHARE, value_parser = share)]
    pub closing_share: f64,

    /// orphans: share of tcp_max_orphans that is too much, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = ORPHANS_SHARE, value_parser = share)]
    pub orphans_share: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            many_time_waits: MANY_TIME_WAITS,
            ports_share: PORTS_SHARE,
            ports_soon: PORTS_SOON,
            failed_binds: FAILED_BINDS,
            stay: None,
            staying: STAYING,
            failed: FAILED,
            failed_share: FAILED_SHARE,
            connection_rate: CONNECTION_RATE,
            short_life: SHORT_LIFE,
            buckets_share: BUCKETS_SHARE,
            cut_short: CUT_SHORT,
            refused_in_wait: REFUSED_IN_WAIT,
            taken_over: TAKEN_OVER,
            peer_rate: PEER_RATE,
            closes: CLOSES,
            closing_share: CLOSING_SHARE,
            orphans_share: ORPHANS_SHARE,
        }
    }
}

impl Thresholds {
    /// Seconds in a state that only passes that are too long, for who has watched so many nanoseconds.
    #[must_use]
    pub fn stay(&self, watched: u64) -> f64 {
        self.stay.unwrap_or_else(|| STAY.min(longest_stay(watched)))
    }
}

/// Seconds that something can be seen to stay by who has watched so many nanoseconds: what is there when the watch begins is found
/// a moment later.
#[must_use]
pub fn longest_stay(watched: u64) -> f64 {
    let milliseconds = watched / 10 * 9 / 1_000_000;
    // As many digits as are read well.
    let shown = if milliseconds < 1000 {
        milliseconds
    } else {
        milliseconds / 100 * 100
    };
    real(shown) / 1e3
}

/// Seconds as nanoseconds.
#[must_use]
pub fn nanoseconds(seconds: f64) -> u64 {
    let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn number(text: &str) -> Result<u64, String> {
    let number = text.parse();
    number.map_err(|_| format!("give a number from 0 to {}", u64::MAX))
}

fn count(text: &str) -> Result<u64, String> {
    let count = text.parse().ok().filter(|count| *count != 0);
    count.ok_or_else(|| format!("give a number from 1 to {}", u64::MAX))
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok();
    share
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "give a share from 0 to 1: 0.8".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    /// More than a day is meant in another unit.
    const MOST: f64 = 86_400.0;
    let number = text.parse().ok();
    number
        .filter(|number: &f64| *number > 0.0 && *number <= MOST)
        .ok_or_else(|| "give a number above 0: 10, 0.5".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Thresholds, count, longest_stay, nanoseconds, number, positive, share};

    #[test]
    fn thresholds_are_numbers_that_make_sense() {
        assert_eq!(share("0.8"), Ok(0.8));
        assert_eq!(positive("2.5"), Ok(2.5));
        for bad in ["", "-1", "nan", "1.1", "80%"] {
            assert!(share(bad).is_err(), "{bad}");
        }
        for bad in ["", "0", "-1", "inf", "NaN", "1e30", "10s"] {
            assert!(positive(bad).is_err(), "{bad}");
        }
        assert_eq!((number("0"), count("7")), (Ok(0), Ok(7)));
        for bad in ["", "-4", "1.5", "99999999999999999999"] {
            assert!(number(bad).is_err() && count(bad).is_err(), "{bad}");
        }
        assert!(count("0").is_err());
        assert_eq!(nanoseconds(0.25), 250_000_000);
    }

    #[test]
    fn nothing_stays_longer_than_it_is_watched() {
        let watched = nanoseconds(2.017);
        assert_eq!(longest_stay(watched).to_string(), "1.8");
        assert_eq!(longest_stay(nanoseconds(0.5)).to_string(), "0.45");
        let default = Thresholds::default();
        assert_eq!(default.stay(watched).to_string(), "1.8");
        assert_eq!(default.stay(nanoseconds(30.0)).to_string(), "10");
        let given = Thresholds {
            stay: Some(60.0),
            ..default
        };
        assert_eq!(given.stay(watched).to_string(), "60");
    }
}
