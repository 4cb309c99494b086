//! nginx with a configuration of its own, in the network namespace of the test.

use std::{
    fs,
    process::{Command, Stdio},
};

use crate::{
    folder::Folder,
    support::{Killed, nobody_else_starts, start},
    views::{in_state, wait_until},
};

/// One that runs; ended and cleaned up at the end.
pub struct Nginx {
    _process: Killed,
    _folder: Folder,
}

impl Nginx {
    /// With this within its `http` block; until so many listen in this thread's network namespace.
    pub fn start(name: &str, http: &str, listeners: usize) -> Self {
        let folder = Folder::new(&format!("nginx-{name}"));
        fs::create_dir(folder.join("logs")).expect("a folder");
        let path = folder.to_str().expect("UTF-8");
        let configuration = format!(
            "daemon off; master_process off; pid {path}/pid; error_log {path}/logs/error.log;
             events {{ worker_connections 128; }}
             http {{
                 access_log off; client_body_temp_path {path}; proxy_temp_path {path}/p; fastcgi_temp_path {path}/f;
                 uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;
                 {http}
             }}"
        );
        fs::write(folder.join("nginx.conf"), configuration).expect("written");
        let process = Killed(start(
            Command::new("nginx")
                .args(["-p", path, "-c", "nginx.conf"])
                .stdin(Stdio::null())
                .stderr(Stdio::null()),
        ));
        let nginx = Self {
            _process: process,
            _folder: folder,
        };
        wait_until("nginx listens", || in_state("0A") == listeners);
        nginx
    }
}

/// Whether nginx or a client for it is not there; says so then.
pub fn lacks(test: &str) -> bool {
    let missing = [("nginx", "-v"), ("ab", "-V")]
        .into_iter()
        .find(|(tool, flag)| {
            let mut command = Command::new(tool);
            command
                .arg(flag)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let _starting = nobody_else_starts();
            command.status().is_err()
        });
    if let Some((tool, _)) = missing {
        eprintln!("SKIPPED {test}: {tool} is not installed (Debian: nginx-light, apache2-utils)");
    }
    missing.is_some()
}
