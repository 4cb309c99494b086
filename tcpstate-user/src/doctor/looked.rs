//! Commands that show more: of what the doctor has looked at, not of something else.

use std::{ffi::OsStr, path::Path};

use super::Diagnosis;
use crate::sink::escape;

/// What was looked at, as its flags say it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looked<'a> {
    /// `--from`: a recording; else this machine.
    pub from: Option<&'a Path>,
    /// `--since`.
    pub since: Option<&'a str>,
    /// `--until`.
    pub until: Option<&'a str>,
    /// `--skip-earlier`.
    pub skip_earlier: bool,
    /// `--netns`.
    pub netns: Option<&'a str>,
}

impl Diagnosis {
    /// Lets the commands that show more look at the same. Those that cannot are left out.
    pub fn look_at(&mut self, looked: &Looked<'_>) {
        for finding in &mut self.findings {
            let commands = std::mem::take(&mut finding.see);
            let same = commands
                .iter()
                .filter_map(|command| looked.command(command));
            finding.see = same.collect();
        }
    }
}

impl Looked<'_> {
    fn flags(&self) -> String {
        let flags = [
            ("--from", self.from.map(Path::as_os_str)),
            ("--since", self.since.map(OsStr::new)),
            ("--until", self.until.map(OsStr::new)),
            ("--netns", self.netns.map(OsStr::new)),
        ];
        let mut all = String::new();
        for (name, value) in flags {
            let Some(value) = value.map(escape::shell) else {
                continue;
            };
            // What begins like a flag is none.
            let between = if value.starts_with('-') { '=' } else { ' ' };
            all.extend([" ", name]);
            all.push(between);
            all.push_str(&value);
        }
        if self.skip_earlier {
            all.push_str(" --skip-earlier");
        }
        all
    }

    fn command(&self, command: &str) -> Option<String> {
        if command.starts_with("tcpstate doctor ") {
            // What it explains is the same everywhere.
            return Some(command.to_owned());
        }
        if let Some(view) = command.strip_prefix("tcpstate ") {
            let end = view.find(' ').unwrap_or(view.len());
            let (view, more) = view.split_at(end);
            return Some(format!("tcpstate {view}{}{more}", self.flags()));
        }
        // Other tools show this machine, as it is now.
        let enter = match (self.from, self.netns) {
            (Some(_), _) => return None,
            (None, None | Some("self")) => return Some(command.to_owned()),
            (None, Some(path)) if path.contains('/') => {
                format!("nsenter --net={}", escape::shell(OsStr::new(path)))
            }
            // None of them knows a namespace by its number.
            (None, Some(number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                return None;
            }
            (None, Some(name)) => format!("ip netns exec {}", escape::shell(OsStr::new(name))),
        };
        Some(format!("{enter} {command}"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Looked;

    #[test]
    fn commands_look_at_the_same() {
        let looked = |from: Option<&'static str>, netns| Looked {
            from: from.map(Path::new),
            netns,
            ..Looked::default()
        };
        let told = |looked: Looked<'_>, command: &str| looked.command(command);
        let trace = "tcpstate trace -j | jq '.reason'";
        let explain = "tcpstate doctor --explain settings";
        let same = |command: &str| Some(command.to_owned());
        for command in [trace, explain, "tcpstate closers 10", "ss -ltn"] {
            assert_eq!(told(looked(None, None), command), same(command));
        }
        let recorded = Looked {
            since: Some("+90s"),
            until: Some("2026-11-22 13:30"),
            skip_earlier: true,
            ..looked(Some("-a.tcps"), Some("7"))
        };
        assert_eq!(
            told(recorded, trace),
            same(
                "tcpstate trace --from=-a.tcps --since +90s --until '2026-11-22 13:30' --netns 7 --skip-earlier -j | jq '.reason'"
            )
        );
        assert_eq!(told(recorded, explain), same(explain));
        assert_eq!(told(recorded, "ss -ltn"), None);
        assert_eq!(
            told(looked(None, Some("a b")), "tcpstate closers"),
            same("tcpstate closers --netns 'a b'")
        );
        for (netns, command) in [
            ("self", Some("ss -ltn")),
            ("blue", Some("ip netns exec blue ss -ltn")),
            (
                "/proc/7/ns/net",
                Some("nsenter --net=/proc/7/ns/net ss -ltn"),
            ),
            ("4026531840", None),
        ] {
            assert_eq!(
                told(looked(None, Some(netns)), "ss -ltn").as_deref(),
                command
            );
        }
    }
}
