//! What is special about a guest: its processors, its kernel's command line, what is hidden from it, what it runs.

use super::orders;

/// One kind of guest.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// As it is asked for.
    pub name: &'static str,
    /// Virtual processors.
    pub processors: u8,
    /// Appended to the kernel's command line.
    pub append: &'static str,
    /// Folders of the kernel's that nobody shall see.
    pub hidden: &'static [&'static str],
    /// Capabilities with which `tcpstate probe` is run as nobody; as root if there are none.
    pub capabilities: &'static str,
    /// What is supported is that of the guest without specialities.
    pub ordinary: bool,
    /// The kernels it is meant for; all if there are none.
    pub kernels: &'static [&'static str],
    plans: &'static [Plan],
}

/// Tests, and what they are run with.
#[derive(Clone, Copy, Debug)]
struct Plan {
    label: &'static str,
    filters: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
}

/// The guest without specialities.
pub const STANDARD: &str = "standard";

/// Beginnings of the names of tests that wait more than they work, and that are few: they all run at once, in little memory.
pub const WAITING: [&str; 2] = ["netem::", "timewait::expiry_"];

/// Where an emulated machine should not make as many connections as a real one.
const FEWER: (&str, &str) = ("TCPSTATE_TEST_CONNECTIONS", "2000");

/// Tests of which each tries all ways of observing TIME_WAIT that work on the kernel.
const OBSERVED: &[&str] = &[
    "timewait::",
    "segments::",
    "closes::",
    "overflow::",
    "churn::",
    "existing::",
];

/// What a special guest is asked: whether `trace` does what `probe` says, and what either says about the speciality.
const AGREEMENT: Plan = Plan {
    label: "probe and trace agree",
    filters: &["probe::"],
    variables: &[],
};

const LOCKDOWN_KERNELS: &[&str] = &["5.10", "6.12", "7"];

pub const VARIANTS: [Variant; 6] = [
    Variant {
        name: STANDARD,
        processors: 2,
        append: "",
        hidden: &[],
        capabilities: "",
        ordinary: true,
        kernels: &[],
        plans: &[
            Plan {
                label: "all but TIME_WAIT and netem",
                filters: &[
                    "--skip",
                    "timewait::",
                    "--skip",
                    "segments::",
                    "--skip",
                    "closes::",
                    "--skip",
                    "overflow::",
                    "--skip",
                    "churn::",
                    "--skip",
                    "existing::",
                    "--skip",
                    "netem::",
                ],
                variables: &[FEWER],
            },
            Plan {
                label: "loss, delay and disorder by netem",
                filters: &["netem::"],
                variables: &[],
            },
            Plan {
                label: "TIME_WAIT, in every way that works",
                filters: OBSERVED,
                variables: &[FEWER],
            },
        ],
    },
    Variant {
        name: "smp",
        processors: 4,
        append: "",
        hidden: &[],
        capabilities: "",
        ordinary: true,
        kernels: &["6.12"],
        plans: &[
            Plan {
                label: "connections and their TIME_WAIT",
                filters: &["trace::", "timewait::", "--skip", "timewait::expiry_"],
                variables: &[FEWER],
            },
            Plan {
                label: "churn on 4 processors for 60 s",
                filters: &["smp::"],
                variables: &[("TCPSTATE_TEST_CHURN_SECONDS", "60")],
            },
        ],
    },
    Variant {
        name: "lockdown-integrity",
        processors: 2,
        append: "lockdown=integrity",
        hidden: &[],
        capabilities: "",
        ordinary: false,
        kernels: LOCKDOWN_KERNELS,
        plans: &[AGREEMENT],
    },
    Variant {
        name: "lockdown-confidentiality",
        processors: 2,
        append: "lockdown=confidentiality",
        hidden: &[],
        capabilities: "",
        ordinary: false,
        kernels: LOCKDOWN_KERNELS,
        plans: &[AGREEMENT],
    },
    Variant {
        name: "unprivileged",
        processors: 2,
        append: "",
        hidden: &[],
        // CAP_SYSLOG: addresses in /proc/kallsyms.
        capabilities: "bpf,perfmon,syslog",
        ordinary: false,
        kernels: &["5.10", "6.12"],
        plans: &[AGREEMENT],
    },
    Variant {
        name: "no-btf",
        processors: 2,
        append: "",
        hidden: &["/sys/kernel/btf"],
        capabilities: "",
        ordinary: false,
        kernels: &["5.10", "6.12"],
        plans: &[AGREEMENT],
    },
];

impl Variant {
    /// Whether a run of everything takes it.
    pub fn is_meant_for(&self, kernel: &str) -> bool {
        self.kernels.is_empty() || self.kernels.contains(&kernel)
    }

    /// How the kernel and this guest are called together.
    pub fn title(&self, kernel: &str) -> String {
        if self.name == STANDARD {
            kernel.to_owned()
        } else {
            format!("{kernel} {}", self.name)
        }
    }

    /// What the guest is told to run.
    pub fn plans(&self) -> Vec<orders::Plan> {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let plan = |plan: &Plan| orders::Plan {
            label: plan.label.to_owned(),
            filters: owned(plan.filters),
            variables: plan
                .variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        self.plans.iter().map(plan).collect()
    }
}
