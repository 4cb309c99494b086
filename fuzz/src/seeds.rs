//! What fuzzing begins with: the records of real kernels (`tcpstate-user/tests/fixtures/records`), in the shape of each target.
//! `cargo run --bin seeds` in this folder writes them into `corpus`; `cargo xtask fuzz --keep` then keeps what is of use.

use std::{fs, io, path::Path};

use tcpstate_common::{
    record::{Call, CallRecord, RecordKind, SocketRecord, TransitionRecord, flags},
    state::TcpState,
};
use tcpstate_fuzz::{records, steps};
use tcpstate_user::{kernel::Counters, lifecycle::Round, recording::Step, sink::OtherProtocols};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// Records of a seed: long ones are hard to change in a way that matters.
const MOST: usize = 24;
/// What the second byte of an input of `steps` says: settings and system calls are known.
const SETTINGS: u8 = 32;
const CALLS: u8 = 64;
/// How a block is packed.
const FOLDED: u8 = 4;
const FOLDED_BY_LENGTH: u8 = 2;

fn main() -> io::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixtures = here.join("../tcpstate-user/tests/fixtures/records");
    for (number, entry) in fs::read_dir(fixtures)?.enumerate() {
        let path = entry?.path();
        let records = read(&fs::read(&path)?);
        let chunks = records.chunks(MOST).take(2).map(with_calls);
        for (part, records) in chunks.enumerate() {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let name = format!("{name}-{part}");
            // Settings are known of every second one.
            let choice = u8::try_from(number % 256).unwrap_or_default();
            let observer = if part == 0 { SETTINGS | CALLS } else { 0 };
            let keep = |target: &str, bytes: &[u8]| {
                let folder = here.join("corpus").join(target);
                fs::create_dir_all(&folder)?;
                fs::write(folder.join(&name), bytes)
            };
            keep("records", &[&[0], records.concat().as_slice()].concat())?;
            let steps = steps_of(&records);
            keep("steps", &[&[choice, observer], steps.as_slice()].concat())?;
            // Steps that differ from nothing are folded as they are.
            let packing = match part {
                0 => FOLDED,
                1 => FOLDED_BY_LENGTH,
                _ => 0,
            };
            let file = unpacked(&steps, observer, packing);
            keep("file", &[&[choice << 2], file.as_slice()].concat())?;
        }
    }
    Ok(())
}

/// The records of a fixture: text up to an empty line, then each with its length.
fn read(fixture: &[u8]) -> Vec<Vec<u8>> {
    let begin = fixture.windows(2).position(|pair| pair == b"\n\n");
    let mut rest = begin.map_or(&[][..], |begin| &fixture[begin + 2..]);
    let mut all = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((record, after)) = after.split_at_checked(length) else {
            break;
        };
        // What a longer layout has behind it is of no use here.
        all.push(record[..records::length(record[0]).min(length)].to_vec());
        rest = after;
    }
    all
}

/// The same with what else the kernel side would have sent: the socket was there already, bind() found its port in use, and
/// somebody accepted it.
fn with_calls(records: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for bytes in records {
        let transition = TransitionRecord::read_from_bytes(bytes).ok();
        let begins = transition.filter(|_| all.is_empty());
        all.extend(begins.map(|record| socket(&record).as_bytes().to_vec()));
        all.extend(begins.map(|record| call(Call::Bind, &record).as_bytes().to_vec()));
        all.push(bytes.clone());
        let opens = transition.filter(|record| record.new == TcpState::Established as u8);
        all.extend(opens.map(|record| call(Call::Accept, &record).as_bytes().to_vec()));
    }
    all
}

fn socket(of: &TransitionRecord) -> SocketRecord {
    SocketRecord {
        kind: RecordKind::Socket as u8,
        state: of.old,
        protocol: of.protocol,
        family: of.family,
        flags: flags::TOTALS,
        padding: 0,
        time: of.time,
        cookie: of.cookie,
        socket: of.socket,
        netns_cookie: of.netns_cookie,
        cgroup: of.cgroup,
        inode: 7,
        laddr: of.laddr,
        raddr: of.raddr,
        lport: of.lport,
        rport: of.rport,
        netns: of.netns,
        uid: of.uid,
        retransmits: 0,
        bytes_acked: 1,
        bytes_received: 1,
        srtt_us: 800,
        padding2: 0,
    }
}

fn call(call: Call, of: &TransitionRecord) -> CallRecord {
    CallRecord {
        kind: RecordKind::Call as u8,
        call: call as u8,
        family: of.family,
        protocol: of.protocol,
        port: of.lport,
        time: of.time,
        cookie: of.cookie,
        socket: of.socket,
        netns_cookie: of.netns_cookie,
        cgroup: 1,
        addr: of.laddr,
        netns: of.netns,
        pid: 42,
        tid: 43,
        padding: 0,
        comm: *b"ab\x1b[31m\nde\0\0\0\0\0\0",
    }
}

fn steps_of(records: &[Vec<u8>]) -> Vec<u8> {
    let end = steps::START + 300_000_000_000;
    let losses = |lost| Step::Losses {
        now: end,
        counters: Counters {
            lost,
            not_found: 0,
            passed_over: 0,
            second_looks: 0,
            unobserved: 0,
            other_protocols: OtherProtocols::default(),
        },
        unread: 0,
    };
    let mut steps = vec![losses(0), Step::Cgroup(1, "/system.slice/test.service")];
    let (first, second) = records.split_at(records.len() / 2);
    steps.extend(first.iter().map(|record| Step::Record(record)));
    steps.push(Step::Listed);
    steps.push(Step::Round(Round {
        began: end - 1000,
        ended: end,
        complete: true,
    }));
    steps.push(Step::Unrecorded(1));
    steps.push(losses(3));
    steps.extend(second.iter().map(|record| Step::Record(record)));
    steps.extend([Step::Refresh, Step::Settled(end), Step::End(end), losses(3)]);
    let mut bytes = Vec::new();
    for step in steps {
        step.write(&mut bytes);
    }
    bytes
}

/// The same as a file, with its blocks as they are: whatever is changed in packed ones only breaks the packing.
fn unpacked(steps: &[u8], observer: u8, packing: u8) -> Vec<u8> {
    const PREAMBLE: usize = 24;
    const HEAD: usize = 80;
    let packed = steps::recording(&[], observer);
    let header = u32::from_le_bytes([packed[32], packed[33], packed[34], packed[35]]) as usize;
    let (start, end) = packed.split_at(PREAMBLE + HEAD + header);
    let mut file = start.to_vec();
    let mut head = end[..HEAD].to_vec();
    let (first, second) = steps.split_at(
        // After a step: the first is of a known length.
        steps.len().min(81),
    );
    let mut entries = Vec::new();
    for (number, bytes) in [first, second].into_iter().enumerate() {
        let now = steps::START + number as u64 * 1_000_000_000;
        entries.extend((file.len() as u64).to_le_bytes());
        entries.extend(now.to_le_bytes());
        head[32..40].copy_from_slice(&now.to_le_bytes());
        block(&mut file, &mut head, (2, packing), number as u64, bytes);
    }
    let index = file.len() as u64;
    block(&mut file, &mut head, (3, 0), 2, &entries);
    file.extend(index.to_le_bytes());
    file.extend(crc32fast::hash(&index.to_le_bytes()).to_le_bytes());
    file.extend(b"tcpE");
    file
}

fn block(
    file: &mut Vec<u8>,
    head: &mut [u8],
    (kind, packing): (u8, u8),
    number: u64,
    bytes: &[u8],
) {
    let length = u32::try_from(bytes.len()).unwrap_or_default().to_le_bytes();
    head[4] = kind;
    head[5] = packing;
    head[8..12].copy_from_slice(&length);
    head[12..16].copy_from_slice(&length);
    head[16..24].copy_from_slice(&number.to_le_bytes());
    head[72..76].copy_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    let sum = crc32fast::hash(&head[..76]);
    head[76..80].copy_from_slice(&sum.to_le_bytes());
    file.extend_from_slice(head);
    file.extend_from_slice(bytes);
}
