//! The first process of a guest of `cargo xtask vm`: it makes the machine usable, runs `tcpstate probe` and the tests,
//! reports over the second serial line, and switches the machine off.

mod machine;
#[path = "../orders.rs"]
mod orders;
mod process;
#[path = "../protocol.rs"]
mod protocol;
mod queue;

use std::{
    fs::{self, File},
    io::{self, Write as _},
    process::Command,
};

use orders::Orders;
use process::Ended;
use protocol::{ORDERS, Report};

/// The serial line for reports. The first one is the console, where the kernel talks as well; that of an arm64 machine is of
/// another kind, and counts for itself.
const REPORTS: &str = if cfg!(target_arch = "aarch64") {
    "/dev/ttyS0"
} else {
    "/dev/ttyS1"
};

fn main() {
    // Elsewhere there is nothing it could do but harm.
    if std::process::id() != 1 {
        eprintln!("guest: only of use as the first process of a virtual machine");
        std::process::exit(2);
    }
    if let Err(error) = live() {
        eprintln!("guest: {error}");
    }
    machine::switch_off();
}

fn live() -> io::Result<()> {
    machine::mount_devices()?;
    let mut reports = File::options().write(true).open(REPORTS)?;
    let mut report = |report: Report| writeln!(reports, "{report}");
    let troubles = machine::mount_rest()?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    report(Report::Kernel(release.trim().to_owned()))?;
    let orders: Orders = fs::read_to_string(ORDERS)?
        .parse()
        .map_err(|line: String| io::Error::other(format!("{ORDERS}: {line}")))?;
    let hidden = orders.hidden.iter().filter_map(|path| machine::hide(path));
    let troubles = troubles.into_iter().chain(machine::load_modules()?);
    for trouble in troubles.chain(hidden) {
        report(Report::Trouble(trouble))?;
    }
    let observers = probe(&orders, &mut report)?;
    queue::run(&orders, &observers, &mut report)?;
    report(Report::Done)
}

/// Runs it once, and says which exact ways of observing TIME_WAIT work here, so that not every test has to find out.
fn probe(orders: &Orders, report: &mut dyn FnMut(Report) -> io::Result<()>) -> io::Result<String> {
    let mut probe = if orders.capabilities.is_empty() {
        Command::new(&orders.tcpstate)
    } else {
        let held: Vec<_> = orders
            .capabilities
            .split(',')
            .map(|name| format!("+{name}"))
            .collect();
        let held = held.join(",");
        let mut setpriv = Command::new("setpriv");
        setpriv
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(format!("--inh-caps={held}"))
            .arg(format!("--ambient-caps={held}"))
            .arg(format!("--bounding-set=-all,{held}"))
            .args(["--", &orders.tcpstate]);
        setpriv
    };
    let (ended, output) = process::run(probe.arg("probe"), orders.limit)?;
    match ended {
        Ended::By(status) => {
            report(Report::Probe(status))?;
            for line in output.lines() {
                report(Report::Output(line.to_owned()))?;
            }
            let works = |observer: &&str| {
                output.lines().any(|line| {
                    let mut words = line.split_ascii_whitespace();
                    words.next() == Some(observer) && words.next() == Some("works")
                })
            };
            let observers = ["fentry", "kprobe", "timer"].into_iter().filter(works);
            Ok(observers.collect::<Vec<_>>().join(","))
        }
        Ended::TooLate => {
            let trouble = "`tcpstate probe` did not end in time".to_owned();
            report(Report::Trouble(trouble))?;
            Ok(String::new())
        }
    }
}
