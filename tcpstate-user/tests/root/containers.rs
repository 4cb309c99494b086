//! Containers and units by the names of their cgroups, with real cgroups. The witness is who was put where.

use std::{
    fs,
    io::Read as _,
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    process::Command,
};

use serde_json::Value;

use crate::{
    folder::Folder,
    server::{CLOSES_FIRST, Server, greeted},
    support::{Tool, mount, nobody_starts, own_mounts, own_netns, run, skipped, text},
    views::{groups, wait_until},
};

/// A cgroup that is gone when the test is, and the processes in it before.
pub struct Cgroup(pub PathBuf);

impl Cgroup {
    /// Below the root of the hierarchy; `None` if that is not possible here.
    pub fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let mut mounts = mounts.lines().map(|line| line.split(' '));
        let root = mounts.find_map(|mut words| {
            let (path, kind) = (words.nth(1)?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        })?;
        let path = root.join(name);
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that was killed leaves a moment later.
        let empty =
            || fs::read_to_string(self.0.join("cgroup.procs")).is_ok_and(|procs| procs.is_empty());
        wait_until("the cgroup is empty", empty);
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn containers_and_units_are_known_by_their_cgroups() {
    const TEST: &str = "containers_and_units_are_known_by_their_cgroups";
    if skipped(TEST) {
        return;
    }
    own_netns();
    let id = format!("{:064x}", std::process::id());
    let unit = format!("tcpstate-{}.service", std::process::id());
    let places = [format!("docker-{id}.scope"), unit.clone()].map(|name| Cgroup::new(&name));
    let [Some(container), Some(service)] = &places else {
        eprintln!("SKIPPED {TEST}: no cgroup v2 that we may make cgroups in");
        return;
    };
    let tool = Tool::start(&[
        "closers",
        "-j",
        "--netns",
        "self",
        "--by",
        "container,process",
        "--timewait",
        "off",
    ]);
    let servers = [
        Server::start_in(CLOSES_FIRST, 7921, Some(&container.0)),
        Server::start_in(CLOSES_FIRST, 7922, Some(&service.0)),
    ];
    let without = nobody_starts();
    for (port, count) in [(7921, 3), (7922, 2)] {
        for _ in 0..count {
            let (mut client, _) = greeted(port);
            assert_eq!(client.read(&mut [0]).expect("the end"), 0);
        }
    }
    drop(without);
    let printed = tool.stop();
    drop(servers);
    let rows = groups(&printed, "closers");
    let of = |runtime: &str| -> Vec<(&str, &Value)> {
        let rows = rows.iter().filter(|row| row["runtime"] == runtime);
        rows.map(|row| (text(&row["container"]), &row["local_fin"]))
            .collect()
    };
    assert_eq!(of("docker"), [(id.as_str(), &Value::from(3))], "{rows:?}");
    assert_eq!(
        of("systemd"),
        [(unit.as_str(), &Value::from(2))],
        "{rows:?}"
    );
}

/// What the kernel tells of a connect() that is refused.
fn cgroup_of_connect(flags: &[&str]) -> Option<String> {
    let tool = Tool::trace(flags);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 7311)).is_err());
    let lines = tool.stop().transitions();
    Some(lines.first()?["cgroup"].as_str()?.to_owned())
}

/// `ip netns exec` has a /sys of its own, in which no cgroups are.
#[test]
fn cgroups_have_names_where_they_are_not_mounted() {
    const TEST: &str = "cgroups_have_names_where_they_are_not_mounted";
    if skipped(TEST) {
        return;
    }
    own_netns();
    let Some(cgroup) = cgroup_of_connect(&[]) else {
        eprintln!("SKIPPED {TEST}: no cgroup v2");
        return;
    };
    own_mounts();
    mount(&["-t", "sysfs", "sysfs", "/sys"]);
    assert_eq!(cgroup_of_connect(&[]), Some(cgroup.clone()));
    for name in [&cgroup, &format!("/sys/fs/cgroup{cgroup}")] {
        let shown = cgroup_of_connect(&["--cgroup", name]);
        assert_eq!(shown, Some(cgroup.clone()), "{name}");
    }
}

/// As for who may not mount them either.
#[test]
fn cgroups_without_names_are_said_to_have_none() {
    const LOST: &str = "names of cgroups and containers";
    if skipped("cgroups_without_names_are_said_to_have_none") {
        return;
    }
    own_netns();
    own_mounts();
    mount(&["-t", "sysfs", "sysfs", "/sys"]);
    let folder = Folder::new("nameless");
    let file = &folder.file("a.tcps");
    let without = |arguments: &[&str]| {
        let output = run(Command::new("setpriv")
            .args([
                "--bounding-set=-sys_admin",
                "--",
                env!("CARGO_BIN_EXE_tcpstate"),
            ])
            .args(arguments));
        let (out, err) = (output.stdout, output.stderr);
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (text(out), text(err))
    };
    let (out, _) = without(&["probe"]);
    assert!(out.contains(&format!("\n  {LOST} (no mounted")), "{out}");
    let (_, err) = without(&["closers", "--duration", "0.2", "--record", file]);
    let expected = format!("warning: lost: {LOST} (no mounted cgroup v2 hierarchy: ");
    assert_eq!(err.matches(&expected).count(), 1, "{err}");
    let (out, _) = without(&["info", file]);
    assert!(out.contains(LOST), "{out}");
    let (_, err) = without(&["trace", "--cgroup", "/"]);
    assert!(err.contains("no cgroup v2 hierarchy is mounted"), "{err}");
}
