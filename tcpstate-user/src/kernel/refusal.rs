//! Why a hook cannot be used, for people.

use std::{error::Error, fmt};

use aya::{maps::MapType, programs::ProgramError, sys::is_map_supported};

use super::{call, capability, observer::TimeWaitRequest, plan::Hook};

/// How trying a hook went.
#[derive(Debug)]
pub struct Attempt {
    /// The hook.
    pub hook: Hook,
    /// Whether it was loaded and attached, or why not.
    pub outcome: Result<(), String>,
}

/// No hook can be used.
#[derive(Debug)]
pub struct Refused {
    pub(super) attempts: Vec<Attempt>,
    /// The one that was asked for.
    pub(super) hook: Option<Hook>,
    pub(super) timewait: TimeWaitRequest,
    /// System calls were to be watched.
    pub(super) calls: bool,
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lacking = capability::lacking();
        let lockdown = capability::lockdown().filter(|state| capability::forbids_reading(state));
        if let Some(lockdown) = &lockdown {
            write!(
                out,
                "this kernel is locked down ({lockdown}): programs may not read its memory, so no hook for TCP state \
                 transitions can be used; start it with another lockdown= or none"
            )?;
        } else if let Some(lacking) = &lacking {
            write!(
                out,
                "not permitted to load eBPF programs: {lacking}; run as root (sudo), or give the binary the \
                 capabilities: setcap cap_bpf,cap_perfmon=ep",
            )?;
        } else if self.calls {
            return write!(
                out,
                "--syscalls does not work here: {}; leave it out (lost then: {})",
                self.first_reason(),
                call::LOSES
            );
        } else if let TimeWaitRequest::Only(observer) = self.timewait {
            return write!(
                out,
                "--timewait {} does not work here: {}; --timewait auto takes what does",
                observer.word(),
                self.first_reason()
            );
        } else if let Some(hook) = self.hook {
            return write!(
                out,
                "--hook {} does not work here: {}; --hook auto takes what does",
                hook.word(),
                self.first_reason()
            );
        } else {
            write!(
                out,
                "this kernel lets us use no hook for TCP state transitions"
            )?;
        }
        for Attempt { hook, outcome } in &self.attempts {
            // What is said already is not said of each hook.
            if let Err(why) = outcome
                && (lockdown.is_some() || Some(why) != lacking.as_ref())
            {
                write!(out, "\n  {}: {why}", hook.label())?;
            }
        }
        if lacking.is_none() && lockdown.is_none() {
            write!(
                out,
                "\nLinux 5.8 or later is needed; `tcpstate probe` shows what this one has"
            )?;
        }
        Ok(())
    }
}

impl Error for Refused {}

impl Refused {
    fn first_reason(&self) -> &str {
        let mut attempts = self.attempts.iter();
        let reason = attempts.find_map(|attempt| attempt.outcome.as_ref().err());
        reason.map_or("unknown", String::as_str)
    }

    /// Why the last hook that was tried cannot be used.
    #[must_use]
    pub fn into_reason(self) -> Option<String> {
        self.attempts
            .into_iter()
            .filter_map(|attempt| attempt.outcome.err())
            .next_back()
    }
}

pub(super) const NO_KPROBES: &str =
    "this kernel has no kprobes (CONFIG_KPROBES, CONFIG_KPROBE_EVENTS)";

/// Why maps cannot be made.
pub(super) fn maps_reason(error: &dyn Error) -> String {
    if !is_map_supported(MapType::RingBuf).unwrap_or(true) {
        return "this kernel has no BPF ring buffer (Linux 5.8)".to_owned();
    }
    let why = chain(error);
    if why.contains("Operation not permitted") {
        return format!(
            "{why} (before Linux 5.11 maps count as locked memory: raise `ulimit -l`, or use a smaller --buffer)"
        );
    }
    why
}

/// The reason in one line; of the verifier's log only its last words.
pub(super) fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let last = log
                .lines()
                .rev()
                .find(|line| !line.trim().is_empty() && !is_statistics(line));
            match last {
                Some(line) => format!("the kernel refused the program: {io_error}: {line}"),
                None => format!("the kernel refused the program: {io_error}"),
            }
        }
        other => {
            let why = chain(other);
            if why.contains("event_source/devices/kprobe") {
                NO_KPROBES.to_owned()
            } else {
                why
            }
        }
    }
}

/// What the verifier adds after its last words (`print_verification_stats` in kernel/bpf/verifier.c).
fn is_statistics(line: &str) -> bool {
    const BEGINNINGS: [&str; 4] = [
        "processed ",
        "insns processed ",
        "stack depth ",
        "verification time ",
    ];
    BEGINNINGS
        .iter()
        .any(|beginning| line.starts_with(beginning))
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}
