//! Missing privileges, missing kernel features, and outputs that fail: a clear message, the right exit code, and nothing
//! left behind.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, TcpStream},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    thread,
};

use nix::sys::signal::{SigHandler, Signal, signal};

use crate::{
    folder::Folder,
    support::{Tool, mount, own_mounts, own_netns, run, skipped, start, tracefs},
};

const NOBODY: u32 = 65_534;

/// Seconds after which a tool that does not end by itself is ended. In an emulated machine it begins after twenty.
const LIMIT: &str = "60";

/// Runs to its end; one that does not end by itself is ended after a while.
fn tcpstate(arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["-s", "INT", LIMIT, env!("CARGO_BIN_EXE_tcpstate")])
        .args(arguments);
    command
}

/// Standard error of a call that must be refused.
fn refused(command: &mut Command) -> String {
    let output = run(command);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

#[test]
fn without_privileges_it_says_which_are_missing() {
    if skipped("without_privileges_it_says_which_are_missing") {
        return;
    }
    let folder = Folder::with_tcpstate("unprivileged");
    let nobody = |arguments: &[&str]| {
        let mut command = Command::new("timeout");
        command
            .arg(LIMIT)
            .arg(folder.tcpstate())
            .args(arguments)
            .uid(NOBODY)
            .gid(NOBODY);
        command
    };
    let message = refused(&mut nobody(&["trace"]));
    assert!(
        message.contains("CAP_BPF and CAP_PERFMON missing; run as root (sudo)"),
        "{message}"
    );
    let output = run(&mut nobody(&["probe"]));
    assert_eq!(output.status.code(), Some(2));
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        report.contains("CAP_BPF and CAP_PERFMON missing"),
        "{report}"
    );
    let because = |line: &&str| line.trim_start().starts_with("because ");
    for reason in report.lines().filter(because) {
        let true_one = ["CAP_BPF and CAP_PERFMON missing", "/sys/kernel/btf/vmlinux"];
        assert!(true_one.iter().any(|one| reason.contains(one)), "{reason}");
    }
}

/// Before Linux 5.11 maps count as locked memory, which only root may have more of.
fn lacks_memory(test: &str, message: &str) -> bool {
    let lacks = message.contains("raise `ulimit -l`");
    if lacks {
        eprintln!("SKIPPED {test}: this kernel counts maps as locked memory");
    }
    lacks
}

#[test]
fn two_capabilities_are_enough() {
    if skipped("two_capabilities_are_enough") {
        return;
    }
    own_netns();
    let folder = Folder::with_tcpstate("capable");
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=+bpf,+perfmon",
        ])
        .args([
            "--ambient-caps=+bpf,+perfmon",
            "--bounding-set=-all,+bpf,+perfmon",
            "--",
            "timeout",
            LIMIT,
        ])
        .arg(folder.tcpstate())
        .args(["trace", "-j", "--duration", "0.3", "--hook", "btf"]);
    let output = run(&mut command);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    if lacks_memory("two_capabilities_are_enough", &message) {
        return;
    }
    assert!(matches!(output.status.code(), Some(0 | 1)), "{message}");
    assert!(
        message.contains("tracing TCP by BTF tracepoint"),
        "{message}"
    );
    // Its own namespace it may read; what it may not is told.
    assert!(
        [
            "there already",
            "no iterator over sockets",
            "no list of the sockets"
        ]
        .iter()
        .any(|told| message.contains(told)),
        "{message}"
    );
}

#[test]
fn memory_that_cannot_be_locked_is_no_error() {
    if skipped("memory_that_cannot_be_locked_is_no_error") {
        return;
    }
    own_netns();
    let mut command = Command::new("prlimit");
    command.args([
        "--memlock=0:0",
        env!("CARGO_BIN_EXE_tcpstate"),
        "trace",
        "--duration",
        "0.2",
    ]);
    let output = run(command.args(["--netns", "self"]));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
}

/// Hides something of the kernel's from the calling thread and what it starts.
fn hide(paths: &[&str]) {
    own_mounts();
    for path in paths {
        if fs::metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
            mount(&["-t", "tmpfs", "none", path]);
        } else {
            mount(&["--bind", "/dev/null", path]);
        }
    }
}

#[test]
fn without_btf_the_classic_tracepoint_is_used_and_the_loss_announced() {
    if skipped("without_btf_the_classic_tracepoint_is_used_and_the_loss_announced") {
        return;
    }
    tracefs();
    hide(&["/sys/kernel/btf/vmlinux"]);
    let output = run(&mut tcpstate(&["trace", "--duration", "0.2", "-L", "1"]));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("by classic tracepoint"), "{message}");
    assert!(
        message.contains(
            "warning: no BTF tracepoint here, and the classic one does not tell:\n  \
             processes: no event says whose it is\n  user ids, "
        ),
        "{message}"
    );
    assert_eq!(message.matches("warning").count(), 1, "{message}");
    let mut asked_for = tcpstate(&["trace", "--hook", "classic", "--duration", "0.2", "-L", "1"]);
    let message = String::from_utf8_lossy(&run(&mut asked_for).stderr).into_owned();
    assert!(
        message.contains("warning: the classic tracepoint does not tell:\n"),
        "{message}"
    );
    assert!(!message.contains("no BTF tracepoint"), "{message}");
    let message = refused(&mut tcpstate(&["trace", "--hook", "btf"]));
    assert!(message.contains("/sys/kernel/btf/vmlinux"), "{message}");
    let message = refused(&mut tcpstate(&["trace", "--netns", "self"]));
    assert!(
        message.contains("it does not know network namespaces"),
        "{message}"
    );
}

#[test]
fn without_btf_and_tracepoint_there_is_one_clear_refusal() {
    if skipped("without_btf_and_tracepoint_there_is_one_clear_refusal") {
        return;
    }
    tracefs();
    hide(&[
        "/sys/kernel/btf/vmlinux",
        "/sys/kernel/tracing",
        "/sys/kernel/debug",
    ]);
    let message = refused(&mut tcpstate(&["trace"]));
    assert!(
        message.contains("this kernel lets us use no hook"),
        "{message}"
    );
    assert!(
        message.contains("BTF tracepoint: /sys/kernel/btf/vmlinux"),
        "{message}"
    );
    assert!(message.contains("mount -t tracefs"), "{message}");
}

#[test]
fn a_hook_that_was_asked_for_is_refused_with_its_own_reason() {
    if skipped("a_hook_that_was_asked_for_is_refused_with_its_own_reason") {
        return;
    }
    tracefs();
    let message = refused(&mut tcpstate(&[
        "trace", "--hook", "classic", "--netns", "self",
    ]));
    for part in [
        "--hook classic does not work here: it does not know network namespaces",
        "--hook auto takes what does",
    ] {
        assert!(message.contains(part), "{message}");
    }
    hide(&["/sys/kernel/tracing", "/sys/kernel/debug"]);
    let message = refused(&mut tcpstate(&["trace", "--hook", "classic"]));
    for part in [
        "--hook classic does not work here: ",
        "mount -t tracefs",
        "--hook auto takes what does",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!message.contains("5.8"), "{message}");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    if skipped("a_closed_pipe_ends_quietly") {
        return;
    }
    own_netns();
    let mut child = start(
        tcpstate(&["trace", "-j", "--netns", "self", "--skip-existing"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let mut messages = BufReader::new(child.stderr.take().expect("its messages"));
    let mut message = String::new();
    while !message.contains("tracing TCP") {
        let before = message.len();
        messages.read_line(&mut message).expect("its messages");
        assert!(message.len() > before, "it does not attach: {message}");
    }
    drop(child.stdout.take());
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 9)).is_err());
    let status = child.wait().expect("it ends by itself");
    let mut more = String::new();
    messages
        .read_line(&mut more)
        .expect("the end of its messages");
    assert_eq!((status.code(), more.as_str()), (Some(0), ""));
}

#[test]
fn an_output_that_fails_is_an_error() {
    if skipped("an_output_that_fails_is_an_error") {
        return;
    }
    let message = refused(&mut tcpstate(&[
        "trace",
        "-o",
        "/dev/full",
        "--duration",
        "0.2",
    ]));
    assert!(
        message.contains("the output cannot be written: /dev/full: No space left on device"),
        "{message}"
    );
}

#[test]
fn an_output_file_is_kept_if_nothing_can_be_attached() {
    if skipped("an_output_file_is_kept_if_nothing_can_be_attached") {
        return;
    }
    let folder = Folder::new("kept");
    let kept = folder.join("kept");
    fs::write(&kept, "precious").expect("written");
    let path = kept.to_str().expect("UTF-8");
    refused(&mut tcpstate(&[
        "trace", "-o", path, "--hook", "classic", "--netns", "self",
    ]));
    assert_eq!(fs::read_to_string(&kept).expect("readable"), "precious");
    let output = run(&mut tcpstate(&[
        "trace",
        "-o",
        path,
        "--duration",
        "0.2",
        "-L",
        "1",
    ]));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        !fs::read_to_string(&kept)
            .expect("readable")
            .contains("precious")
    );
}

#[test]
fn nobody_hears_the_messages() {
    if skipped("nobody_hears_the_messages") {
        return;
    }
    let full = fs::File::options()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    let mut command = tcpstate(&["trace", "--duration", "0.2", "-L", "1"]);
    let child = start(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(full),
    );
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "no panic");
}

#[test]
fn a_lost_terminal_ends_with_a_summary() {
    if skipped("a_lost_terminal_ends_with_a_summary") {
        return;
    }
    own_netns();
    // Who runs the tests with nohup(1) has it ignored, and so would the tool.
    // SAFETY: no handler is put in place.
    unsafe { signal(Signal::SIGHUP, SigHandler::SigDfl) }.expect("the default");
    let tool = Tool::trace(&[]);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 9)).is_err());
    tool.signal(Signal::SIGHUP);
    let printed = tool.wait();
    assert_eq!(printed.status.code(), Some(0));
    assert_eq!(printed.summary()["shown"], 2);
}

#[test]
fn privileges_are_given_up_once_the_hooks_are_in_place() {
    if skipped("privileges_are_given_up_once_the_hooks_are_in_place") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let status = fs::read_to_string(format!("/proc/{}/status", tool.id())).expect("its status");
    let permitted = status
        .lines()
        .find_map(|line| line.strip_prefix("CapPrm:"))
        .expect("a line");
    let permitted = u64::from_str_radix(permitted.trim(), 16).expect("a number");
    // CAP_DAC_READ_SEARCH and CAP_BPF.
    assert_eq!(permitted & !(1 << 2 | 1 << 39), 0, "{permitted:x}");
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 9)).is_err());
    assert_eq!(tool.stop().summary()["shown"], 2);
}

#[test]
fn cgroups_have_names_without_the_privilege_to_open_handles() {
    if skipped("cgroups_have_names_without_the_privilege_to_open_handles") {
        return;
    }
    own_netns();
    let named = Tool::trace(&[]);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 9)).is_err());
    let cgroup = named.stop().transitions()[0]["cgroup"].clone();
    let folder = Folder::with_tcpstate("cgroups");
    let mut command = Command::new("setpriv");
    command
        .args([
            "--bounding-set=-all,+bpf,+perfmon",
            "--inh-caps=-all,+bpf,+perfmon",
            "--",
            "timeout",
            LIMIT,
        ])
        .arg(folder.tcpstate())
        .args(["trace", "-j", "--netns", "self", "--count", "2"]);
    let mut child = start(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let mut messages = BufReader::new(child.stderr.take().expect("its messages"));
    let mut message = String::new();
    // At its end it has failed, and says why.
    while !message.contains("tracing TCP")
        && messages.read_line(&mut message).expect("its messages") > 0
    {}
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 9)).is_err());
    let output = child.wait_with_output().expect("it ends");
    if lacks_memory(
        "cgroups_have_names_without_the_privilege_to_open_handles",
        &message,
    ) {
        return;
    }
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let first: serde_json::Value =
        serde_json::from_str(printed.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["cgroup"], cgroup, "{printed}");
}

#[test]
fn other_protocols_are_counted_and_shown_on_request() {
    if skipped("other_protocols_are_counted_and_shown_on_request") {
        return;
    }
    own_netns();
    let tools = [
        Tool::trace(&[]),
        Tool::trace(&["--protocol", "mptcp"]),
        Tool::trace(&["--protocol", "all"]),
    ];
    let connected = thread::spawn(mptcp_connect)
        .join()
        .expect("the socket calls");
    let [tcp, mptcp, all] = tools.map(Tool::stop);
    if !connected {
        eprintln!("this kernel has no MPTCP: nothing to count");
        return;
    }
    let counted =
        |printed: &crate::support::Printed| printed.summary()["other_protocols"]["mptcp"].clone();
    assert!(
        counted(&tcp).as_u64().is_some_and(|count| count >= 2),
        "{}",
        tcp.out
    );
    assert!(
        tcp.transitions()
            .iter()
            .all(|line| line["protocol"] == "tcp")
    );
    assert!(!mptcp.transitions().is_empty());
    assert!(
        mptcp
            .transitions()
            .iter()
            .all(|line| line["protocol"] == "mptcp"),
        "{}",
        mptcp.out
    );
    assert_eq!(counted(&mptcp), 0);
    assert_eq!(
        all.transitions().len(),
        tcp.transitions().len() + mptcp.transitions().len(),
        "all of them, once"
    );
}

/// An MPTCP socket is refused by a port where nobody listens; `false` if the kernel has none.
fn mptcp_connect() -> bool {
    const IPPROTO_MPTCP: libc::c_int = 262;
    // SAFETY: a call without pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, IPPROTO_MPTCP) };
    if socket < 0 {
        return false;
    }
    // SAFETY: the descriptor is ours and is used nowhere else.
    let socket = unsafe { <TcpStream as std::os::fd::FromRawFd>::from_raw_fd(socket) };
    crate::socket::connect_loopback(&socket, 9).is_err()
}
