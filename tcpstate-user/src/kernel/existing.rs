//! The sockets that were there before the hooks: their owners, and the kernel's list of them in every network namespace.
//!
//! The list comes through the ring buffer, where it stands in order with what happens meanwhile. This thread only says when
//! the next part of it may be sent. It keeps the privileges that this takes, and gives them up by ending.

use std::{
    fs::File,
    io::{ErrorKind, Read as _},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use aya::{
    Btf, Ebpf,
    programs::{Iter, ProgramError},
};
use nix::sched::{CloneFlags, setns};
use tcpstate_common::record::SocketRecord;
use tokio::sync::mpsc;

use super::{in_initial_pid_namespace, netns, owners::Owners, plan::Missing};
use crate::filter::Netns;

/// How long looking for the owners of sockets, and for namespaces, may take.
const SEARCH: Duration = Duration::from_secs(5);

/// What to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Every socket, and its owner before.
    All,
    /// Minisockets only.
    MiniSockets,
}

impl List {
    const BOTH: [Self; 2] = [Self::All, Self::MiniSockets];

    const fn program(self) -> &'static str {
        match self {
            Self::All => "existing",
            Self::MiniSockets => "minisockets",
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Progress {
    /// The owners are known.
    Owners(Owners),
    /// A part of the list is in the ring buffer.
    Part,
    /// All of it is: what could not be had.
    End(Vec<Missing>),
}

/// Loads the programs; nothing is read yet.
pub(super) fn load(ebpf: &mut Ebpf, kernel_types: &Btf) -> Result<(), ProgramError> {
    List::BOTH
        .into_iter()
        .try_for_each(|list| program(ebpf, list)?.load("tcp", kernel_types))
}

/// Reads lists of sockets when it is told to; dropping it ends that.
#[derive(Debug)]
pub struct Reader {
    orders: std::sync::mpsc::Sender<List>,
    progress: mpsc::Receiver<Progress>,
}

impl Reader {
    /// For one namespace or for all. `buffer` is the size of the ring buffer.
    #[must_use]
    pub fn new(ebpf: Arc<Mutex<Ebpf>>, only: Option<Netns>, buffer: u32) -> Self {
        let (orders, received) = std::sync::mpsc::channel();
        // One part waits in the ring buffer, one is being sent.
        let (sender, progress) = mpsc::channel(1);
        thread::spawn(move || {
            for list in received {
                let missing = read(&ebpf, list, only, buffer, &sender);
                if sender.blocking_send(Progress::End(missing)).is_err() {
                    break;
                }
            }
        });
        Self { orders, progress }
    }

    /// Has a list read.
    pub fn read(&self, list: List) {
        // It only fails if the thread has panicked; then `next` says that this is the end.
        let _ = self.orders.send(list);
    }

    /// What happens next.
    pub async fn next(&mut self) -> Progress {
        let progress = self.progress.recv().await;
        progress.unwrap_or_else(|| {
            Progress::End(vec![Missing {
                what: "thread that reads the list of sockets".to_owned(),
                loses: "sockets that were there before".to_owned(),
            }])
        })
    }
}

fn read(
    ebpf: &Mutex<Ebpf>,
    list: List,
    only: Option<Netns>,
    buffer: u32,
    sender: &mpsc::Sender<Progress>,
) -> Vec<Missing> {
    let mut missing = Vec::new();
    if list == List::All {
        let owners = owners(&mut missing);
        if sender.blocking_send(Progress::Owners(owners)).is_err() {
            return missing;
        }
    }
    let (namespaces, complete) = netns::all(SEARCH);
    if !complete && only.is_none() {
        missing.push(Missing {
            what: "time to look for all network namespaces".to_owned(),
            loses: "sockets of other namespaces that were there before".to_owned(),
        });
    }
    let mut failed = 0_usize;
    let mut seen = 0_usize;
    // Ours first: to be there takes no privilege, and there is no way back without one.
    let ours = netns::own();
    let wanted = |(inode, _): &(&u32, &File)| only.is_none_or(|only| only.inode == **inode);
    let (first, others): (Vec<_>, Vec<_>) = namespaces
        .iter()
        .filter(wanted)
        .partition(|(inode, _)| Some(**inode) == ours);
    // A socket is one byte to read, and a record in the ring buffer.
    let part = (buffer as usize / 16 / size_of::<SocketRecord>()).clamp(1, 4096);
    for (inode, namespace) in first.into_iter().chain(others) {
        seen += 1;
        let enter = (Some(*inode) != ours).then_some(namespace);
        match read_namespace(ebpf, list, enter, part, sender) {
            Ok(true) => {}
            Ok(false) => return missing,
            Err(error) => {
                failed += 1;
                if failed == 1 {
                    missing.push(Missing {
                        what: format!(
                            "list of the sockets of network namespace {inode}: {error:#}"
                        ),
                        loses: "sockets that were there before, of this and maybe other namespaces"
                            .to_owned(),
                    });
                }
            }
        }
    }
    if seen == 0 {
        missing.push(Missing {
            what: "network namespace that could be entered".to_owned(),
            loses: "sockets that were there before".to_owned(),
        });
    }
    missing
}

fn owners(missing: &mut Vec<Missing>) -> Owners {
    let loses = "some processes of sockets that were there before".to_owned();
    if !in_initial_pid_namespace() {
        missing.push(Missing {
            what: "process ids of the host in this container".to_owned(),
            loses,
        });
        return Owners::default();
    }
    let owners = Owners::scan(SEARCH);
    if owners.cut_short {
        missing.push(Missing {
            what: "time or room for the files of all processes".to_owned(),
            loses,
        });
    }
    owners
}

/// Sends the sockets of a namespace (that we are in, or enter), part by part; `false` if nobody listens any more.
fn read_namespace(
    ebpf: &Mutex<Ebpf>,
    list: List,
    namespace: Option<&File>,
    part: usize,
    sender: &mpsc::Sender<Progress>,
) -> anyhow::Result<bool> {
    if let Some(namespace) = namespace {
        setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter it")?;
    }
    // The list is that of the namespace in which it is opened.
    let mut sockets = {
        let mut ebpf = ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let program = program(&mut ebpf, list)?;
        let link = program.attach()?;
        program.take_link(link)?.into_file()?
    };
    let mut bytes = vec![0; part];
    loop {
        match sockets.read(&mut bytes) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) =>
            {
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        if sender.blocking_send(Progress::Part).is_err() {
            return Ok(false);
        }
    }
}

fn program(ebpf: &mut Ebpf, list: List) -> Result<&mut Iter, ProgramError> {
    ebpf.program_mut(list.program())
        .ok_or(ProgramError::NotLoaded)?
        .try_into()
}
