//! From the path of a cgroup to the container it is, by the names that runtimes and systemd give. Nobody is asked.

/// What a cgroup belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Container<'a> {
    /// Who made it: `docker`, `containerd`, `cri-o`, `podman`, `kubernetes` (the runtime does not show), `lxc`, `nspawn`,
    /// or `systemd` for a unit on the host.
    pub runtime: &'static str,
    /// The container's id (64 hexadecimal digits) or name, or the unit.
    pub id: &'a str,
}

/// Prefixes of scopes, as the runtimes' systemd cgroup drivers name them.
const SCOPES: [(&str, &str); 5] = [
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("nerdctl-", "containerd"),
    ("crio-", "cri-o"),
    ("libpod-", "podman"),
];

impl<'a> Container<'a> {
    /// The container of a cgroup with this path below the root; else the innermost unit of systemd; `None` if it is in
    /// neither.
    #[must_use]
    pub fn of(path: &'a str) -> Option<Self> {
        let mut parent = "";
        let mut found: Option<Self> = None;
        for part in path.split('/') {
            let container = Self::named(part, parent, path);
            // A unit within a container is part of the container.
            let unit = |container: &Self| container.runtime == "systemd";
            if let Some(container) = container
                && found
                    .as_ref()
                    .is_none_or(|found| unit(found) || !unit(&container))
            {
                found = Some(container);
            }
            parent = part;
        }
        found
    }

    fn named(part: &'a str, parent: &str, path: &str) -> Option<Self> {
        let scope = part.strip_suffix(".scope");
        if let Some(scope) = scope {
            for (prefix, runtime) in SCOPES {
                if let Some(id) = scope.strip_prefix(prefix).filter(|id| is_id(id)) {
                    return Some(Self { runtime, id });
                }
            }
            if let Some(id) = scope.strip_prefix("machine-") {
                return Some(Self {
                    runtime: "nspawn",
                    id,
                });
            }
        }
        // With the cgroupfs driver the directory is named by the id, or by prefix and id.
        let (prefix, id) = part.rsplit_once('-').unwrap_or(("", part));
        if is_id(id) {
            let runtime = match (parent, prefix) {
                ("docker", "") => "docker",
                (_, "crio") => "cri-o",
                (_, "libpod") | ("libpod_parent", "") => "podman",
                _ if path.contains("kubepods") => "kubernetes",
                _ => "containerd",
            };
            return (prefix.is_empty() || runtime != "containerd").then_some(Self { runtime, id });
        }
        if let Some(id) = part.strip_prefix("lxc.payload.") {
            return Some(Self { runtime: "lxc", id });
        }
        if part.ends_with(".service") || scope.is_some() {
            return Some(Self {
                runtime: "systemd",
                id: part,
            });
        }
        None
    }
}

/// Container ids are 64 hexadecimal digits.
fn is_id(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::Container;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn the_names_of_the_runtimes() {
        let pod = "kubepods-burstable-pod3a4b5c6d_1111_2222_3333_444455556666";
        let cases = [
            (format!("/docker/{ID}"), Some(("docker", ID))),
            (
                format!("/system.slice/docker-{ID}.scope"),
                Some(("docker", ID)),
            ),
            (
                format!("/system.slice/docker-{ID}.scope/init.scope"),
                Some(("docker", ID)),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/{pod}.slice/cri-containerd-{ID}.scope"
                ),
                Some(("containerd", ID)),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/{pod}.slice/crio-{ID}.scope/container"
                ),
                Some(("cri-o", ID)),
            ),
            (
                format!("/kubepods/besteffort/pod3a4b5c6d/{ID}"),
                Some(("kubernetes", ID)),
            ),
            (
                format!("/kubepods/besteffort/pod3a4b5c6d/crio-{ID}"),
                Some(("cri-o", ID)),
            ),
            (format!("/default/{ID}"), Some(("containerd", ID))),
            (
                format!(
                    "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container"
                ),
                Some(("podman", ID)),
            ),
            (
                format!("/machine.slice/libpod-{ID}.scope"),
                Some(("podman", ID)),
            ),
            (format!("/libpod_parent/libpod-{ID}"), Some(("podman", ID))),
            (
                // Docker within a pod: the innermost container made the socket.
                format!("/kubepods/pod1/{}/docker/{ID}", ID.replace('0', "f")),
                Some(("docker", ID)),
            ),
            (
                "/system.slice/nginx.service".into(),
                Some(("systemd", "nginx.service")),
            ),
            (
                "/user.slice/user-1000.slice/session-3.scope".into(),
                Some(("systemd", "session-3.scope")),
            ),
            (
                "/user.slice/user-0.slice/user@0.service/app.slice/web.service".into(),
                Some(("systemd", "web.service")),
            ),
            (
                "/machine.slice/machine-web.scope/payload".into(),
                Some(("nspawn", "web")),
            ),
            (
                "/lxc.payload.web/system.slice/a.service".into(),
                Some(("lxc", "web")),
            ),
            ("/".into(), None),
            (String::new(), None),
            ("/user.slice".into(), None),
            // Not ids: too short, not hexadecimal, hostile.
            (format!("/docker/{}", &ID[1..]), None),
            (format!("/docker/{}", ID.replace('a', "g")), None),
            ("/docker/\u{1b}[2J".into(), None),
            (format!("/nothing-{ID}"), None),
        ];
        for (path, expected) in cases {
            let found = Container::of(&path).map(|container| (container.runtime, container.id));
            assert_eq!(found, expected, "{path}");
        }
    }
}
