//! What the tests on the real kernel share: a network namespace of their own, and `tcpstate` running beside them.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::{Ipv4Addr, SocketAddr},
    ops::{Deref, DerefMut},
    os::fd::AsRawFd as _,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread::JoinHandle,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Says whether this test is to be left out, which only `TCPSTATE_SKIP_ROOT=1` can ask for.
pub fn skipped(test: &str) -> bool {
    if std::env::var_os("TCPSTATE_SKIP_ROOT").is_some_and(|value| value == "1") {
        eprintln!("SKIPPED {test}: it needs root, and TCPSTATE_SKIP_ROOT is set");
        return true;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "{test} needs root: run `cargo xtask test`, or leave such tests out with TCPSTATE_SKIP_ROOT=1"
    );
    false
}

/// Whether system calls can be watched.
pub fn calls_work() -> bool {
    probe()["system_calls"]["works"] == true
}

/// Whether they cannot; says so then.
pub fn lacks_calls(test: &str) -> bool {
    let lacks = !calls_work();
    if lacks {
        eprintln!("SKIPPED {test}: {}", probe()["system_calls"]["reason"]);
    }
    lacks
}

/// How many connections a test that makes thousands shall make instead: fewer where that takes long, or where a reader may not run
/// for seconds (an emulated machine).
pub fn connections_asked_for() -> Option<u16> {
    let asked_for = std::env::var("TCPSTATE_TEST_CONNECTIONS").ok()?;
    asked_for.parse().ok()
}

/// What `tcpstate probe -j` says of this kernel.
pub fn probe() -> Value {
    let mut probe = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
    probe
        .args(["probe", "-j"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let output = start(&mut probe).wait_with_output().expect("it ends");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// The exact ways of observing the life of TIME_WAIT that work on this kernel; `TCPSTATE_TEST_TIMEWAIT` picks one. Who has
/// found out already says so in `TCPSTATE_TEST_OBSERVERS`.
pub fn observers() -> &'static [String] {
    static OBSERVERS: OnceLock<Vec<String>> = OnceLock::new();
    OBSERVERS.get_or_init(|| {
        let wanted = std::env::var("TCPSTATE_TEST_TIMEWAIT").ok();
        if let Ok(known) = std::env::var("TCPSTATE_TEST_OBSERVERS") {
            let known = known.split(',').filter(|observer| !observer.is_empty());
            return known.map(str::to_owned).collect();
        }
        probe()["timewait_observers"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|report| report["works"] == true)
            .map(|report| text(&report["observer"]).to_owned())
            .filter(|observer| observer != "poll")
            .filter(|observer| wanted.as_ref().is_none_or(|wanted| wanted == observer))
            .collect()
    })
}

/// Whether this kernel does not let the life of TIME_WAIT be observed exactly; says so then.
pub fn lacks_timewait(test: &str) -> bool {
    if observers().is_empty() {
        eprintln!("SKIPPED {test}: this kernel does not let TIME_WAIT be observed");
    }
    observers().is_empty()
}

/// Runs a scenario once for every way of observing the life of TIME_WAIT, all at the same time, each in a thread and a network
/// namespace of its own. If there is none, the test is skipped, and says so.
pub fn for_each_observer(test: &str, scenario: impl Fn(&str) + Sync) {
    if skipped(test) || lacks_timewait(test) {
        return;
    }
    let scenario = &scenario;
    let failed: Vec<&str> = std::thread::scope(|scope| {
        let running: Vec<_> = observers()
            .iter()
            .map(|observer| {
                let thread = std::thread::Builder::new().name(format!("{test}: {observer}"));
                let run = move || {
                    own_netns();
                    scenario(observer);
                };
                let handle = thread.spawn_scoped(scope, run).expect("a thread");
                (observer.as_str(), handle)
            })
            .collect();
        let ended = running
            .into_iter()
            .map(|(observer, handle)| (observer, handle.join()));
        ended
            .filter(|(_, result)| result.is_err())
            .map(|(observer, _)| observer)
            .collect()
    });
    assert!(failed.is_empty(), "failed with {failed:?}");
}

/// Puts the calling thread into a network namespace of its own, which ends with the last socket and thread in it.
pub fn own_netns() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of our own");
    loopback(true);
    sysctl("net/ipv4/tcp_congestion_control", "reno");
    sysctl("net/ipv4/ip_local_port_range", "2000 65000");
}

/// Sets one of the namespace's own settings.
pub fn sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/{name}"), value).unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// Switches the loopback interface of the namespace on or off.
pub fn loopback(up: bool) {
    let socket =
        std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket for the ioctl");
    // SAFETY: `ifreq` is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(*b"lo") {
        *slot = libc::c_char::try_from(byte).expect("ASCII");
    }
    let flags = if up { libc::IFF_UP } else { 0 };
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("a small flag");
    // SAFETY: the request lives through the call, and this ioctl reads one `ifreq`.
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as libc::Ioctl,
            &raw mut request,
        )
    };
    assert_eq!(
        result,
        0,
        "switching lo: {}",
        std::io::Error::last_os_error()
    );
}

/// Who starts a process writes, who closes sockets and wants to be the one who closed them reads: a process just started
/// holds copies of all our sockets until it runs its own program, and may be the last to close them. `tcpstate` tells.
static STARTING: RwLock<()> = RwLock::new(());

/// As long as this is held, no test starts a process.
pub fn nobody_starts() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

/// For who starts one in a way of its own.
pub fn nobody_else_starts() -> RwLockWriteGuard<'static, ()> {
    STARTING.write().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a process.
pub fn start(command: &mut Command) -> Child {
    let _starting = nobody_else_starts();
    command.spawn().expect("a process can be started")
}

/// A process that does not outlive who holds it, also if the test fails.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Fails if it has ended, which is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Deref for Killed {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Killed {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

/// Runs a process to its end.
pub fn run(command: &mut Command) -> Output {
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    start(command).wait_with_output().expect("it ends")
}

/// `tcpstate` running beside the test; killed if the test fails.
pub struct Tool {
    child: Killed,
    lines: JoinHandle<String>,
    messages: JoinHandle<String>,
}

/// What it printed, and how it ended.
pub struct Printed {
    pub out: String,
    pub err: String,
    pub status: ExitStatus,
}

impl Tool {
    /// Starts `tcpstate trace -j` for the namespace of the calling thread, full sockets only, and waits until its hooks
    /// are in place.
    pub fn trace(flags: &[&str]) -> Self {
        Self::start(
            &[
                &["trace", "-j", "--netns", "self", "--timewait", "off"],
                flags,
            ]
            .concat(),
        )
    }

    /// The same with the life of TIME_WAIT, observed in this way.
    pub fn timewait(observer: &str) -> Self {
        Self::start(&["trace", "-j", "--netns", "self", "--timewait", observer])
    }

    /// Starts `tcpstate` with these arguments, and waits until it has found the sockets that are there already, unless they
    /// are to be left out: while the kernel lists a socket it holds it, and an acknowledgement that comes just then leads to no
    /// minisocket.
    pub fn start(arguments: &[&str]) -> Self {
        if arguments.contains(&"--skip-existing") {
            return Self::start_early(arguments);
        }
        Self::start_until(arguments, "there already")
    }

    /// Starts `tcpstate` with these arguments, and waits only until its hooks are in place.
    pub fn start_early(arguments: &[&str]) -> Self {
        Self::start_until(arguments, "tracing TCP")
    }

    fn start_until(arguments: &[&str], message: &str) -> Self {
        let mut child = Killed(start(
            Command::new(env!("CARGO_BIN_EXE_tcpstate"))
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        ));
        let mut stdout = child.stdout.take().expect("its output");
        let lines = std::thread::spawn(move || {
            let mut text = Vec::new();
            stdout
                .read_to_end(&mut text)
                .expect("its output can be read");
            String::from_utf8(text).expect("its output is UTF-8")
        });
        let mut stderr = BufReader::new(child.stderr.take().expect("its messages"));
        let mut first = String::new();
        while !first.contains(message) {
            let before = first.len();
            stderr
                .read_line(&mut first)
                .expect("its messages can be read");
            assert!(first.len() > before, "tcpstate did not attach: {first}");
        }
        let messages = std::thread::spawn(move || {
            let mut text = first;
            stderr
                .read_to_string(&mut text)
                .expect("its messages can be read");
            text
        });
        Self {
            child,
            lines,
            messages,
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("a signal can be sent");
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as Ctrl-C does.
    pub fn stop(self) -> Printed {
        // The last segments may come in a while after close() (ksoftirqd).
        std::thread::sleep(std::time::Duration::from_millis(50));
        self.signal(Signal::SIGINT);
        let printed = self.wait();
        let code = printed.status.code();
        let well = matches!(code, Some(0 | 1));
        assert!(well, "{}: {}", printed.status, printed.err);
        printed
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> Printed {
        let status = self.child.wait().expect("it ends");
        let join = |reader: JoinHandle<String>| reader.join().expect("the reader does not fail");
        Printed {
            out: join(self.lines),
            err: join(self.messages),
            status,
        }
    }
}

impl Printed {
    /// The JSON objects of one kind of event.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        self.out
            .lines()
            .map(|line| {
                serde_json::from_str::<Value>(line)
                    .unwrap_or_else(|error| panic!("{line}: {error}"))
            })
            .filter(|object| object["event"] == kind)
            .collect()
    }

    pub fn transitions(&self) -> Vec<Value> {
        self.events("transition")
    }

    pub fn summary(&self) -> Value {
        self.events("summary").pop().expect("a summary")
    }

    /// How many events the kernel ran no program for: where a kprobe interrupts another program, and from Linux 7 on where
    /// another task does. That is told, and then no test can say what is missing.
    pub fn missed(&self) -> u64 {
        self.summary()["loss"]["missed"].as_u64().expect("a number")
    }

    /// The transitions of the sockets with this local port, in the order they were printed. An active open is known by
    /// its cookie, since it has no port at first.
    pub fn of_port(&self, port: u16) -> Vec<Value> {
        let all = self.transitions();
        let cookies: Vec<_> = all
            .iter()
            .filter(|line| line["lport"] == port)
            .map(|line| line["cookie"].clone())
            .collect();
        all.into_iter()
            .filter(|line| cookies.contains(&line["cookie"]))
            .collect()
    }
}

/// `old->new` of each transition.
pub fn steps(transitions: &[Value]) -> Vec<String> {
    transitions
        .iter()
        .map(|line| format!("{}->{}", text(&line["old"]), text(&line["new"])))
        .collect()
}

/// A JSON string without its quotes.
pub fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no string"))
}

/// The port of an address.
pub fn port(address: std::io::Result<SocketAddr>) -> u16 {
    address.expect("a socket has an address").port()
}

/// Puts the calling thread into a mount namespace of its own, in which nothing it mounts is seen by others.
pub fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace of our own");
    mount(&["--make-rprivate", "/"]);
}

/// Calls mount(8).
pub fn mount(arguments: &[&str]) {
    let status = start(Command::new("mount").args(arguments))
        .wait()
        .expect("mount ends");
    assert!(status.success(), "mount {arguments:?}");
}

/// Lets the calling thread see tracefs, where the classic tracepoint is described.
pub fn tracefs() {
    own_mounts();
    let format = "/sys/kernel/tracing/events/sock/inet_sock_set_state/format";
    if !std::path::Path::new(format).exists() {
        mount(&["-t", "tracefs", "nodev", "/sys/kernel/tracing"]);
    }
}
