//! The time zone of whoever reads.

use std::{env, sync::Once};

use jiff::tz::TimeZone;

use crate::message::say;

/// The time zone of this system, or of TZ. If TZ names none that is known here it is UTC, which is said once.
pub fn zone() -> TimeZone {
    static SAID: Once = Once::new();
    TimeZone::try_system().unwrap_or_else(|_| {
        if let Some(name) = env::var_os("TZ") {
            SAID.call_once(|| {
                say(format_args!(
                    "warning: TZ={}: there is no such time zone in /usr/share/zoneinfo, so times of day are UTC; \
                     give another one, or install tzdata",
                    name.display()
                ));
            });
        }
        TimeZone::UTC
    })
}
