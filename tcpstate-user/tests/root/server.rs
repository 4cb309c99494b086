//! Servers of which it is known what they do with a connection, each in a process of its own. A connection tells its client
//! which process that is.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::{
    socket::{abort, reuse_port_listener},
    support::{Killed, start},
};

/// What a server does with each connection.
pub const CLOSES_FIRST: &str = "closes-first";
pub const NEVER_FIRST: &str = "never-first";
pub const LEAKS: &str = "leaks";
pub const RESETS: &str = "resets";
pub const CHILD_CLOSES: &str = "child-closes";
pub const CHILD_ACCEPTS: &str = "child-accepts";
/// How long it leaves a connection in CLOSE_WAIT.
pub const DELAY: Duration = Duration::from_millis(50);

const ROLE: &str = "TCPSTATE_TEST_ROLE";
const PORT: &str = "TCPSTATE_TEST_PORT";
const CGROUP: &str = "TCPSTATE_TEST_CGROUP";

/// This test program once more, as a server named by what it does.
pub struct Server(Killed);

impl Server {
    pub fn start(role: &str, port: u16) -> Self {
        Self::start_in(role, port, None)
    }

    /// In this cgroup, before it has any socket.
    pub fn start_in(role: &str, port: u16, cgroup: Option<&Path>) -> Self {
        let mut child = Killed(start(
            Command::new(std::env::current_exe().expect("this program"))
                .args([
                    "--exact",
                    "server::serve_in_a_process_of_its_own",
                    "--nocapture",
                ])
                .env(ROLE, role)
                .env(PORT, port.to_string())
                .envs(cgroup.map(|cgroup| (CGROUP, cgroup)))
                .stdin(Stdio::null())
                .stdout(Stdio::piped()),
        ));
        let mut output = child.stdout.take().expect("its output");
        let mut seen = String::new();
        while !seen.contains("listening") {
            let mut byte = [0];
            assert_eq!(output.read(&mut byte).expect("its output"), 1, "{seen}");
            seen.push(char::from(byte[0]));
        }
        // It prints nothing more.
        Self(child)
    }

    pub fn pid(&self) -> u64 {
        self.0.id().into()
    }
}

/// Not a test by itself: serves, until it is killed. It tells each client its process id first.
#[test]
fn serve_in_a_process_of_its_own() {
    let (Ok(role), Ok(port)) = (std::env::var(ROLE), std::env::var(PORT)) else {
        return;
    };
    // The name of the main thread is that of the process.
    fs::write("/proc/self/comm", &role).expect("a name");
    if let Some(cgroup) = std::env::var_os(CGROUP) {
        fs::write(Path::new(&cgroup).join("cgroup.procs"), "0").expect("it may move");
    }
    let listener = reuse_port_listener(port.parse().expect("a port"));
    println!("listening");
    if role == CHILD_ACCEPTS {
        child_accepts(&listener);
    }
    let mut leaked = Vec::new();
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        let hello = |mut stream: &TcpStream, pid: u32| {
            stream.write_all(&pid.to_be_bytes()).expect("sent");
        };
        match role.as_str() {
            CLOSES_FIRST => hello(&stream, std::process::id()),
            NEVER_FIRST => {
                hello(&stream, std::process::id());
                assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
                thread::sleep(DELAY);
            }
            LEAKS => {
                hello(&stream, std::process::id());
                assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
                leaked.push(stream);
            }
            RESETS => {
                hello(&stream, std::process::id());
                stream.read_exact(&mut [0]).expect("a byte");
                abort(stream);
            }
            CHILD_CLOSES => child_closes(stream),
            other => panic!("{other}"),
        }
    }
}

/// Leaves the last copy of a socket to a child, which tells its process id and ends.
fn child_closes(stream: TcpStream) {
    let (ours, theirs) = std::io::pipe().expect("a pipe");
    let descriptor = stream.as_raw_fd();
    let go = ours.as_raw_fd();
    // SAFETY: the child makes system calls only, with memory of its own stack, and ends.
    match unsafe { libc::fork() } {
        0 => {
            let mut byte = 0_u8;
            // SAFETY: as above; the descriptors are open copies, the buffers live through the calls.
            unsafe {
                libc::read(go, (&raw mut byte).cast(), 1);
                let pid = libc::getpid().to_be_bytes();
                libc::write(descriptor, pid.as_ptr().cast(), pid.len());
                libc::close(descriptor);
                libc::_exit(0);
            }
        }
        child => {
            assert!(child > 0);
            drop(stream);
            (&theirs).write_all(b"!").expect("the child waits");
            // SAFETY: no pointer is followed.
            let ended = unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            assert_eq!(ended, child);
        }
    }
}

/// Leaves it to a child to accept, a while after there is something to accept. The child tells its process id, and keeps what
/// it got until it is killed with its parent.
fn child_accepts(listener: &TcpListener) -> ! {
    let descriptor = listener.as_raw_fd();
    // SAFETY: the child makes system calls only, with memory of its own stack, and never returns.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    loop {
        if child == 0 {
            // SAFETY: as above; null asks for no address, the buffer lives through the call.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                let mut waits = libc::pollfd {
                    fd: descriptor,
                    events: libc::POLLIN,
                    revents: 0,
                };
                libc::poll(&raw mut waits, 1, -1);
                libc::usleep(200_000);
                let accepted = libc::accept(descriptor, std::ptr::null_mut(), std::ptr::null_mut());
                let pid = libc::getpid().to_be_bytes();
                libc::write(accepted, pid.as_ptr().cast(), pid.len());
            }
        }
        // SAFETY: it waits for a signal.
        unsafe { libc::pause() };
    }
}

/// Connects, and learns whom to.
pub fn greeted(port: u16) -> (TcpStream, u64) {
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection");
    let mut pid = [0; 4];
    client.read_exact(&mut pid).expect("a process id");
    (client, u32::from_be_bytes(pid).into())
}
