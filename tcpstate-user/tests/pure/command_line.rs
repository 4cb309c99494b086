//! The command line: help, exit codes, and what bad input gets. Nothing here reaches the kernel.

use std::process::{Command, Output};

fn tcpstate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tcpstate"))
        .args(arguments)
        .output()
        .expect("tcpstate starts")
}

/// Standard error of a call that must fail with exit code 2 and print nothing else.
fn refused(arguments: &[&str]) -> String {
    let output = tcpstate(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

#[test]
fn help_and_version_are_no_failures() {
    for arguments in [
        &["--help"][..],
        &["trace", "--help"],
        &["closers", "--help"],
        &["hist", "--help"],
        &["states", "--help"],
        &["timewait", "--help"],
        &["probe", "-h"],
        &["--version"],
    ] {
        let output = tcpstate(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(
            !output.stdout.is_empty() && output.stderr.is_empty(),
            "{arguments:?}"
        );
    }
    assert_eq!(tcpstate(&[]).status.code(), Some(2));
}

/// No flag is called so, and what is wrong is the value.
#[test]
fn negative_numbers_are_values_of_the_flag_before_them() {
    for (command, flag, value, expected) in [
        ("trace", "--pid", "-1", "'--pid <PID>': "),
        ("trace", "-p", "-4", "'--pid <PID>': "),
        ("trace", "-D", "-5", "give ports from 1 to 65535"),
        ("trace", "-L", "-5-7", "give ports from 1 to 65535"),
        ("trace", "--duration", "-1", "give seconds"),
        ("trace", "--duration", "-2m", "give seconds"),
        ("trace", "--count", "-1", "'--count <N>': "),
        ("trace", "--max-connections", "-1", "from 1 to 100000000"),
        ("trace", "--buffer", "-1M", "from 64K to 1G"),
        ("trace", "--since", "-5s", "--since"),
        ("closers", "--top", "-1", "'--top <N>': "),
        ("closers", "--prefix", "-1,3", "up to 32"),
        ("states", "--older", "-1", "give seconds"),
        ("doctor", "--for", "-1", "give seconds"),
        (
            "doctor",
            "--many-time-waits",
            "-4",
            "'--many-time-waits <N>': give a number from 0",
        ),
        ("doctor", "--failed", "-1", "give a number from 1"),
        ("doctor", "--max-connections", "-1", "from 1 to 100000000"),
        ("doctor", "--stay", "-0.5", "give a number above 0"),
        ("record", "--rotate", "-1M,8", "give the size of a file"),
    ] {
        let message = refused(&[command, flag, value]);
        assert!(message.contains(expected), "{command} {flag}: {message}");
        assert!(!message.contains("unexpected argument"), "{message}");
    }
    let recording = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/recordings/format-1.tcps"
    );
    let message = refused(&["trace", "--from", recording, "--since", "-5s"]);
    assert!(
        message.contains("--since -5s: give a time of day"),
        "{message}"
    );
    // These look like numbers, and are flags.
    for flag in ["-4", "-6"] {
        let filtered = ["trace", "--from", recording, "-L", "1", flag];
        assert_eq!(tcpstate(&filtered).status.code(), Some(1), "{flag}");
        let message = refused(&["closers", flag, "soon"]);
        assert!(message.contains("[INTERVAL]"), "{message}");
    }
}

/// What a command always refuses, its help does not offer.
#[test]
fn help_has_what_a_command_takes() {
    for (command, refused_flags, why) in [
        (&["closers"][..], &["--state"][..], "which are no states"),
        (&["timewait"], &["--state"], "timewait shows TIME_WAIT"),
        (
            &["export", "a.tcps", "--to", "jsonl"],
            &["--state"],
            "an export has whole connections",
        ),
        (
            &["record", "/nowhere/a.tcps"],
            &["--pid", "--comm", "--cgroup", "--state"],
            "use it with --from",
        ),
    ] {
        let help = tcpstate(&[command[0], "--help"]).stdout;
        let help = String::from_utf8(help).expect("UTF-8");
        assert!(help.contains("--local-port <PORTS>"), "{help}");
        for flag in refused_flags {
            let offered = help.lines().map(str::trim_start);
            let offered = offered.map(|line| line.trim_start_matches("-p, "));
            let offered = offered.filter(|line| line.starts_with(flag)).count();
            assert_eq!(offered, 0, "{flag}: {help}");
            let value = if *flag == "--state" { "close" } else { "1" };
            let message = refused(&[command, &[flag, value]].concat());
            assert!(message.contains(why), "{flag}: {message}");
        }
    }
    for (command, expected) in [
        ("trace", "States, as old or new"),
        ("conns", "was in at some time"),
        ("states", "States to have columns for"),
        ("hist", "What to measure"),
    ] {
        let help = tcpstate(&[command, "--help"]).stdout;
        let help = String::from_utf8(help).expect("UTF-8");
        assert!(help.contains(expected), "{command}: {help}");
    }
}

/// Each filter costs time for each event, whoever gave it.
#[test]
fn too_many_filters_are_refused() {
    let ports: Vec<_> = (1..=1025).map(|port| port.to_string()).collect();
    let message = refused(&["trace", "-L", &ports.join(",")]);
    let expected = "--local-port: 1025 are too many, 1024 are possible; give ranges (8000-8999)";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn bad_flags_say_what_why_and_what_to_do() {
    for (arguments, expected) in [
        (
            &["trace", "--nonsense"][..],
            "unexpected argument '--nonsense'",
        ),
        (&["nonsense"], "unrecognized subcommand"),
        (&["trace", "-L", "70000"], "ports from 1 to 65535"),
        (&["trace", "-D", "90-80"], "the range ends before it begins"),
        (
            &["trace", "--cidr", "10.0.0.0/33"],
            "a network with a prefix length",
        ),
        (
            &["trace", "--protocol", "udp"],
            "give tcp, mptcp, sctp or all",
        ),
        (&["trace", "--duration", "1e400"], "': give seconds, or a"),
        (&["trace", "--pid", ""], "give process ids from 1 to"),
        (&["trace", "--pid", "1,,2"], "give process ids from 1 to"),
        (
            &["closers", "--top", "99999999999999999999"],
            "give a number from 1 to 18446744073709551615",
        ),
        (
            &["closers", "1", "one"],
            "give a number from 1 to 18446744073709551615",
        ),
        (&["states", "--leaks", "--older", "-0.5"], "or 0 for all"),
        (&["trace", "--duration", "soon"], "90, 1.5, 60s, 2m"),
        (
            &["trace", "--count", "0"],
            "invalid value '0' for '--count <N>'",
        ),
        (&["trace", "--buffer", "3"], "from 64K to 1G"),
        (&["trace", "--max-connections", "0"], "from 1 to 100000000"),
        (&["trace", "-4", "-6"], "cannot be used with"),
        (&["trace", "-j", "-s"], "cannot be used with"),
        (
            &["trace", "--hook", "kprobe"],
            "possible values: auto, btf, classic",
        ),
        (&["trace", "-p", "0"], "invalid value '0'"),
        (&["closers", "0"], "must be more than nothing"),
        (&["closers", "--", "-1"], "give seconds, or a number"),
        (&["closers", "-1"], "unexpected argument '-1'"),
        (&["closers", "0.001"], "give 0.01 seconds or more"),
        (&["hist", "soon"], "90, 1.5, 60s, 2m"),
        (&["hist", "1", "0"], "invalid value '0' for '[COUNT]'"),
        (&["hist", "1", "2", "3"], "unexpected argument '3'"),
        (
            &["closers", "--by", "color"],
            "give process, pid, cgroup, container, uid, netns, listener, service, remote, cidr",
        ),
        (
            &["closers", "--by", "pid,state"],
            "a close has no state of its own; give process",
        ),
        (
            &["hist", "--by", "state"],
            "hist always tells states apart; --state selects some",
        ),
        (
            &["closers", "--sort", "size"],
            "there is no such column; with this --by there are comm, opened, service, closes, local_first",
        ),
        (
            &["closers", "--by", "pid", "--sort", "uid"],
            "there are pid, comm, closes",
        ),
        (&["closers", "--top", "0"], "invalid value '0'"),
        (&["states", "--older", "5"], "--leaks"),
        (
            &["states", "--by", "state", "--sort", "close_wait"],
            "there is no such column",
        ),
        (&["states", "--by", "ports"], "give process, pid"),
        (&["timewait", "--by", "state"], "timewait is of one state"),
        (&["closers", "--prefix", "33"], "up to 32"),
        (&["closers", "-T"], "--time: every report tells when"),
        (&["hist", "-t", "1"], "--timestamp: every report tells"),
        (&["states", "--leaks", "-T"], "leave it out"),
        (&["timewait", "-t", "-j"], "leave it out"),
        (
            &["closers", "--count", "3"],
            "there is one report, at the end",
        ),
        (
            &["closers", "1", "3", "--count", "3"],
            "the number of reports is given twice",
        ),
    ] {
        let message = refused(arguments);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}

#[test]
fn nothing_is_seen_to_stay_longer_than_the_doctor_watches() {
    let message = refused(&["doctor", "--for", "2", "--stay", "60"]);
    let expected = "--stay 60: nothing can be seen to stay so long in 2 s; give --for 67 or more, or --stay 1.8 or less";
    assert!(message.contains(expected), "{message}");
}

/// Each view has its own.
#[test]
fn states_are_those_of_the_view() {
    for (arguments, expected) in [
        (
            &["trace", "--state", "FIN_WAIT_1"][..],
            "give established, syn_sent, syn_recv, fin_wait1, fin_wait2, time_wait, close, close_wait, last_ack, listen, closing\n",
        ),
        (
            &["trace", "--state", "new_syn_recv"],
            "no transition is from or to it; give established",
        ),
        (
            &["conns", "--state", "foo"],
            "give established, syn_sent, syn_recv, fin_wait1, fin_wait2, time_wait, close, close_wait, last_ack, closing\n",
        ),
        (
            &["conns", "--state", "listen"],
            "no connection is in it; give established",
        ),
        (
            &["hist", "--state", "foo"],
            "give established, syn_sent, syn_recv, fin_wait1, fin_wait2, time_wait, close, close_wait, last_ack, closing\n",
        ),
        (
            &["states", "--state", "bound_inactive"],
            "time_wait, close_wait, last_ack, listen, closing; with --leaks, syn_sent, fin_wait1",
        ),
        (
            &["hist", "--sort", "p50", "--by", "pid", "--state", "listen"],
            "no time is measured in it; give established",
        ),
        (
            &["closers", "--state", "close"],
            "closers counts closes, which are no states",
        ),
        (
            &["states", "--state", "close"],
            "no socket is counted in it",
        ),
        (
            &["states", "--leaks", "--state", "time_wait"],
            "--state time_wait: --leaks looks at syn_sent, fin_wait1, fin_wait2, close_wait, last_ack, closing\n",
        ),
        (&["timewait", "--state", "time_wait"], "tcpstate states"),
    ] {
        let message = refused(arguments);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}

/// Nothing that is given is ignored, whatever else is given.
#[test]
fn what_is_for_a_recording_and_what_is_not() {
    let recording = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/recordings/format-1.tcps"
    );
    for flag in ["--since", "--until"] {
        for with in [
            &["doctor"][..],
            &["doctor", "--for", "1"],
            &["trace"],
            &["trace", "--duration", "1"],
            &["trace", "--syscalls", "--timewait", "off"],
            &["closers", "1", "--buffer", "1M"],
            &["conns", "--record", "/nowhere/at.all"],
        ] {
            let message = refused(&[with, &[flag, "13:30"]].concat());
            assert!(message.contains("give one with --from"), "{message}");
        }
    }
    for (view, flag) in [
        ("doctor", "--for=1"),
        ("doctor", "--anonymize"),
        ("trace", "--anonymize"),
        ("trace", "--duration=1"),
        ("conns", "--syscalls"),
        ("timewait", "--syscalls=off"),
        ("closers", "--timewait=auto"),
        ("hist", "--hook=auto"),
        ("states", "--skip-existing"),
        ("trace", "--buffer=1M"),
        ("trace", "--record=/nowhere/at.all"),
    ] {
        let message = refused(&[view, "--from", recording, flag]);
        assert!(message.contains("cannot be used with"), "{view}: {message}");
    }
    let message = refused(&["trace", "--from", recording, "--skip-earlier"]);
    assert!(message.contains("--since"), "{message}");
}

#[test]
fn what_is_not_there_is_said_before_anything_is_attached() {
    for (arguments, expected) in [
        (
            &["trace", "-p", "4194399"][..],
            "--pid 4194399: there is no such process",
        ),
        (
            &["trace", "--netns", "no-such-name"],
            "network namespace \"no-such-name\"",
        ),
        (
            &["trace", "--netns", "1"],
            "no process and no name has the network namespace 1",
        ),
        (
            &["trace", "--netns", "/etc/passwd"],
            "is no network namespace; give a name of `ip netns list`",
        ),
        (
            &["trace", "--netns", "/tmp"],
            "/tmp is no network namespace; give a name of `ip netns list`",
        ),
        (
            &["trace", "--netns", ""],
            "--netns: give a name of `ip netns list`, a path, an inode number, or `self`",
        ),
        (&["trace", "--comm", ""], "--comm: give a name"),
        (
            &["trace", "--cgroup", ""],
            "give a path below the cgroup root",
        ),
        (&["trace", "--cgroup", "/no/such/group"], "cgroup"),
        (&["trace", "--cgroup", "../../.."], "cgroup"),
        (
            &["trace", "-o", "/no/such/folder/file"],
            "/no/such/folder/file: cannot be written",
        ),
    ] {
        let message = refused(arguments);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}

#[test]
fn a_stream_is_no_file() {
    for (arguments, expected) in [
        (&["info", "-"][..], "a recording is a file, no stream"),
        (&["record", "-"], "a recording is a file, no stream"),
        (
            &["trace", "--from", "-"],
            "a recording is a file, no stream",
        ),
        (
            &["conns", "--record", "-"],
            "a recording is a file, no stream",
        ),
        (&["trace", "-o", "-"], "leave it out for standard output"),
        (
            &["export", "a.tcps", "--to", "csv", "-o", "-"],
            "leave it out for standard output",
        ),
    ] {
        let message = refused(arguments);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}

/// A name may have been picked by somebody else, for whoever says `tcpstate info *`.
#[test]
fn names_of_files_are_harmless() {
    let name = "/nowhere/a\u{1b}[31m\nb";
    for arguments in [
        &["info", name][..],
        &["trace", "--from", name],
        &["export", name, "--to", "jsonl"],
        &["trace", "-o", name],
    ] {
        let message = refused(arguments);
        assert!(
            message.contains("/nowhere/a\\u{1b}[31m\\u{a}b: "),
            "{message}"
        );
        assert_eq!(message.matches("No such file").count(), 1, "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn an_answer_that_nobody_can_have_is_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full");
    let recording = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/recordings/format-1.tcps"
    );
    let full = full.expect("it is always full");
    for arguments in [&["info", recording][..], &["doctor", "--from", recording]] {
        let output = Command::new(env!("CARGO_BIN_EXE_tcpstate"))
            .args(arguments)
            .stdout(full.try_clone().expect("a file"))
            .output()
            .expect("tcpstate starts");
        assert_eq!(output.status.code(), Some(2));
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(
            message.contains("the output cannot be written: No space"),
            "{message}"
        );
    }
}

/// Lines that were broken by hand would be broken once more where there is less room.
#[test]
fn help_is_wrapped_once() {
    for command in [
        "trace", "conns", "states", "timewait", "closers", "hist", "doctor", "record", "export",
        "info",
    ] {
        for columns in ["80", "100"] {
            let output = Command::new(env!("CARGO_BIN_EXE_tcpstate"))
                .args([command, "--help"])
                .env("COLUMNS", columns)
                .output()
                .expect("tcpstate starts");
            let help = String::from_utf8(output.stdout).expect("UTF-8");
            let lines: Vec<_> = help.lines().collect();
            for pair in lines.windows(2) {
                let [line, next] = pair else { unreachable!() };
                let table = |line: &str| line.is_empty() || line.starts_with("  ");
                if table(line) || table(next) || line.ends_with(['.', ':']) {
                    continue;
                }
                let word = next.split(' ').next().unwrap_or_default();
                let room = columns.parse::<usize>().expect("a number");
                let length = line.chars().count() + 1 + word.chars().count();
                assert!(length > room, "{command} at {columns}: {line:?}");
            }
        }
    }
}
