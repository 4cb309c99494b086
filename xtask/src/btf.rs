//! `cargo xtask btf-fixture`: cuts a kernel's type information (BTF, several megabytes) down to the structs of the
//! field list, for the tests that resolve the fields of kernels we do not run on.
//!
//! Kept are the structs, their members, and all that these contain by value. A pointer becomes a pointer to void:
//! what it points to has no influence on where a field is. The result is BTF again, the same for the same input.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, iter,
    ops::Range,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail, ensure};
use tcpstate_common::fields::Offsets;

/// Cut a kernel's BTF down to what the tests of the field list need
#[derive(clap::Args)]
pub struct Args {
    /// BTF of a kernel: /sys/kernel/btf/vmlinux, or the section .BTF of a vmlinux
    input: PathBuf,
    /// Where to write the smaller one
    output: PathBuf,
}

const MAGIC: u32 = 0x0001_eb9f;
const HEADER_WORDS: usize = 6;
/// Words that every type starts with: name, kind and count, size or other type.
const TYPE_WORDS: usize = 3;
/// The type that no type has as its number.
const VOID: u32 = 0;

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const FLOAT: u32 = 16;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

pub fn perform(args: &Args) -> Result<ExitCode> {
    let Args { input, output } = args;
    let btf = fs::read(input).with_context(|| format!("reading {}", input.display()))?;
    let containers = Offsets::FIELDS
        .iter()
        .map(|field| field.container)
        .collect();
    let small = shrink(&btf, &containers)
        .with_context(|| format!("{} cannot be cut down", input.display()))?;
    fs::write(output, &small).with_context(|| format!("writing {}", output.display()))?;
    println!(
        "{}: {} of {} bytes",
        output.display(),
        small.len(),
        btf.len()
    );
    Ok(ExitCode::SUCCESS)
}

/// The BTF of these structs alone.
fn shrink(btf: &[u8], containers: &BTreeSet<&str>) -> Result<Vec<u8>> {
    let input = Input::read(btf)?;
    let mut kept = BTreeSet::new();
    let mut open = input.structs(containers)?;
    while let Some(id) = open.pop() {
        if id != VOID && !input.is_pointer(id)? && kept.insert(id) {
            let words = input.get(id)?;
            open.extend(type_slots(words)?.into_iter().map(|slot| words[slot]));
        }
    }

    let numbers: BTreeMap<u32, u32> = kept.iter().copied().zip(1..).collect();
    // One pointer stands for all; it comes last.
    let pointer = u32::try_from(kept.len())? + 1;
    let mut types = Vec::new();
    let mut names = Names::default();
    for id in kept {
        let mut words = input.get(id)?.to_vec();
        for slot in name_slots(&words) {
            words[slot] = names.place(input.name(words[slot])?)?;
        }
        for slot in type_slots(&words)? {
            words[slot] = match words[slot] {
                VOID => VOID,
                id if input.is_pointer(id)? => pointer,
                id => numbers[&id],
            };
        }
        types.extend(words);
    }
    types.extend([0, PTR << 24, VOID]);

    let types_len = u32::try_from(types.len() * 4)?;
    let names_len = u32::try_from(names.table.len())?;
    let header_len = u32::try_from(HEADER_WORDS * 4)?;
    let header = [MAGIC, header_len, 0, types_len, types_len, names_len];
    let words = header.iter().chain(&types);
    let mut output: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
    output.extend(names.table);
    Ok(output)
}

/// A BTF as it was read.
struct Input<'a> {
    words: Vec<u32>,
    /// Where each type is in `words`; the first is type 1.
    types: Vec<Range<usize>>,
    names: &'a [u8],
}

impl<'a> Input<'a> {
    fn read(btf: &'a [u8]) -> Result<Self> {
        let header = words(
            btf.get(..HEADER_WORDS * 4)
                .context("it is too short for BTF")?,
        );
        let &[
            MAGIC,
            header_len,
            types_start,
            types_len,
            names_start,
            names_len,
        ] = &header[..]
        else {
            bail!("it is not little-endian BTF of version 1");
        };
        let section = |start: u32, len: u32| {
            btf.get(header_len as usize + start as usize..)
                .and_then(|rest| rest.get(..len as usize))
                .context("it is truncated")
        };
        let words = words(section(types_start, types_len)?);
        let names = section(names_start, names_len)?;

        let mut types = Vec::new();
        let mut start = 0;
        while start < words.len() {
            let rest = &words[start..];
            let info = *rest.get(1).context("the last type is truncated")?;
            let len = TYPE_WORDS + payload_words(info)?;
            ensure!(len <= rest.len(), "the last type is truncated");
            types.push(start..start + len);
            start += len;
        }
        Ok(Self {
            words,
            types,
            names,
        })
    }

    fn get(&self, id: u32) -> Result<&[u32]> {
        let index = (id as usize).checked_sub(1);
        let range = index.and_then(|index| self.types.get(index));
        Ok(&self.words[range
            .with_context(|| format!("there is no type {id}"))?
            .clone()])
    }

    fn is_pointer(&self, id: u32) -> Result<bool> {
        Ok(kind(self.get(id)?[1]) == PTR)
    }

    fn name(&self, place: u32) -> Result<&'a [u8]> {
        let rest = self.names.get(place as usize..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0);
        Ok(&rest[..end.with_context(|| format!("there is no name at {place}"))?])
    }

    /// The definitions of these structs. A kernel need not have all of them.
    fn structs(&self, containers: &BTreeSet<&str>) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for (id, range) in (1..).zip(&self.types) {
            let words = &self.words[range.clone()];
            let name = self.name(words[0])?;
            if kind(words[1]) == STRUCT && containers.iter().any(|known| known.as_bytes() == name) {
                found.push(id);
            }
        }
        Ok(found)
    }
}

/// The new table of names.
struct Names {
    table: Vec<u8>,
    places: BTreeMap<Vec<u8>, u32>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            table: vec![0],
            places: BTreeMap::from([(Vec::new(), 0)]),
        }
    }
}

impl Names {
    fn place(&mut self, name: &[u8]) -> Result<u32> {
        if let Some(place) = self.places.get(name) {
            return Ok(*place);
        }
        let place = u32::try_from(self.table.len())?;
        self.table.extend(name);
        self.table.push(0);
        self.places.insert(name.to_vec(), place);
        Ok(place)
    }
}

/// The words of a type that are names.
fn name_slots(words: &[u32]) -> Vec<usize> {
    let each = match kind(words[1]) {
        STRUCT | UNION | ENUM64 => 3,
        ENUM => 2,
        _ => return vec![0],
    };
    iter::once(0)
        .chain((TYPE_WORDS..words.len()).step_by(each))
        .collect()
}

/// The words of a type that are the types it contains.
fn type_slots(words: &[u32]) -> Result<Vec<usize>> {
    Ok(match kind(words[1]) {
        INT | FLOAT | FWD | ENUM | ENUM64 => vec![],
        TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => vec![2],
        ARRAY => vec![3, 4],
        STRUCT | UNION => (TYPE_WORDS + 1..words.len()).step_by(3).collect(),
        other => bail!("a struct contains a type of kind {other}"),
    })
}

fn kind(info: u32) -> u32 {
    info >> 24 & 0x7f
}

/// Words that follow the start of a type.
fn payload_words(info: u32) -> Result<usize> {
    let count = (info & 0x00ff_ffff) as usize;
    Ok(match kind(info) {
        INT | VAR | DECL_TAG => 1,
        ARRAY => 3,
        STRUCT | UNION | DATASEC | ENUM64 => count * 3,
        ENUM | FUNC_PROTO => count * 2,
        PTR | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
        other => bail!("there is a type of unknown kind {other}"),
    })
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|word| u32::from_le_bytes(*word))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use anyhow::Result;
    use tcpstate_common::fields::Offsets;

    use super::{Input, STRUCT, VOID, kind, shrink};

    const FIXTURES: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tcpstate-user/tests/fixtures/btf"
    );

    #[test]
    fn a_fixture_cannot_be_cut_down_further() -> Result<()> {
        let containers = Offsets::FIELDS
            .iter()
            .map(|field| field.container)
            .collect();
        for kernel in ["5.10", "6.1", "6.12", "6.18", "7.2"] {
            let btf = fs::read(format!("{FIXTURES}/{kernel}.btf"))?;
            assert!(shrink(&btf, &containers)? == btf, "{kernel} changes");
        }
        Ok(())
    }

    #[test]
    fn what_is_contained_is_kept_and_what_is_pointed_to_is_not() -> Result<()> {
        let btf = fs::read(format!("{FIXTURES}/6.12.btf"))?;
        let small = shrink(&btf, &BTreeSet::from(["socket"]))?;
        assert!(small.len() < 10_000, "{} bytes", small.len());
        let input = Input::read(&small)?;
        assert_eq!(
            input
                .structs(&BTreeSet::from(["socket", "socket_wq"]))?
                .len(),
            2
        );
        assert!(input.structs(&BTreeSet::from(["sock", "file"]))?.is_empty());
        let (mut structs, mut pointers) = (0, Vec::new());
        for id in (1..).take(input.types.len()) {
            let words = input.get(id)?;
            structs += u32::from(kind(words[1]) == STRUCT);
            if input.is_pointer(id)? {
                pointers.push(words[2]);
            }
        }
        assert!(structs > 2, "only {structs} structs");
        assert_eq!(pointers, [VOID]);
        Ok(())
    }

    #[test]
    fn damage_is_an_error() -> Result<()> {
        let btf = fs::read(format!("{FIXTURES}/5.10.btf"))?;
        let containers = BTreeSet::from(["sock"]);
        for len in (0..btf.len()).step_by(97) {
            assert!(shrink(&btf[..len], &containers).is_err(), "{len} bytes");
        }
        Ok(())
    }
}
