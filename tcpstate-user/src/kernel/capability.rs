//! Which privileges this process has.

use std::fs;

use caps::{CapSet, Capability, CapsHashSet};

/// The capabilities that loading and attaching needs (`capabilities(7)`), by number.
const NEEDED: [(&str, u32); 2] = [("CAP_BPF", 39), ("CAP_PERFMON", 38)];
const CAP_SYS_ADMIN: u32 = 21;

/// The capabilities that are needed and not there; empty if unknown.
#[must_use]
pub fn missing() -> Vec<&'static str> {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| effective(&status))
        .map(missing_of)
        .unwrap_or_default()
}

/// The same in words, by which to tell why nothing works; none if nothing is missing.
#[must_use]
pub fn lacking() -> Option<String> {
    let missing = missing();
    (!missing.is_empty()).then(|| format!("{} missing", missing.join(" and ")))
}

/// How the kernel is locked down (`integrity`, `confidentiality`); none if it is not, or does not tell.
#[must_use]
pub fn lockdown() -> Option<String> {
    fs::read_to_string("/sys/kernel/security/lockdown")
        .ok()
        .and_then(|states| chosen(&states))
        .filter(|state| state != "none")
}

/// Whether this lockdown forbids programs to read the kernel's memory (`LOCKDOWN_BPF_READ_KERNEL` in security/security.c),
/// without which no hook is of use.
#[must_use]
pub fn forbids_reading(lockdown: &str) -> bool {
    lockdown == "confidentiality"
}

/// Gives up, for good, every privilege of the calling thread that is of no use once the hooks are in place.
///
/// CAP_BPF reads the counters on kernels before 5.19; CAP_DAC_READ_SEARCH finds the names of cgroups. A process without
/// privileges has nothing to give up, and one that may not is no worse off than before.
pub fn drop_privileges() {
    keep(&[Capability::CAP_BPF, Capability::CAP_DAC_READ_SEARCH]);
}

/// Gives up, for good, every privilege of the calling thread but that of making files where only root may otherwise not (a
/// folder of somebody else), if `files`.
pub fn keep_files(files: bool) {
    const FILES: [Capability; 1] = [Capability::CAP_DAC_OVERRIDE];
    keep(if files { &FILES } else { &[] });
}

fn keep(useful: &[Capability]) {
    let useful: CapsHashSet = useful.iter().copied().collect();
    let Ok(permitted) = caps::read(None, CapSet::Permitted) else {
        return;
    };
    let kept: CapsHashSet = permitted.intersection(&useful).copied().collect();
    let _ = caps::clear(None, CapSet::Ambient);
    let _ = caps::set(None, CapSet::Inheritable, &CapsHashSet::new());
    let _ = caps::set(None, CapSet::Effective, &kept);
    let _ = caps::set(None, CapSet::Permitted, &kept);
}

/// `none [integrity] confidentiality`.
fn chosen(states: &str) -> Option<String> {
    let (_, rest) = states.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

fn effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// `CAP_SYS_ADMIN` includes the others.
fn missing_of(effective: u64) -> Vec<&'static str> {
    let has = |number: u32| effective & (1 << number) != 0;
    NEEDED
        .iter()
        .filter(|(_, number)| !has(*number) && !has(CAP_SYS_ADMIN))
        .map(|(name, _)| *name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{chosen, effective, missing_of};

    #[test]
    fn the_lockdown_is_the_one_in_brackets() {
        assert_eq!(
            chosen("none [integrity] confidentiality\n").as_deref(),
            Some("integrity")
        );
        assert_eq!(chosen("none\n"), None);
    }

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        let status = "Name:\tx\nCapPrm:\t0\nCapEff:\t000000c000000000\nCapBnd:\t0\n";
        assert_eq!(effective(status), Some(0xc0_0000_0000));
        assert_eq!(effective("Name:\tx\n"), None);
        assert!(missing_of(0xc0_0000_0000).is_empty());
        assert!(missing_of(1 << 21).is_empty());
        assert_eq!(missing_of(1 << 39), ["CAP_PERFMON"]);
        assert_eq!(missing_of(0), ["CAP_BPF", "CAP_PERFMON"]);
    }
}
