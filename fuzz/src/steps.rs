//! A recording with any steps in it, in a file that is whole.

use tcpstate_user::{
    kernel::{Hook, TimeWaitHook},
    lifecycle::Callers,
    recording::{Header, LAYOUT, Mark, Writer},
    settings::{SETTINGS, Settings},
};

use super::shown;

/// When the run began.
pub const START: u64 = 1_000_000_000;
/// The network namespace whose settings are known: that of the records that fuzzing begins with.
pub const NETNS: u32 = 1;
/// Where the functions are that end minisockets.
pub const SYMBOLS: &str = "\
    ffffffff82001000 t __inet_check_established\n\
    ffffffff82002000 T tcp_v4_rcv\n\
    ffffffff82003000 T tcp_timewait_state_process\n\
    ffffffff82004000 T tcp_abort\n\
    ffffffff82005000 t end\n";

/// The first byte says how to look at it; the second, how it was observed: minisockets, settings (32), system calls (64), and
/// with which hook (128).
pub fn run(data: &[u8]) {
    let [choice, observer, steps @ ..] = data else {
        return;
    };
    shown::on(&recording(steps, *observer), |files| files.show(*choice));
}

/// So few ports that they run out, and a short time of FIN_WAIT2.
fn settings() -> Vec<Settings> {
    let mut settings = Settings {
        netns: NETNS,
        ..Settings::default()
    };
    for (path, value) in SETTINGS {
        settings.insert(path, value.unwrap_or("5000"));
    }
    settings.insert("ipv4/ip_local_port_range", "40000 40003");
    settings.insert("ipv4/ip_local_reserved_ports", "40001-40001");
    settings.insert("ipv4/tcp_fin_timeout", "10");
    vec![settings]
}

/// A recording with these steps.
pub fn recording(steps: &[u8], observer: u8) -> Vec<u8> {
    let timewait = match observer % 5 {
        0 => Some(TimeWaitHook::Timer),
        1 => Some(TimeWaitHook::Fentry),
        2 => Some(TimeWaitHook::Kprobe),
        3 => Some(TimeWaitHook::Poll),
        _ => None,
    };
    let header = Header {
        tcpstate: "0.1.0".into(),
        layout: LAYOUT,
        kernel: "6.18.0".into(),
        host: "example".into(),
        hook: if observer & 128 == 0 {
            Hook::BtfTracepoint
        } else {
            Hook::Tracepoint
        },
        timewait,
        calls: observer & 64 != 0,
        missing: Vec::new(),
        filter: String::new(),
        settings: if observer & 32 == 0 {
            Vec::new()
        } else {
            settings()
        },
        start: START,
        zero: 1_800_000_000_000_000_000,
        boot: 1_800_000_000_000_000_000,
        tick: 4_000_000,
        callers: Callers::parse(SYMBOLS),
        id: 1,
        part: 1,
        begins: START,
        anonymized: Vec::new(),
    };
    let mark = Mark {
        now: START,
        ..Mark::default()
    };
    let mut writer = Writer::new(Vec::new(), &header).expect("memory");
    // More than a block holds is no input that is worth a try.
    let _ = writer.steps(&mark, steps);
    let mark = Mark { number: 1, ..mark };
    writer.finish(&mark).expect("memory").0
}
