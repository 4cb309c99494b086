//! Containers and units by the names of their cgroups, with real cgroups. The witness is who was put where.

use std::{fs, io::Read as _, path::PathBuf};

use serde_json::Value;

use crate::{
    server::{CLOSES_FIRST, Server, greeted},
    support::{Tool, nobody_starts, own_netns, skipped, text},
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
    let alone = nobody_starts();
    for (port, count) in [(7921, 3), (7922, 2)] {
        for _ in 0..count {
            let (mut client, _) = greeted(port);
            assert_eq!(client.read(&mut [0]).expect("the end"), 0);
        }
    }
    drop(alone);
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
