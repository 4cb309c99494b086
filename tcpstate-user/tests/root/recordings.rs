//! Recordings on the real kernel. The witness is a view that looks at the same time: what is shown of the recording must be the
//! same bytes.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
};

use nix::sys::signal::Signal;
use tcpstate_user::recording::Reader;

use crate::support::{Tool, for_each_observer, nobody_starts, own_netns, port, skipped};

/// A folder that is gone when the test is.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("tcpstate-recordings-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("text").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Connections that end in all ways: by FIN of either side, half-closed, by RST, refused.
fn traffic(rounds: usize) {
    let _nobody = nobody_starts();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let to = (Ipv4Addr::LOCALHOST, port(listener.local_addr()));
    for _ in 0..rounds {
        let open = || {
            let client = TcpStream::connect(to).expect("a connection");
            let (server, _) = listener.accept().expect("the other end");
            (client, server)
        };
        let (client, mut server) = open();
        drop(client);
        assert_eq!(server.read(&mut [0]).expect("the end"), 0);
        drop(server);
        let (mut client, server) = open();
        server.shutdown(Shutdown::Write).expect("a half-close");
        assert_eq!(client.read(&mut [0]).expect("the end"), 0);
        drop((client, server));
        // Closed with something unread: a RST.
        let (mut client, server) = open();
        client.write_all(b"x").expect("it is open");
        let mut byte = [0];
        server.peek(&mut byte).expect("it comes");
        drop(server);
        drop(client);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 1)).is_err());
    }
}

fn shown(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
    let output = command.args(arguments).output().expect("tcpstate starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {message}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn a_recording_shows_what_the_view_showed() {
    for_each_observer("a_recording_shows_what_the_view_showed", |observer| {
        let folder = Folder::new(observer);
        // There before, and its owner found through /proc.
        let before = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let to = (Ipv4Addr::LOCALHOST, port(before.local_addr()));
        let client = TcpStream::connect(to).expect("a connection");
        let views: [&[&str]; 6] = [
            &["trace", "-j"],
            &["trace", "-s", "--state", "close"],
            &["conns", "-j", "--running"],
            &["conns", "-s"],
            &["closers", "-j", "--by", "pid,service", "0.2"],
            &["hist", "-j"],
        ];
        let running: Vec<_> = views
            .iter()
            .enumerate()
            .map(|(number, view)| {
                let file = folder.file(&format!("{number}.tcps"));
                let more = ["--netns", "self", "--timewait", observer, "--record", &file];
                (Tool::start_with_existing(&[*view, &more].concat()), file)
            })
            .collect();
        traffic(30);
        drop(client);
        for ((tool, file), view) in running.into_iter().zip(views) {
            let live = tool.stop();
            assert!(live.status.success(), "{}", live.err);
            assert!(live.out.lines().count() > 1, "{view:?}: {}", live.err);
            let replayed = shown(&[view, &["--from", &file]].concat());
            assert_eq!(live.out, replayed, "{view:?}");
            shown(&["info", &file]);
        }
    });
}

#[test]
fn what_record_writes_every_view_can_show() {
    if skipped("what_record_writes_every_view_can_show") {
        return;
    }
    own_netns();
    let folder = Folder::new("record");
    let file = folder.file("all.tcps");
    // Two at the same time see the same connections, but each at times of its own.
    let view = Tool::start_with_existing(&["conns", "-s", "--netns", "self", "--timewait", "off"]);
    let record = ["record", &file, "--netns", "self", "--timewait", "off"];
    let record = Tool::start_with_existing(&record);
    traffic(100);
    let recorded = record.stop();
    assert!(recorded.status.success(), "{}", recorded.err);
    assert!(recorded.out.is_empty() && recorded.err.contains("nothing lost"));
    let live = view.stop();
    let ends = |out: &str| -> Vec<String> {
        let rows = out.lines().skip(1);
        let mut ends: Vec<_> = rows
            .map(|row| {
                let cells: Vec<_> = row.split(',').collect();
                // The ends, and how it went; not the times, which each has of its own.
                [&cells[5..9], &cells[11..14]].concat().join(",")
            })
            .collect();
        ends.sort();
        ends
    };
    let replayed = shown(&["conns", "-s", "--from", &file]);
    assert!(ends(&live.out).len() >= 700, "{}", live.out);
    assert_eq!(ends(&live.out), ends(&replayed));
}

#[test]
fn an_anonymized_recording_has_no_address_and_no_name() {
    if skipped("an_anonymized_recording_has_no_address_and_no_name") {
        return;
    }
    own_netns();
    let folder = Folder::new("anonymized");
    let plain = folder.file("plain.tcps");
    let other = folder.file("other.tcps");
    // There before, so that owners are looked up.
    let before = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let record = |file: &str, more: &[&str]| {
        let flags = ["record", file, "--netns", "self", "--cidr", "127.0.0.1/32"];
        Tool::start_with_existing(&[&flags, more].concat())
    };
    let both = [
        record(&plain, &[]),
        record(&other, &["--anonymize", "addresses,names"]),
    ];
    traffic(5);
    drop(before);
    for tool in both {
        let recorded = tool.stop();
        assert!(recorded.status.success(), "{}", recorded.err);
    }
    let unpacked = |file: &str| {
        let file = fs::File::open(file).expect("a file");
        let mut reader = Reader::new(file).expect("a recording");
        let mut all = serde_json::to_vec(reader.header()).expect("JSON");
        while reader.next_block().expect("a whole recording").is_some() {
            for step in reader.steps() {
                step.expect("a step").write(&mut all);
            }
        }
        all
    };
    let has = |all: &[u8], secret: &[u8]| all.windows(secret.len()).any(|some| some == secret);
    let (before, after) = (unpacked(&plain), unpacked(&other));
    let comm = fs::read_to_string("/proc/self/comm").expect("a name");
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
    let host = format!("\"host\":\"{}\"", host.trim());
    let mut secrets: Vec<&[u8]> = vec![
        &[0xff, 0xff, 127, 0, 0, 1],
        b"127.0.0.1",
        comm.trim().as_bytes(),
        host.as_bytes(),
    ];
    let cgroup = fs::read_to_string("/proc/self/cgroup").expect("a cgroup");
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"));
    if let Some(path) = path.filter(|path| !path.is_empty()) {
        secrets.push(path.as_bytes());
    }
    for secret in secrets {
        let shown = String::from_utf8_lossy(secret);
        assert!(has(&before, secret), "{shown}");
        assert!(!has(&after, secret), "{shown}");
    }
    let rows = |file: &str| shown(&["conns", "-s", "--from", file]).lines().count();
    assert_eq!(rows(&plain), rows(&other));
}

#[test]
fn the_last_parts_are_kept_and_read_as_one() {
    if skipped("the_last_parts_are_kept_and_read_as_one") {
        return;
    }
    own_netns();
    let folder = Folder::new("rotate");
    let file = folder.file("some.tcps");
    let tool = Tool::start(&["record", &file, "--netns", "self", "--rotate", "64K,2"]);
    traffic(3000);
    let printed = tool.stop();
    assert!(printed.status.success(), "{}", printed.err);
    let mut parts: Vec<_> = fs::read_dir(&folder.0)
        .expect("the folder")
        .map(|entry| entry.expect("a file").path())
        .collect();
    parts.sort();
    assert_eq!(parts.len(), 2, "{parts:?}");
    let transitions = |file: &str| -> u64 {
        let info: serde_json::Value =
            serde_json::from_str(&shown(&["info", "-j", file])).expect("one JSON object");
        info["transitions"].as_u64().expect("a number")
    };
    let part = |number: usize| transitions(parts[number].to_str().expect("text"));
    // The last one may have just begun.
    assert!(part(0) > 100);
    assert_eq!(transitions(&file), part(0) + part(1));
    // Each can be read without the others, and without a name that says which.
    let first = parts[0].to_str().expect("text");
    assert!(shown(&["trace", "-s", "--from", first]).lines().count() > 100);
    // How many connections end in them depends on where they were cut.
    assert!(shown(&["conns", "-s", "--from", &file]).lines().count() > 1);
    let last = part(1);
    fs::remove_file(&parts[0]).expect("the part");
    assert_eq!(transitions(&file), last);
}

#[test]
fn a_recorder_that_is_killed_leaves_what_it_has_written() {
    if skipped("a_recorder_that_is_killed_leaves_what_it_has_written") {
        return;
    }
    own_netns();
    let folder = Folder::new("kill");
    let file = folder.file("killed.tcps");
    let tool = Tool::start(&["record", &file, "--netns", "self"]);
    traffic(10);
    let long_enough = std::time::Duration::from_secs(10);
    let began = std::time::Instant::now();
    let header = fs::metadata(&file).expect("the file").len();
    while fs::metadata(&file).expect("the file").len() == header && began.elapsed() < long_enough {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    tool.signal(Signal::SIGKILL);
    tool.wait();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
    let output = command
        .args(["trace", "-s", "--from", &file])
        .output()
        .expect("tcpstate starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("the end is missing"), "{message}");
    assert!(String::from_utf8_lossy(&output.stdout).lines().count() > 100);
}
