//! Commands as users give them, on a recording that somebody has made up. What they print must be well-formed whatever is in it.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::OsString,
    fs::{self, File},
    io::{self, IsTerminal as _, Seek as _, SeekFrom, Write as _},
    os::fd::AsRawFd as _,
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use tcpstate_user::{cli::CommandLine, message::overhear};

/// The formats of output.
const FORMATS: [&[&str]; 4] = [&["-j"], &["-s"], &["-w"], &[]];
/// What can be looked at, and how.
const VIEWS: [&[&str]; 16] = [
    &["conns", "-t"],
    &["conns", "--running", "-T"],
    &["trace", "-T"],
    &["closers", "--by", "process,remote,container"],
    &["hist", "--by", "cgroup"],
    &["closers", "8760h"],
    &["trace", "--state", "time_wait", "--comm", "nginx"],
    &["conns", "--max-connections", "2"],
    &["timewait"],
    &["timewait", "1h", "--by", "remote,uid"],
    &["states", "--by", "process,state"],
    &["states", "--by", "cidr,service"],
    &["states", "--leaks", "--older", "0"],
    &["states", "--leaks", "--by", "listener"],
    &["hist", "--by", "listener,remote", "--linear"],
    &["trace", "--max-connections", "1"],
];
/// The part that is looked at.
const WINDOWS: [&[&str]; 4] = [
    &[],
    &["--since", "+1s"],
    &["--since", "+1s", "--skip-earlier", "--until", "+20s"],
    &["--until", "+1s", "--netns", "7"],
];

/// Commands besides the views, which have the numbers below.
const INFO: u16 = 256;
const DOCTOR: u16 = 512;
const JSON: u16 = 1024;

/// Files that are in memory only, and the commands that were tried on them: understanding those takes longer than what follows.
pub struct Files {
    recording: File,
    output: File,
    commands: HashMap<u16, CommandLine>,
}

thread_local! {
    static FILES: RefCell<Files> = RefCell::new(Files::new());
}

/// Tries something on a recording.
pub fn on(recording: &[u8], tries: impl FnOnce(&mut Files)) {
    FILES.with_borrow_mut(|files| {
        write(&mut files.recording, recording);
        tries(files);
    });
}

impl Files {
    fn new() -> Self {
        let file =
            |name| File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
        Self {
            recording: file(c"recording"),
            output: file(c"output"),
            commands: HashMap::new(),
        }
    }

    /// The view with this number.
    pub fn show(&mut self, choice: u8) {
        let number = usize::from(choice);
        let format = FORMATS[number % 4];
        let view = VIEWS[number / 4 % 8 + number / 128 * 8];
        let window = WINDOWS[number / 32 % 4];
        write(&mut self.output, &[]);
        let output = path(&self.output);
        let files = [
            "--from".into(),
            path(&self.recording),
            "--output".into(),
            output,
        ];
        let words = [view, format, window].concat();
        let _ = self.run(u16::from(choice), &words, &files);
        let shown = fs::read(path(&self.output)).expect("a file");
        well_formed(&shown, format == ["-j"]);
        if view == ["timewait"] {
            self.answer(
                DOCTOR | u16::from(choice),
                &[&["doctor"], window].concat(),
                "--from",
            );
        }
    }

    /// What is in it.
    pub fn info(&mut self) {
        self.answer(INFO, &["info"], "--");
    }

    /// Asks twice, once for JSON.
    fn answer(&mut self, key: u16, words: &[&str], flag: &str) {
        for (key, json) in [(key, &[][..]), (key | JSON, &["-j"])] {
            let file = [flag.into(), path(&self.recording)];
            let printed = self.run(key, &[words, json].concat(), &file);
            // Colours are for a terminal.
            if !(json.is_empty() && io::stdout().is_terminal()) {
                well_formed(&printed, !json.is_empty());
            }
        }
    }

    /// What it prints, besides rows and reports.
    fn run(&mut self, key: u16, words: &[&str], files: &[OsString]) -> Vec<u8> {
        let words = ["tcpstate"].iter().chain(words).map(OsString::from);
        let words = words.chain(files.iter().cloned());
        let command = self
            .commands
            .entry(key)
            .or_insert_with(|| CommandLine::parse(words).expect("a good command line"));
        // An error is an answer, too.
        let (_, heard) = overhear(|| command.run());
        for message in heard.said {
            well_formed(message.as_bytes(), false);
        }
        heard.printed
    }
}

fn well_formed(shown: &[u8], json: bool) {
    let shown = std::str::from_utf8(shown).expect("UTF-8");
    for line in shown.lines() {
        assert!(!line.contains(char::is_control), "{line:?}");
        if json {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        }
    }
}

fn write(file: &mut File, bytes: &[u8]) {
    file.set_len(0).expect("it is ours");
    file.seek(SeekFrom::Start(0)).expect("a file");
    file.write_all(bytes).expect("memory");
}

fn path(file: &File) -> OsString {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
