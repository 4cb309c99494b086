//! What this kernel allows: the plan that would be used, why, and what is lost by it.

use std::fs;

use serde::Serialize;
use tcpstate_common::config::KernelFilter;

use super::{
    call::{self, CallRequest},
    capability,
    cgroup::Cgroups,
    observer::{TimeWaitHook, TimeWaitRequest},
    plan::{self, Hook, Missing, Plan, Request},
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
    /// Every way of observing it that was tried, best first.
    pub timewait_observers: Vec<ObserverReport>,
    /// Whether system calls can be watched.
    pub system_calls: CallReport,
    /// What the chosen hook, or what is mounted, does not let us know.
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

/// How one way of observing the life of TIME_WAIT fared.
#[derive(Clone, Debug, Serialize)]
pub struct ObserverReport {
    /// The observer.
    pub observer: TimeWaitHook,
    /// Whether it can be used: it was loaded, attached and removed again.
    pub works: bool,
    /// Why not.
    pub reason: Option<String>,
    /// What it costs while it is in use.
    pub costs: &'static str,
    /// What it does not see.
    pub cannot_see: Option<&'static str>,
}

/// How the hook at the end of system calls fared.
#[derive(Clone, Debug, Serialize)]
pub struct CallReport {
    /// Whether it can be used: it was loaded, attached and removed again.
    pub works: bool,
    /// Why not.
    pub reason: Option<String>,
    /// What it costs while it is in use.
    pub costs: &'static str,
    /// What is lost without it.
    pub loses: &'static str,
}

/// Loads and attaches each hook by itself, and removes it again.
#[must_use]
pub fn run() -> Report {
    let mut chosen: Option<Plan> = None;
    let mut hooks = Vec::new();
    for hook in Hook::ALL {
        let outcome = attach(hook, TimeWaitRequest::Auto, CallRequest::Off);
        hooks.push(HookReport {
            hook,
            works: outcome.is_ok(),
            reason: outcome.as_ref().err().cloned(),
            loses: hook.loses(),
        });
        chosen = chosen.or(outcome.ok());
    }
    let timewait_observers = TimeWaitHook::ALL
        .into_iter()
        .map(|observer| observer_report(observer, chosen.as_ref()))
        .collect();
    let calls = attach(Hook::BtfTracepoint, TimeWaitRequest::Off, CallRequest::Must);
    Report {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(
            |_| "unknown".to_owned(),
            |release| release.trim().to_owned(),
        ),
        missing_capabilities: capability::missing(),
        lockdown: capability::lockdown(),
        hooks,
        chosen: chosen.as_ref().map(|plan| plan.hook),
        timewait: chosen.as_ref().and_then(|plan| plan.timewait),
        timewait_observers,
        system_calls: CallReport {
            works: calls.is_ok(),
            reason: calls.err(),
            costs: call::COSTS,
            loses: call::LOSES,
        },
        missing: chosen.map_or_else(Vec::new, |mut plan| {
            plan.missing.extend(Cgroups::open().missing(plan.hook));
            plan.missing
        }),
    }
}

/// What choosing the plan has not told yet, is tried.
fn observer_report(observer: TimeWaitHook, chosen: Option<&Plan>) -> ObserverReport {
    let refused = chosen.and_then(|plan| {
        let mut refused = plan.refused.iter();
        refused.find(|(refused, _)| *refused == observer)
    });
    let reason = match refused {
        Some((_, why)) => Some(why.clone()),
        None if chosen.is_some_and(|plan| plan.timewait == Some(observer)) => None,
        None => {
            let only = TimeWaitRequest::Only(observer);
            attach(Hook::BtfTracepoint, only, CallRequest::Off).err()
        }
    };
    ObserverReport {
        observer,
        works: reason.is_none(),
        reason,
        costs: observer.costs(),
        cannot_see: observer.cannot_see(),
    }
}

/// Tries it, and removes it again.
fn attach(hook: Hook, timewait: TimeWaitRequest, calls: CallRequest) -> Result<Plan, String> {
    const BUFFER: u32 = 1 << 16;
    let request = Request {
        hook: Some(hook),
        timewait,
        calls,
        filter: KernelFilter::all(6),
        buffer: BUFFER,
        existing: true,
    };
    match plan::attach(&request, &mut Vec::new()) {
        Ok(attached) => Ok(attached.plan),
        Err(refused) => Err(refused.into_reason().unwrap_or_default()),
    }
}
