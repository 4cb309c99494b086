//! The ring buffers that the kernel side writes its records to, one for each processor, read as if they were one.
//!
//! A ring buffer that all processors write to makes them wait for each other at every record. So each has its own, and
//! records are put in order by their times. That order is as exact as the clock that all of them share
//! (`ktime_get_mono_fast_ns`): a record gets its time after its place in the ring buffer, so whatever is not there yet when we
//! look is younger than the moment before.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
    thread::{self, JoinHandle},
};

use anyhow::{Result, anyhow, bail};
use aya::{
    Ebpf,
    maps::{Map, MapData},
    util::{nr_cpus, online_cpus},
};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF;
use memmap2::{MmapOptions, MmapRaw};
use tcpstate_common::record::TIME_OFFSET;
use tokio::io::unix::AsyncFd;

use super::syscall;

/// The map that says which processor writes where.
pub(super) const MAP: &str = "RINGS";

/// More of them than that are shared.
const MOST: usize = 64;

/// The only size that Linux 5.8 and 5.9 let us put in the map: that of the object (`bpf_map_meta_equal`).
const FIXED: u32 = 1 << 20;

/// All of them.
#[derive(Debug)]
pub struct Rings {
    rings: Vec<Ring>,
    size: u32,
}

/// They are put where the programs look for them.
#[must_use]
pub(super) struct Placing(JoinHandle<io::Result<()>>);

/// The reading end of one.
#[derive(Debug)]
struct Ring {
    fd: OwnedFd,
    /// Page in which we say how far we have read.
    consumer: MmapRaw,
    /// Page in which the kernel says how far it has written, and twice the data behind it, so that no record is cut in two.
    producer: MmapRaw,
    page: usize,
    size: usize,
    /// How far we have read, and how far the kernel knows of.
    at: usize,
    released: usize,
    /// How far the kernel had written when we looked.
    end: usize,
}

/// What is next in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    Nothing,
    /// It is being written.
    Unfinished,
    /// A record of this time.
    Record(u64),
}

/// How many processors may ever be there.
pub(super) fn processors() -> Result<u32> {
    let processors = nr_cpus().map_err(|(path, error)| anyhow!("{path}: {error}"))?;
    Ok(u32::try_from(processors)?)
}

/// What is asked for if nothing is said: 8 MiB for each processor, and no more than 64 MiB while that is 1 MiB for each.
#[must_use]
pub fn default_buffer() -> u32 {
    const EACH: usize = 8 << 20;
    const ALL: usize = 64 << 20;
    const LEAST: usize = 1 << 20;
    let rings = writers().map_or(1, |online| online.len().clamp(1, MOST));
    let all = (EACH * rings).min(ALL.max(LEAST * rings));
    u32::try_from(all).unwrap_or(u32::MAX)
}

fn writers() -> Result<Vec<u32>> {
    online_cpus().map_err(|(path, error)| anyhow!("{path}: {error}"))
}

/// Bytes of each, of so many in all: a power of two, and at least a page.
pub(super) fn size_of_each(all: u32) -> Result<u32> {
    let rings = writers()?.len().clamp(1, MOST);
    let each = all / u32::try_from(rings)?;
    let page = u32::try_from(page_size())?;
    Ok(match each.checked_ilog2() {
        Some(bits) => (1 << bits).max(page),
        None => page,
    })
}

fn page_size() -> usize {
    // SAFETY: it has no requirements.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

impl Rings {
    /// Bytes of each if the kernel refused this size for that reason.
    pub(super) fn other_size(size: u32, error: &io::Error) -> Option<u32> {
        (error.raw_os_error() == Some(libc::EINVAL) && size != FIXED).then_some(FIXED)
    }

    /// Makes a ring buffer of `size` bytes for each processor that runs. One that comes later shares. They may be used when they
    /// are in their places.
    ///
    /// # Errors
    /// If the kernel does not let us.
    pub(super) fn new(ebpf: &mut Ebpf, size: u32) -> Result<(Self, Placing)> {
        let online = writers()?;
        let count = online.len().clamp(1, MOST);
        let Some(Map::ArrayOfMaps(array)) = ebpf.map(MAP) else {
            bail!("the eBPF object has no rings");
        };
        let array = array.fd().as_fd().try_clone_to_owned()?;
        let mut maps = Vec::with_capacity(count);
        for _ in 0..count {
            let ring = aya_obj::Map::new_from_params(BPF_MAP_TYPE_RINGBUF as u32, 0, 0, size, 0);
            maps.push(MapData::create(ring, "RECORDS", None)?);
        }
        let of_cpu = |cpu| {
            let place = online.iter().position(|online| *online == cpu);
            place.unwrap_or(cpu as usize) % count
        };
        let places = (0..processors()?).map(of_cpu).collect();
        let rings = maps
            .iter()
            .map(|map| Ring::new(map, size))
            .collect::<Result<_>>()?;
        let placing = Placing(thread::spawn(move || place(array.as_fd(), &maps, places)));
        Ok((Self { rings, size }, placing))
    }

    /// Bytes of each.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// What becomes readable when one of them fills up.
    pub(super) fn watch(&self) -> Result<Vec<AsyncFd<OwnedFd>>> {
        let watch = |ring: &Ring| {
            let fd = ring.fd.try_clone()?;
            // SAFETY: it owns its descriptor, always the same one, and closes it when dropped.
            Ok(unsafe { AsyncFd::register(fd) }?)
        };
        self.rings.iter().map(watch).collect()
    }

    /// Reads the records that were made until `now` in their order, until there are no more or `take` answers `false`. Says
    /// whether the rest has to wait for one that is being written, or is younger.
    ///
    /// # Errors
    /// Those of `take`.
    pub fn read<E>(
        &mut self,
        now: u64,
        take: impl FnMut(&[u8]) -> Result<bool, E>,
    ) -> Result<bool, E> {
        for ring in &mut self.rings {
            ring.look();
        }
        let outcome = self.merge(now, take);
        for ring in &mut self.rings {
            ring.release();
        }
        outcome
    }

    fn merge<E>(
        &mut self,
        now: u64,
        mut take: impl FnMut(&[u8]) -> Result<bool, E>,
    ) -> Result<bool, E> {
        loop {
            // The one that is next, and until when it is.
            let mut first = None;
            let mut until = now;
            for index in 0..self.rings.len() {
                let time = match self.rings[index].head() {
                    Head::Nothing => continue,
                    Head::Unfinished => return Ok(true),
                    Head::Record(time) => time,
                };
                match first {
                    Some((earliest, _)) if earliest <= time => until = until.min(time),
                    Some((earliest, _)) => {
                        until = until.min(earliest);
                        first = Some((time, index));
                    }
                    None => first = Some((time, index)),
                }
            }
            let Some((_, index)) = first.filter(|(time, _)| *time <= now) else {
                return Ok(false);
            };
            let ring = &mut self.rings[index];
            loop {
                if ring.time(ring.at) > now {
                    // What interrupted it is not younger, and may not come first.
                    return Ok(true);
                }
                let more = take(ring.record());
                ring.advance();
                if !more? {
                    return Ok(false);
                }
                match ring.head() {
                    Head::Record(time) if time <= until => {}
                    _ => break,
                }
            }
        }
    }
}

impl Placing {
    /// Until they are there.
    ///
    /// # Errors
    /// If the kernel does not let us.
    pub(super) fn wait(self) -> io::Result<()> {
        joined(self.0.join())
    }
}

fn joined(outcome: thread::Result<io::Result<()>>) -> io::Result<()> {
    outcome.unwrap_or_else(|_| {
        Err(io::Error::other(
            "the thread that places the rings panicked",
        ))
    })
}

/// Puts each of these maps where it belongs. At each place the kernel waits some milliseconds (`synchronize_rcu`); those who
/// wait at the same time wait together.
fn place(array: BorrowedFd<'_>, maps: &[MapData], places: Vec<usize>) -> io::Result<()> {
    const TOGETHER: usize = 64;
    let places: Vec<_> = (0..).zip(places).collect();
    let put = |&(place, map): &(u32, usize)| syscall::put(array, place, maps[map].fd().as_fd());
    for places in places.chunks(TOGETHER) {
        thread::scope(|scope| {
            let waiting: Vec<_> = places
                .iter()
                .map(|place| scope.spawn(move || put(place)))
                .collect();
            waiting
                .into_iter()
                .try_for_each(|thread| joined(thread.join()))
        })?;
    }
    Ok(())
}

impl Ring {
    /// What stands before each record: its length and two bits, and where its page is (`struct bpf_ringbuf_hdr`).
    const HEADER: usize = 8;
    const UNFINISHED: u32 = 1 << 31;
    const DISCARDED: u32 = 1 << 30;

    fn new(map: &MapData, size: u32) -> Result<Self> {
        let fd = map.fd().as_fd().try_clone_to_owned()?;
        let page = page_size();
        let size = size as usize;
        let consumer = MmapOptions::new().len(page).map_raw(&fd)?;
        let producer = MmapOptions::new()
            .offset(page as u64)
            .len(page + 2 * size)
            .map_raw_read_only(&fd)?;
        let mut ring = Self {
            fd,
            consumer,
            producer,
            page,
            size,
            at: 0,
            released: 0,
            end: 0,
        };
        ring.look();
        Ok(ring)
    }

    /// The number that a page begins with: how far somebody is.
    fn position(page: &MmapRaw) -> &AtomicUsize {
        // SAFETY: it is there and stays mapped as long as what we are given.
        unsafe { &*page.as_ptr().cast() }
    }

    /// Sees how far the kernel has written by now.
    fn look(&mut self) {
        self.end = Self::position(&self.producer).load(Ordering::Acquire);
    }

    /// Gives the room of what was read back to the kernel. Not for each record: the processor that writes looks at it for each.
    fn release(&mut self) {
        if self.released != self.at {
            self.released = self.at;
            Self::position(&self.consumer).store(self.at, Ordering::Release);
        }
    }

    fn head(&mut self) -> Head {
        let mut earliest = None;
        let mut at = self.at;
        while let Some(header) = self.header(at) {
            let next = at + stride(header & !(Self::UNFINISHED | Self::DISCARDED));
            if header & Self::UNFINISHED != 0 {
                return Head::Unfinished;
            }
            if header & Self::DISCARDED == 0 {
                let time = self.time(at);
                // What interrupted the one before between its place and its time stands behind it, and is older.
                if earliest.is_some_and(|earliest| earliest <= time) {
                    break;
                }
                earliest = Some(time);
            } else if at == self.at {
                self.at = next;
            }
            at = next;
        }
        earliest.map_or(Head::Nothing, Head::Record)
    }

    /// Of the record that stands there, if one does.
    fn header(&self, at: usize) -> Option<u32> {
        /// How long to wait for one that is being written, which takes a tenth of a microsecond.
        const SPINS: u32 = 64;
        if at == self.end {
            return None;
        }
        // SAFETY: the kernel has written a header there, at a multiple of eight bytes.
        let header: &AtomicU32 = unsafe { &*self.place(at).cast() };
        let mut value = header.load(Ordering::Acquire);
        for _ in 0..SPINS {
            if value & Self::UNFINISHED == 0 {
                break;
            }
            std::hint::spin_loop();
            value = header.load(Ordering::Acquire);
        }
        Some(value)
    }

    /// Where this is in memory: before the end of the first copy of the data.
    fn place(&self, at: usize) -> *const u8 {
        // SAFETY: the mapping is longer than that.
        unsafe { self.producer.as_ptr().add(self.page + at % self.size) }
    }

    /// When the record was made that stands there.
    fn time(&self, at: usize) -> u64 {
        let bytes = self.bytes(at);
        let time = bytes.get(TIME_OFFSET..TIME_OFFSET + size_of::<u64>());
        time.and_then(|time| time.try_into().ok())
            .map_or(0, u64::from_ne_bytes)
    }

    fn bytes(&self, at: usize) -> &[u8] {
        let length = self.header(at).unwrap_or_default() & !(Self::UNFINISHED | Self::DISCARDED);
        let length = (length as usize).min(self.size - Self::HEADER);
        // SAFETY: the mapping has all of it, thanks to the second copy, and the kernel writes there only after `release`.
        unsafe { std::slice::from_raw_parts(self.place(at).add(Self::HEADER), length) }
    }

    /// What [`Ring::head`] has found.
    fn record(&self) -> &[u8] {
        self.bytes(self.at)
    }

    fn advance(&mut self) {
        self.at += stride(self.header(self.at).unwrap_or_default());
        if self.at - self.released >= self.size / 8 {
            self.release();
        }
    }
}

/// From one header to the next.
const fn stride(length: u32) -> usize {
    (Ring::HEADER + length as usize).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, fs::File, sync::atomic::Ordering};

    use memmap2::{MmapMut, MmapRaw};

    use super::{Ring, Rings, page_size};

    const SIZE: usize = 4096;

    /// The kernel's side of one ring buffer, which does not come to its end.
    struct Kernel(Ring);

    #[expect(clippy::expect_used, reason = "a test may fail")]
    impl Kernel {
        fn new() -> Self {
            let page = page_size();
            let map = |length| MmapRaw::from(MmapMut::map_anon(length).expect("memory"));
            Self(Ring {
                fd: File::open("/dev/null").expect("a file").into(),
                consumer: map(page),
                producer: map(page + 2 * SIZE),
                page,
                size: SIZE,
                at: 0,
                released: 0,
                end: 0,
            })
        }

        /// A record of 16 bytes: its name, and its time behind.
        fn write(self, name: u8, time: u64, bits: u32) -> Self {
            let position = Ring::position(&self.0.producer);
            let at = position.load(Ordering::Relaxed);
            let mut record = [0; 24];
            record[..4].copy_from_slice(&(16 | bits).to_ne_bytes());
            record[8] = name;
            record[16..].copy_from_slice(&time.to_ne_bytes());
            let place = self.0.place(at).cast_mut();
            // SAFETY: it is in the mapping, which is ours.
            unsafe { place.copy_from_nonoverlapping(record.as_ptr(), record.len()) };
            position.store(at + record.len(), Ordering::Relaxed);
            self
        }
    }

    fn rings<const N: usize>(kernels: [Kernel; N]) -> Rings {
        Rings {
            rings: kernels.map(|kernel| kernel.0).into(),
            size: 4096,
        }
    }

    fn read(rings: &mut Rings, now: u64) -> (String, bool) {
        let mut names = String::new();
        let waits = rings.read::<Infallible>(now, |record| {
            assert_eq!(record.len(), 16);
            names.push(record[0].into());
            Ok(true)
        });
        (names, waits.expect("it cannot fail"))
    }

    fn read_until(rings: &Rings, index: usize) -> usize {
        Ring::position(&rings.rings[index].consumer).load(Ordering::Relaxed)
    }

    #[test]
    fn records_of_all_processors_come_in_order() {
        let mut rings = rings([
            Kernel::new().write(b'b', 2, 0).write(b'e', 6, 0),
            Kernel::new(),
            Kernel::new()
                .write(b'a', 1, 0)
                .write(b'c', 3, 0)
                .write(b'd', 4, 0),
        ]);
        assert_eq!(read(&mut rings, 10), ("abcde".to_owned(), false));
        assert_eq!(read(&mut rings, 10), (String::new(), false));
        assert_eq!(
            [0, 1, 2].map(|index| read_until(&rings, index)),
            [48, 0, 72]
        );
    }

    #[test]
    fn what_is_younger_waits() {
        let mut rings = rings([
            Kernel::new().write(b'a', 5, 0).write(b'c', 7, 0),
            Kernel::new().write(b'b', 6, 0),
        ]);
        assert_eq!(read(&mut rings, 6), ("ab".to_owned(), false));
        assert_eq!(read_until(&rings, 0), 24);
        assert_eq!(read(&mut rings, 7), ("c".to_owned(), false));
    }

    #[test]
    fn all_wait_for_what_is_being_written() {
        let mut rings = rings([
            Kernel::new().write(b'a', 1, 0).write(b'd', 4, 0),
            Kernel::new()
                .write(b'b', 2, 0)
                .write(b'c', 3, Ring::UNFINISHED),
        ]);
        // `c` may have interrupted `b`, and be older than `a`.
        assert_eq!(read(&mut rings, 10), (String::new(), true));
    }

    #[test]
    fn what_interrupted_a_record_is_older_than_it() {
        // `d` had its place before `c` interrupted it, and its time afterwards; so had `c`, and `a`.
        let mut rings = rings([
            Kernel::new()
                .write(b'd', 4, 0)
                .write(b'c', 3, 0)
                .write(b'x', 2, Ring::DISCARDED)
                .write(b'a', 1, 0)
                .write(b'e', 5, 0),
            Kernel::new().write(b'B', 2, 0),
        ]);
        assert_eq!(read(&mut rings, 4), ("dcaB".to_owned(), false));
        assert_eq!(read(&mut rings, 5), ("e".to_owned(), false));
    }

    #[test]
    fn what_was_interrupted_waits_until_it_is_old_enough() {
        let mut rings = rings([
            Kernel::new().write(b'c', 3, 0).write(b'a', 1, 0),
            Kernel::new().write(b'B', 2, 0),
        ]);
        assert_eq!(read(&mut rings, 2), (String::new(), true));
        assert_eq!(read(&mut rings, 3), ("caB".to_owned(), false));
    }

    #[test]
    fn discarded_records_are_passed_over() {
        let mut rings = rings([Kernel::new()
            .write(b'x', 1, Ring::DISCARDED)
            .write(b'a', 2, 0)
            .write(b'x', 3, Ring::DISCARDED)
            .write(b'b', 4, 0)]);
        assert_eq!(read(&mut rings, 10), ("ab".to_owned(), false));
    }

    #[test]
    fn who_reads_may_stop() {
        let mut rings = rings([Kernel::new().write(b'a', 1, 0).write(b'b', 2, 0)]);
        let once = rings.read::<Infallible>(10, |_| Ok(false));
        assert_eq!(once, Ok(false));
        assert_eq!(read(&mut rings, 10).0, "b");
    }
}
