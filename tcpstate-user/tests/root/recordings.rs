//! Recordings on the real kernel. The witness is a view that looks at the same time: what is shown of the recording must be the
//! same bytes.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    mount::umount,
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
};
use serde_json::Value;
use tcpstate_user::recording::Reader;

use crate::{
    folder::Folder,
    support::{
        Tool, calls_work, for_each_observer, nobody_starts, own_netns, port, run, skipped, start,
        sysctl,
    },
};

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
    let output = run(command.args(arguments));
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {message}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What fails leaves nothing behind that was not there.
#[test]
fn output_that_nothing_comes_of_is_as_it_was() {
    if skipped("output_that_nothing_comes_of_is_as_it_was") {
        return;
    }
    own_netns();
    let folder = Folder::new("output");
    let (new, old) = (folder.file("new"), folder.file("old"));
    fs::write(&old, "kept").expect("a file");
    for output in [&new, &old] {
        for wrong in [
            &["--record", "/no/such/folder/a.tcps"][..],
            &["--hook", "classic", "--comm", "nobody"],
        ] {
            let trace = ["trace", "--duration", "0.1", "-o", output];
            let printed =
                run(Command::new(env!("CARGO_BIN_EXE_tcpstate")).args([&trace, wrong].concat()));
            let message = String::from_utf8_lossy(&printed.stderr).into_owned();
            assert_eq!(printed.status.code(), Some(2), "{wrong:?}: {message}");
            assert!(!message.contains("cannot be removed"), "{message}");
        }
    }
    assert!(!fs::exists(&new).expect("it can be looked at"));
    assert_eq!(fs::read_to_string(&old).expect("it is there"), "kept");
    let printed = Tool::start_early(&["trace", "--duration", "0.1", "-o", &new]).wait();
    assert!(
        matches!(printed.status.code(), Some(0 | 1)),
        "{}",
        printed.err
    );
    assert!(
        fs::read_to_string(&new)
            .expect("it is there")
            .contains("LOCAL")
    );
}

#[test]
fn a_recording_shows_what_the_view_showed() {
    for_each_observer("a_recording_shows_what_the_view_showed", |observer| {
        let folder = Folder::new(observer);
        // There before, and its owner found through /proc.
        let before = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let to = (Ipv4Addr::LOCALHOST, port(before.local_addr()));
        let client = TcpStream::connect(to).expect("a connection");
        let views: [&[&str]; 8] = [
            &["trace", "-j"],
            &["trace", "-s", "--state", "close"],
            &["conns", "-j", "--running"],
            &["conns", "-s"],
            &["closers", "-j", "--by", "pid,service", "0.2"],
            &["hist", "-j"],
            &["states", "-j"],
            // With the local ports of this namespace.
            &["timewait", "-j"],
        ];
        let running: Vec<_> = views
            .iter()
            .enumerate()
            .map(|(number, view)| {
                let file = folder.file(&format!("{number}.tcps"));
                let more = ["--netns", "self", "--timewait", observer, "--record", &file];
                (Tool::start(&[*view, &more].concat()), file)
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
    let view = Tool::start(&["conns", "-s", "--netns", "self", "--timewait", "off"]);
    let record = ["record", &file, "--netns", "self", "--timewait", "off"];
    let record = Tool::start(&record);
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

/// The kernel side sends what it cannot decide: first events without a port, or a peer.
#[test]
fn a_filtered_recording_shows_nothing_of_others() {
    if skipped("a_filtered_recording_shows_nothing_of_others") {
        return;
    }
    own_netns();
    let folder = Folder::new("filtered");
    let mut filters: Vec<&[&str]> = vec![&["-L", "7301"], &["-D", "7301"]];
    let calls = calls_work();
    if calls {
        filters.push(&["--cidr", "127.0.0.3", "--syscalls"]);
    }
    let view = ["states", "-j", "--netns", "self", "--record"];
    let running: Vec<_> = filters
        .iter()
        .enumerate()
        .map(|(number, filter)| {
            let shown = folder.file(&format!("{number}.tcps"));
            let silent = folder.file(&format!("{number}-silent.tcps"));
            let tool = Tool::start(&[&view[..], &[&shown], filter].concat());
            let record = ["record", &silent, "--netns", "self"];
            (
                tool,
                shown,
                Tool::start(&[&record[..], filter].concat()),
                silent,
            )
        })
        .collect();
    let listen = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a listener");
    let listeners = [listen(7301), listen(7302)];
    let _open: Vec<_> = listeners
        .iter()
        .map(|listener| {
            let to = listener.local_addr().expect("bound");
            assert!(TcpListener::bind(to).is_err(), "it is in use");
            let client = TcpStream::connect(to).expect("a connection");
            (client, listener.accept().expect("the other end"))
        })
        .collect();
    traffic(5);
    // With nothing to show they end with exit code 1.
    let replayed = |view: &[&str], file: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
        let output = run(command.args([view, &["-j", "--from", file]].concat()));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    for ((tool, file, record, silent), filter) in running.into_iter().zip(filters) {
        let live = tool.stop();
        assert!(live.status.success() && record.stop().status.success());
        assert_eq!(live.out, replayed(&["states"], &file), "{filter:?}");
        let key = match filter[0] {
            "-L" => Some("lport"),
            "-D" => Some("rport"),
            _ => None,
        };
        for file in [&file, &silent] {
            let rows = replayed(&["trace"], file);
            let rows = rows
                .lines()
                .map(|row| -> Value { serde_json::from_str(row).expect("JSON") });
            let transitions: Vec<_> = rows.filter(|row| row["event"] == "transition").collect();
            assert_eq!(transitions.is_empty(), key.is_none(), "{filter:?}");
            for row in transitions {
                assert_eq!(key.map(|key| &row[key]), Some(&7301.into()), "{row}");
            }
        }
    }
    if calls {
        // It was watched, and what failed was not at this address.
        let waits = replayed(&["timewait"], &folder.file("2-silent.tcps"));
        assert!(waits.contains("\"failed_binds\":[]"), "{waits}");
    }
}

#[test]
fn what_was_there_before_is_something_recorded() {
    if skipped("what_was_there_before_is_something_recorded") {
        return;
    }
    own_netns();
    let folder = Folder::new("before");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let to = (Ipv4Addr::LOCALHOST, port(listener.local_addr()));
    let client = TcpStream::connect(to).expect("a connection");
    let record = |name: &str, more: &[&str]| {
        let file = folder.file(name);
        let flags = ["record", &file, "--netns", "self", "--duration", "1"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
        let output = run(command.args([&flags[..], more].concat()));
        (output.status.code(), file)
    };
    let (code, file) = record("some.tcps", &[]);
    assert_eq!(code, Some(0));
    let rows = shown(&["conns", "-s", "--running", "--from", &file]);
    assert_eq!(rows.lines().count(), 3, "{rows}");
    let (code, _) = record("none.tcps", &["--skip-existing"]);
    assert_eq!(code, Some(1));
    drop(client);
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
        Tool::start(&[&flags, more].concat())
    };
    let both = [
        record(&plain, &[]),
        record(&other, &["--anonymize=addresses,names"]),
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
            let mut steps = reader.steps();
            while let Some(step) = steps.step() {
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
    let left = " parts, of which the last 2 are left";
    assert!(printed.err.contains(left), "{}", printed.err);
    let mut parts: Vec<_> = fs::read_dir(&*folder)
        .expect("the folder")
        .map(|entry| entry.expect("a file").path())
        .collect();
    parts.sort();
    assert_eq!(parts.len(), 2, "{parts:?}");
    let transitions = |file: &str| -> u64 {
        let info: Value =
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
    let long_enough = Duration::from_secs(10);
    let began = Instant::now();
    let header = fs::metadata(&file).expect("the file").len();
    while fs::metadata(&file).expect("the file").len() == header && began.elapsed() < long_enough {
        std::thread::sleep(Duration::from_millis(50));
    }
    tool.signal(Signal::SIGKILL);
    tool.wait();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
    let output = run(command.args(["trace", "-s", "--from", &file]));
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("the end is missing"), "{message}");
    assert!(String::from_utf8_lossy(&output.stdout).lines().count() > 100);
}

#[test]
fn a_recording_knows_what_namespaces_had_set() {
    if skipped("a_recording_knows_what_namespaces_had_set") {
        return;
    }
    own_netns();
    sysctl("net/ipv4/tcp_fin_timeout", "31");
    let folder = Folder::new("settings");
    let file = folder.file("settings.tcps");
    let tool = Tool::start(&["record", &file, "--netns", "self"]);
    traffic(1);
    assert!(tool.stop().status.success());
    let info: Value = serde_json::from_str(&shown(&["info", "-j", &file])).expect("an object");
    let ours = &info["netns"][0];
    let settings = info["settings"].as_array().expect("an array");
    let [only] = &settings[..] else {
        unreachable!("those of the namespace recorded, and no others: {settings:?}");
    };
    assert_eq!(only["netns"], *ours);
    let values = &only["values"];
    assert_eq!(values["tcp_fin_timeout"], "31");
    assert_eq!(values["ip_local_port_range"], "2000 65000");
    let text = shown(&["info", &file]);
    assert!(text.contains("tcp_fin_timeout 31"), "{text}");
}

/// It is still our child, and a zombie.
fn has_ended(tool: &Tool) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", tool.id())).expect("our child");
    stat.contains(") Z ")
}

#[test]
fn a_full_disk_ends_a_recording_and_what_was_written_can_be_read() {
    if skipped("a_full_disk_ends_a_recording_and_what_was_written_can_be_read") {
        return;
    }
    own_netns();
    let folder = Folder::new("full");
    // Seen by this thread, and by what it starts. There is room for one block at least.
    unshare(CloneFlags::CLONE_NEWNS).expect("mounts of our own");
    let path = folder.to_str().expect("text");
    for arguments in [
        &["--make-rprivate", "/"][..],
        &["-t", "tmpfs", "-o", "size=256k", "tmpfs", path],
    ] {
        let mounted = start(Command::new("mount").args(arguments)).wait();
        assert!(mounted.expect("mount ends").success(), "{arguments:?}");
    }
    let file = folder.file("full.tcps");
    let tool = Tool::start(&["record", &file, "--netns", "self"]);
    let long_enough = Duration::from_secs(60);
    let began = Instant::now();
    while !has_ended(&tool) && began.elapsed() < long_enough {
        traffic(100);
    }
    // It ends by itself.
    let printed = tool.wait();
    assert_eq!(printed.status.code(), Some(2), "{}", printed.err);
    assert!(printed.err.contains("No space left"), "{}", printed.err);
    for wrong in ["LOST", "too slow", "nothing lost"] {
        assert!(!printed.err.contains(wrong), "{}", printed.err);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
    let output = run(command.args(["trace", "-s", "--from", &file]));
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("cut off at byte"), "{message}");
    assert!(String::from_utf8_lossy(&output.stdout).lines().count() > 100);
    fs::remove_file(&file).expect("the recording");
    // A view goes on, and says once why it is not recorded.
    let tool = Tool::start(&["trace", "-s", "--netns", "self", "--record", &file]);
    let began = Instant::now();
    while find_thread(tool.id(), "recorder").is_some() && began.elapsed() < long_enough {
        traffic(100);
    }
    // Much more than a block.
    traffic(500);
    tool.signal(Signal::SIGINT);
    let printed = tool.wait();
    assert_eq!(printed.status.code(), Some(2), "{}", printed.err);
    let said = |what: &str| printed.err.matches(what).count();
    assert_eq!(said("the recording ends here"), 1, "{}", printed.err);
    assert_eq!(said("the recording ends early"), 1, "{}", printed.err);
    assert_eq!(said("No space left"), 2, "{}", printed.err);
    assert_eq!(said("too slow"), 0, "{}", printed.err);
    assert!(printed.err.contains("# nothing lost"), "{}", printed.err);
    umount(path).expect("it was mounted");
}

/// The thread of a process that has this name now.
fn find_thread(process: u32, name: &str) -> Option<libc::pid_t> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    let mut named = threads.flatten().filter(|thread| {
        let comm = fs::read_to_string(thread.path().join("comm"));
        comm.is_ok_and(|comm| comm.trim() == name)
    });
    named.next()?.file_name().into_string().ok()?.parse().ok()
}

/// The thread of a process that has this name, which it gives itself.
fn thread_of(process: u32, name: &str) -> libc::pid_t {
    let began = Instant::now();
    loop {
        if let Some(thread) = find_thread(process, name) {
            return thread;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "no {name}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_slow_disk_costs_records_that_are_counted() {
    if skipped("a_slow_disk_costs_records_that_are_counted") {
        return;
    }
    own_netns();
    let folder = Folder::new("slow");
    let file = folder.file("slow.tcps");
    let more = ["--netns", "self", "--timewait", "off", "--skip-existing"];
    let witness = Tool::start(&[&["closers", "-j"], &more[..]].concat());
    let tool = Tool::start(&[&["record", &file], &more[..]].concat());
    // As if it waited for the disk: the thread that writes stops, and no other.
    let writer = thread_of(tool.id(), "recorder");
    let ptrace = |request, expected: &str| {
        // SAFETY: these requests take no memory of ours.
        let result = unsafe { libc::ptrace(request, writer, 0, 0) };
        assert_eq!(result, 0, "{expected}: {}", std::io::Error::last_os_error());
    };
    ptrace(libc::PTRACE_SEIZE, "it is our child");
    ptrace(libc::PTRACE_INTERRUPT, "it is seized");
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    let stopped = unsafe { libc::waitpid(writer, &raw mut status, libc::__WALL) };
    assert_eq!(stopped, writer);
    // More than the 32 MiB that may wait: each round is 28 records of 163 bytes.
    traffic(9000);
    ptrace(libc::PTRACE_DETACH, "it is stopped");
    traffic(10);
    let recorded = tool.stop();
    let witness = witness.stop();
    assert!(recorded.status.success(), "{}", recorded.err);
    let info: Value = serde_json::from_str(&shown(&["info", "-j", &file])).expect("an object");
    let number = |value: &Value| value.as_u64().expect("a number");
    let unrecorded = number(&info["lost"]["unrecorded"]);
    assert!(unrecorded > 0, "{}", recorded.err);
    let summary = witness.out.lines().last().expect("a summary");
    let summary: Value = serde_json::from_str(summary).expect("an object");
    let seen = number(&summary["events"]);
    let recorded = number(&info["transitions"]) + unrecorded;
    // Each has programs of its own: what one of them is interrupted at may come twice, or not at all.
    let unseen = number(&info["lost"]["missed"]).max(number(&summary["loss"]["missed"]));
    assert!(
        recorded.abs_diff(seen) <= unseen + seen / 10_000,
        "{info} {summary}"
    );
    let text = shown(&["info", &file]);
    let told = format!("{unrecorded}: the disk was too slow");
    assert!(text.contains(&told), "{text}");
    // A view of it says so too, and where.
    let view = shown(&["closers", "-j", "--from", &file]);
    assert!(view.contains("\"unrecorded\""), "{view}");
}
