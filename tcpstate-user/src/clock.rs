//! From the kernel's monotonic time to the time of day.

use std::{cell::Cell, time::Duration};

use jiff::{Timestamp, tz::TimeZone};

/// Nanoseconds of a second.
const BILLION: i64 = 1_000_000_000;
/// The bytes of `2026-11-22T13:45:07.`.
const WHOLE: usize = 20;

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

/// The time of day when this clock was zero, as two readings of it tell with one of the time of day between them. Who is
/// interrupted there on a busy machine is wrong by half of the time that takes, so the closest of a few is taken.
fn since_1970(clock: libc::clockid_t) -> i64 {
    const TIMES: usize = 16;
    let look = || {
        let before = read(clock);
        let wall = read(libc::CLOCK_REALTIME);
        let took = read(clock).saturating_sub(before);
        (took, i128::from(wall) - i128::from(before + took / 2))
    };
    let closest = std::iter::repeat_with(look).take(TIMES).min();
    closest.map_or(0, |(_, zero)| i64::try_from(zero).unwrap_or_default())
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
    /// A second since 1970, and how its times begin: those of one second differ in their last digits only.
    second: Cell<Option<(i64, [u8; WHOLE])>>,
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
            second: Cell::new(None),
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
        let formatted = || format!("{:.9}", self.timestamp(monotonic));
        let Ok(time) = i64::try_from(i128::from(monotonic) + self.offset) else {
            return formatted();
        };
        let (second, mut rest) = (time.div_euclid(BILLION), time.rem_euclid(BILLION));
        let Some((_, begins)) = self.second.get().filter(|(known, _)| *known == second) else {
            let text = formatted();
            let begins = text.as_bytes().first_chunk().copied();
            self.second.set(begins.map(|begins| (second, begins)));
            return text;
        };
        let mut digits = *b"000000000Z";
        for digit in digits.iter_mut().rev().skip(1) {
            *digit += u8::try_from(rest % 10).unwrap_or_default();
            rest /= 10;
        }
        let bytes = [begins.as_slice(), &digits].concat();
        String::from_utf8(bytes).unwrap_or_else(|_| formatted())
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

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::Clock;

    #[test]
    fn times_of_one_second_are_formatted_as_those_of_many() {
        let offsets = [0, 1_795_305_600_000_000_000, -1_500_000_000, i128::MAX / 2];
        for offset in offsets {
            let clock = Clock::new(0, offset, TimeZone::UTC);
            for time in [
                0,
                1,
                999_999_999,
                1_000_000_000,
                1_000_000_001,
                1_123_456_789,
                1_500_000_000,
                86_400_000_000_000,
                u64::MAX,
                5,
            ] {
                let expected = format!("{:.9}", clock.timestamp(time));
                assert_eq!(clock.rfc3339(time), expected, "{offset} {time}");
                assert_eq!(clock.rfc3339(time), expected, "once more");
            }
        }
    }
}
