//! From the kernel's monotonic time to the time of day.

use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};

/// Reads `CLOCK_MONOTONIC` in nanoseconds, the clock of every record.
#[must_use]
pub fn monotonic_now() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// The length of a tick of the kernel's timers (1/HZ): the resolution of the coarse clock.
#[must_use]
pub fn tick() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call.
    let result = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    match u64::try_from(time.tv_nsec) {
        Ok(nanoseconds) if result == 0 && nanoseconds > 0 => Duration::from_nanos(nanoseconds),
        _ => Duration::from_millis(4),
    }
}

/// The time of day when `CLOCK_MONOTONIC` was zero, in nanoseconds since 1970.
#[must_use]
pub fn zero() -> i64 {
    since_1970(libc::CLOCK_MONOTONIC)
}

/// The time of day when the machine was started, in nanoseconds since 1970.
#[must_use]
pub fn boot() -> i64 {
    since_1970(libc::CLOCK_BOOTTIME)
}

/// The time of day when this clock was zero.
fn since_1970(clock: libc::clockid_t) -> i64 {
    let before = read(clock);
    let wall = read(libc::CLOCK_REALTIME);
    let after = read(clock);
    let middle = before + (after - before) / 2;
    i64::try_from(i128::from(wall) - i128::from(middle)).unwrap_or_default()
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call; these clocks exist on every Linux we run on.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if result != 0 {
        return 0;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or_default()
}

/// The time of day of a run: what to add to monotonic time, and where "since start" begins.
#[derive(Clone, Debug)]
pub struct Clock {
    start: u64,
    offset: i128,
    zone: TimeZone,
}

impl Clock {
    /// A clock for a run that starts at this monotonic time, now, in the system's time zone.
    #[must_use]
    pub fn starting(start: u64) -> Self {
        Self::new(start, i128::from(zero()), TimeZone::system())
    }

    /// A clock with a given distance from monotonic time to the time of day, in nanoseconds.
    #[must_use]
    pub const fn new(start: u64, offset: i128, zone: TimeZone) -> Self {
        Self {
            start,
            offset,
            zone,
        }
    }

    /// The time of day; 1970 if the sum is no time at all.
    #[must_use]
    pub fn timestamp(&self, monotonic: u64) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(monotonic) + self.offset).unwrap_or_default()
    }

    /// RFC 3339 in UTC, with nanoseconds.
    #[must_use]
    pub fn rfc3339(&self, monotonic: u64) -> String {
        format!("{:.9}", self.timestamp(monotonic))
    }

    /// `HH:MM:SS.ffffff` in the time zone of the system.
    #[must_use]
    pub fn time_of_day(&self, monotonic: u64) -> String {
        let time = self.timestamp(monotonic).to_zoned(self.zone.clone()).time();
        format!(
            "{:02}:{:02}:{:02}.{:06}",
            time.hour(),
            time.minute(),
            time.second(),
            time.subsec_nanosecond() / 1000
        )
    }

    /// Nanoseconds since the start of the run.
    #[must_use]
    pub const fn since_start(&self, monotonic: u64) -> u64 {
        monotonic.saturating_sub(self.start)
    }
}
