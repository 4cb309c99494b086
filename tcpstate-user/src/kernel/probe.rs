//! What this kernel allows: the plan that would be used, why, and what is lost by it.

use std::fs;

use serde::Serialize;
use tcpstate_common::config::KernelFilter;

use super::{
    capability,
    plan::{self, Attempt, Hook, Missing, Request, TimeWaitHook, Wanted},
};

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Release of the kernel, as `uname -r` says.
    pub kernel: String,
    /// Capabilities that are needed and not there.
    pub missing_capabilities: Vec<&'static str>,
    /// How the kernel is locked down, if it is.
    pub lockdown: Option<String>,
    /// Every hook that was tried, best first.
    pub hooks: Vec<HookReport>,
    /// The hook that would be used, if any.
    pub chosen: Option<Hook>,
    /// How the life of TIME_WAIT would be observed, if it can be.
    pub timewait: Option<TimeWaitHook>,
    /// What the chosen hook does not let us know.
    pub missing: Vec<Missing>,
}

/// How one hook fared.
#[derive(Clone, Debug, Serialize)]
pub struct HookReport {
    /// The hook.
    pub hook: Hook,
    /// Whether it can be used: it was loaded, attached and removed again.
    pub works: bool,
    /// Why not.
    pub reason: Option<String>,
    /// What is lost by using it instead of the best.
    pub loses: &'static [&'static str],
}

/// Loads and attaches each hook by itself, and removes it again.
#[must_use]
pub fn run() -> Report {
    const BUFFER: u32 = 1 << 16;
    let filter = KernelFilter::all(6);
    let mut chosen = None;
    let mut missing = Vec::new();
    let mut timewait = None;
    let mut hooks = Vec::new();
    for hook in Hook::ALL {
        let mut attempts: Vec<Attempt> = Vec::new();
        let request = Request {
            hook: Some(hook),
            timewait: Wanted::IfPossible,
            filter,
            buffer: BUFFER,
        };
        let attached = plan::attach(&request, &mut attempts);
        let reason = match attached {
            Ok(attached) => {
                if chosen.is_none() {
                    chosen = Some(hook);
                    missing = attached.plan.missing;
                    timewait = attached.plan.timewait;
                }
                None
            }
            Err(refused) => refused.into_reason(),
        };
        hooks.push(HookReport {
            hook,
            works: reason.is_none(),
            reason,
            loses: hook.loses(),
        });
    }
    Report {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(
            |_| "unknown".to_owned(),
            |release| release.trim().to_owned(),
        ),
        missing_capabilities: capability::missing(),
        lockdown: capability::lockdown(),
        hooks,
        chosen,
        timewait,
        missing,
    }
}
