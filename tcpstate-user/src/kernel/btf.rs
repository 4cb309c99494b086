//! Where the kernel keeps its fields: a reader for the type information (BTF) that a kernel carries about itself.
//!
//! rustc emits no CO-RE relocations, so the offsets of [`Offsets::FIELDS`] are looked up here, by name, before the
//! kernel side is loaded. A BTF is a header, a list of types numbered from 1, and a table of names; the format is
//! described in the kernel's `Documentation/bpf/btf.rst` and `include/uapi/linux/btf.h`. Only as much of it is
//! understood as finding a member takes. A wrong offset would go unnoticed as long as it lies inside the struct, so a
//! field counts as found only if its size is the expected one and every definition of its struct agrees.

use std::fmt;

use tcpstate_common::fields::{ABSENT, CALLS, Field, Need, Offsets};

/// The BTF of the running kernel.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// As deep as names for types, arrays and anonymous members may be nested; the kernel's own limit
/// (`MAX_RESOLVE_DEPTH` in `kernel/bpf/btf.c`).
const MAX_DEPTH: u32 = 32;
/// Members looked at for one field, many more than any struct has: nested anonymous members cannot multiply without
/// end.
const MAX_MEMBERS: u32 = 1 << 20;
/// Pointers of the kernels that we run on.
const POINTER_SIZE: u32 = 8;

/// Length of the header up to kernel 7.0.
const HEADER_LEN: usize = 24;
/// Length of the header with the place of the layout section.
const HEADER_LEN_WITH_LAYOUT: usize = 32;
/// What every type starts with: name, kind and count, size or other type.
const TYPE_LEN: usize = 12;
const MEMBER_LEN: usize = 12;

/// `BTF_KIND_...` in `include/uapi/linux/btf.h`.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Why a BTF cannot be used at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// It does not start with BTF's magic number.
    #[error("not BTF: the magic number is missing")]
    NotBtf,
    /// It comes from a machine of the other byte order.
    #[error("the BTF is big-endian; only that of little-endian machines can be read")]
    BigEndian,
    /// The header says that the format is another one.
    #[error("BTF version {0} is not known, only version 1")]
    UnknownVersion(u8),
    /// A type whose length is not known, so that nothing after it can be found.
    #[error(
        "type {id} of the BTF, at byte {offset}, is of unknown kind {kind}; a newer version of \
             this program may know it"
    )]
    UnknownKind {
        /// The number of the kind.
        kind: u32,
        /// The number of the type.
        id: usize,
        /// Where the type is.
        offset: usize,
    },
    /// It contradicts itself.
    #[error("the BTF is damaged at byte {offset}: {problem}")]
    Damaged {
        /// Where that was noticed.
        offset: usize,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Why a field cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The kernel has no such struct.
    #[error("no such struct")]
    NoStruct,
    /// A struct on the way has no such member.
    #[error("no such member: {0}")]
    NoMember(String),
    /// The path goes on after something that has no members (a pointer, say).
    #[error("not a struct: {0}")]
    NotAStruct(String),
    /// It does not start and end at a byte.
    #[error("is a bit-field")]
    BitField,
    /// Its type has no size.
    #[error("has no size")]
    NoSize,
    /// It has another size than the kernel side reads.
    #[error("size is {found}, expected {expected}")]
    Size {
        /// Size in bytes.
        found: u32,
        /// Size in bytes that the kernel side reads.
        expected: u32,
    },
    /// Several structs of that name exist, and they do not agree about the field.
    #[error("ambiguous: several different structs have that name")]
    Ambiguous,
    /// The BTF cannot be trusted.
    #[error(transparent)]
    Damaged(#[from] BtfError),
}

/// A field without which nothing works is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel's BTF has no usable field {path} of struct {container} ({reason}), without which no socket can be \
     read: check that the kernel is 5.8 or later and the BTF its own; if so, report this with the kernel's release \
     (uname -r)",
    path = field.path,
    container = field.container
)]
pub struct RequiredFieldError {
    /// The field.
    pub field: Field,
    /// What is wrong with it.
    pub reason: FieldError,
}

/// A field that this kernel does not have, or not as expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingField {
    /// The field.
    pub field: Field,
    /// What is wrong with it.
    pub reason: FieldError,
    /// What does not work because of it.
    pub lost: &'static str,
}

impl MissingField {
    /// Whether only the program for system calls reads it: without `--syscalls` nothing is lost.
    #[must_use]
    pub fn is_for_calls(&self) -> bool {
        self.lost == CALLS
    }
}

impl fmt::Display for MissingField {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Field {
            container, path, ..
        } = self.field;
        write!(out, "{container}.{path}: {}", self.reason)
    }
}

/// Where a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldLocation {
    /// Bytes from the start of the struct.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
}

/// The type information of a kernel.
#[derive(Clone, Debug)]
pub struct Btf<'a> {
    bytes: &'a [u8],
    names: &'a [u8],
    /// Where each type is in `bytes`; the first is type 1.
    types: Vec<u32>,
    /// The named structs.
    structs: Vec<Struct>,
}

#[derive(Clone, Copy, Debug)]
struct Struct {
    name: u32,
    id: u32,
}

/// The start of a type.
#[derive(Clone, Copy)]
struct Type {
    offset: usize,
    name: u32,
    info: u32,
    /// A size or the number of another type, depending on the kind.
    size_or_id: u32,
}

struct Member {
    bit_offset: u64,
    type_id: u32,
}

impl<'a> Btf<'a> {
    /// Finds the types in a BTF.
    ///
    /// # Errors
    /// If it is not BTF, or damaged, or holds types whose length is not known.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        match bytes {
            [0x9f, 0xeb, 1, ..] => {}
            [0x9f, 0xeb, version, ..] => return Err(BtfError::UnknownVersion(*version)),
            [0xeb, 0x9f, ..] => return Err(BtfError::BigEndian),
            _ => return Err(BtfError::NotBtf),
        }
        let header_len = word(bytes, 4)? as usize;
        if header_len < HEADER_LEN {
            return Err(damaged(4, "the header is too short"));
        }
        let (types_start, types) = section(bytes, header_len, 8)?;
        let (names_start, names) = section(bytes, header_len, 16)?;
        let (_, layout) = if header_len < HEADER_LEN_WITH_LAYOUT {
            (0, &[][..])
        } else {
            section(bytes, header_len, 24)?
        };
        // So that every name that starts in the table also ends in it, and name 0 is no name.
        if names.first() != Some(&0) || names.last() != Some(&0) {
            return Err(damaged(
                names_start,
                "the names do not start and end with a zero byte",
            ));
        }
        let mut btf = Self {
            bytes,
            names,
            types: Vec::new(),
            structs: Vec::new(),
        };
        btf.find_types(types_start, types_start + types.len(), layout)?;
        Ok(btf)
    }

    fn find_types(&mut self, start: usize, end: usize, layout: &[u8]) -> Result<(), BtfError> {
        // A kernel's types take 23 bytes on average.
        self.types.reserve((end - start) / 20);
        let mut offset = start;
        while offset < end {
            let id = self.types.len() + 1;
            let head = Type::read(self.bytes, offset)?;
            let Some((fixed, each)) = payload(head.kind(), layout) else {
                return Err(BtfError::UnknownKind {
                    kind: head.kind(),
                    id,
                    offset,
                });
            };
            let len = (head.count() as usize)
                .saturating_mul(each)
                .saturating_add(TYPE_LEN + fixed);
            if len > end - offset {
                return Err(damaged(offset, "a type reaches past the end of the types"));
            }
            let (Ok(place), Ok(id)) = (u32::try_from(offset), u32::try_from(id)) else {
                return Err(damaged(offset, "more than 4 GiB"));
            };
            self.types.push(place);
            if head.kind() == kind::STRUCT && head.name != 0 {
                self.structs.push(Struct {
                    name: head.name,
                    id,
                });
            }
            offset += len;
        }
        Ok(())
    }

    /// Finds a field by the name of its struct and the path of member names from there, joined by `.`.
    ///
    /// A path passes through anonymous members and through other names of a type as the C compiler does.
    ///
    /// # Errors
    /// If there is no such field, or its offset and size cannot be told in bytes.
    pub fn field(&self, container: &str, path: &str) -> Result<FieldLocation, FieldError> {
        let mut answer = None;
        let mut budget = MAX_MEMBERS;
        for definition in &self.structs {
            if !self.is_name(definition.name, container)? {
                continue;
            }
            let location = self.field_of(definition.id, path, &mut budget);
            match &answer {
                None => answer = Some(location),
                Some(other) if *other == location => {}
                Some(_) => return Err(FieldError::Ambiguous),
            }
        }
        answer.unwrap_or(Err(FieldError::NoStruct))
    }

    fn field_of(
        &self,
        container: u32,
        path: &str,
        budget: &mut u32,
    ) -> Result<FieldLocation, FieldError> {
        let mut bit_offset = 0;
        let mut type_id = container;
        let mut parent = "";
        for name in path.split('.') {
            let aggregate = self.resolve(type_id)?;
            if !aggregate.has_members() {
                return Err(FieldError::NotAStruct(parent.to_owned()));
            }
            let member = self
                .member(aggregate, name, 0, budget)?
                .ok_or_else(|| FieldError::NoMember(name.to_owned()))?;
            bit_offset += member.bit_offset;
            type_id = member.type_id;
            parent = name;
        }
        if bit_offset % 8 != 0 {
            return Err(FieldError::BitField);
        }
        let size = self.size(type_id)?;
        let container = self.get(container)?;
        match u32::try_from(bit_offset / 8) {
            Ok(offset) if u64::from(offset) + u64::from(size) <= container.size_or_id.into() => {
                Ok(FieldLocation { offset, size })
            }
            _ => Err(damaged(container.offset, "a member lies outside its struct").into()),
        }
    }

    /// Finds a member by name, also inside anonymous members.
    fn member(
        &self,
        aggregate: Type,
        name: &str,
        depth: u32,
        budget: &mut u32,
    ) -> Result<Option<Member>, FieldError> {
        if depth > MAX_DEPTH {
            return Err(
                damaged(aggregate.offset, "anonymous members are nested too deeply").into(),
            );
        }
        for index in 0..aggregate.count() as usize {
            *budget = budget
                .checked_sub(1)
                .ok_or(damaged(aggregate.offset, "a struct has too many members"))?;
            let offset = aggregate.offset + TYPE_LEN + index * MEMBER_LEN;
            let member_name = word(self.bytes, offset)?;
            let type_id = word(self.bytes, offset + 4)?;
            let bit_offset = word(self.bytes, offset + 8)?;
            // With the flag, the upper byte is the width of a bit-field; zero if it is none.
            let is_bit_field = aggregate.flag() && bit_offset >> 24 != 0;
            if self.is_name(member_name, "")? {
                // Its type may have a name all the same: `struct slock_owned` in Linux 7.2.
                let inner = self.resolve(type_id)?;
                if inner.has_members()
                    && let Some(member) = self.member(inner, name, depth + 1, budget)?
                {
                    let bit_offset = member.bit_offset + u64::from(bit_offset);
                    return Ok(Some(Member {
                        bit_offset,
                        ..member
                    }));
                }
            } else if self.is_name(member_name, name)? {
                if is_bit_field {
                    return Err(FieldError::BitField);
                }
                return Ok(Some(Member {
                    bit_offset: bit_offset.into(),
                    type_id,
                }));
            }
        }
        Ok(None)
    }

    fn size(&self, mut type_id: u32) -> Result<u32, FieldError> {
        let mut elements = 1_u64;
        for _ in 0..MAX_DEPTH {
            let value = self.resolve(type_id)?;
            let size = match value.kind() {
                kind::ARRAY => {
                    type_id = word(self.bytes, value.offset + TYPE_LEN)?;
                    let count = word(self.bytes, value.offset + TYPE_LEN + 8)?;
                    elements = elements.saturating_mul(count.into());
                    continue;
                }
                kind::INT => {
                    // In a struct without the flag, a bit-field has an integer type of its own.
                    let encoding = word(self.bytes, value.offset + TYPE_LEN)?;
                    let (bit_offset, bits) = (encoding >> 16 & 0xff, encoding & 0xff);
                    if bit_offset != 0 || u64::from(bits) != u64::from(value.size_or_id) * 8 {
                        return Err(FieldError::BitField);
                    }
                    value.size_or_id
                }
                kind::PTR => POINTER_SIZE,
                kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => {
                    value.size_or_id
                }
                _ => return Err(FieldError::NoSize),
            };
            return u32::try_from(elements.saturating_mul(size.into()))
                .map_err(|_| damaged(value.offset, "an array is larger than 4 GiB").into());
        }
        Err(damaged(self.get(type_id)?.offset, "arrays are nested too deeply").into())
    }

    /// What is behind a type that is only another name of one, or qualifies one.
    fn resolve(&self, type_id: u32) -> Result<Type, BtfError> {
        let mut resolved = self.get(type_id)?;
        for _ in 0..MAX_DEPTH {
            match resolved.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    resolved = self.get(resolved.size_or_id)?;
                }
                _ => return Ok(resolved),
            }
        }
        Err(damaged(
            resolved.offset,
            "a type is another name of itself, or nested too deeply",
        ))
    }

    fn get(&self, type_id: u32) -> Result<Type, BtfError> {
        let Some(index) = (type_id as usize).checked_sub(1) else {
            return Ok(Type::VOID);
        };
        match self.types.get(index) {
            Some(offset) => Type::read(self.bytes, *offset as usize),
            None => Err(damaged(
                self.bytes.len(),
                "a type that does not exist is referred to",
            )),
        }
    }

    /// Whether the name at this place of the table is that one.
    fn is_name(&self, place: u32, name: &str) -> Result<bool, BtfError> {
        let start = self
            .names
            .get(place as usize..)
            .filter(|rest| !rest.is_empty())
            .ok_or(damaged(
                self.bytes.len(),
                "a name lies outside the table of names",
            ))?;
        Ok(start
            .strip_prefix(name.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0)))
    }
}

impl Type {
    const VOID: Self = Self {
        offset: 0,
        name: 0,
        info: 0,
        size_or_id: 0,
    };

    fn read(bytes: &[u8], offset: usize) -> Result<Self, BtfError> {
        Ok(Self {
            offset,
            name: word(bytes, offset)?,
            info: word(bytes, offset + 4)?,
            size_or_id: word(bytes, offset + 8)?,
        })
    }

    /// Kind and count had 5 and 16 bits before Linux 7.1, and the bits that are new were zero.
    fn kind(self) -> u32 {
        self.info >> 24 & 0x7f
    }

    fn count(self) -> u32 {
        self.info & 0x00ff_ffff
    }

    fn flag(self) -> bool {
        self.info >> 31 != 0
    }

    fn has_members(self) -> bool {
        matches!(self.kind(), kind::STRUCT | kind::UNION)
    }
}

/// Bytes that follow the start of a type of this kind: once, and for each of its `count()`.
///
/// The layout section (Linux 7.1) tells them for every kind the kernel has, also for kinds younger than this code.
fn payload(kind: u32, layout: &[u8]) -> Option<(usize, usize)> {
    match kind {
        kind::INT | kind::VAR | kind::DECL_TAG => Some((4, 0)),
        kind::ARRAY => Some((12, 0)),
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => Some((0, 12)),
        kind::ENUM | kind::FUNC_PROTO => Some((0, 8)),
        kind::PTR
        | kind::FWD
        | kind::TYPEDEF
        | kind::VOLATILE
        | kind::CONST
        | kind::RESTRICT
        | kind::FUNC
        | kind::FLOAT
        | kind::TYPE_TAG => Some((0, 0)),
        0 => None,
        _ => match layout.chunks_exact(4).nth(kind as usize)? {
            [fixed, each, ..] => Some((usize::from(*fixed), usize::from(*each))),
            _ => None,
        },
    }
}

/// The section whose offset (from the end of the header) and length are at `field` of the header, and where it starts.
fn section(bytes: &[u8], header_len: usize, field: usize) -> Result<(usize, &[u8]), BtfError> {
    let start = header_len.saturating_add(word(bytes, field)? as usize);
    let len = word(bytes, field + 4)? as usize;
    let section = bytes.get(start..).and_then(|rest| rest.get(..len));
    Ok((
        start,
        section.ok_or(damaged(field, "a section reaches past the end"))?,
    ))
}

fn word(bytes: &[u8], offset: usize) -> Result<u32, BtfError> {
    let word = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    Ok(u32::from_le_bytes(
        *word.ok_or(damaged(offset, "it ends too early"))?,
    ))
}

const fn damaged(offset: usize, problem: &'static str) -> BtfError {
    BtfError::Damaged { offset, problem }
}

/// Finds every field of [`Offsets::FIELDS`]; also tells which fields are missing, and what is lost by that.
///
/// # Errors
/// If a field without which nothing works is missing.
pub fn resolve_offsets(btf: &Btf<'_>) -> Result<(Offsets, Vec<MissingField>), RequiredFieldError> {
    let mut missing = Vec::new();
    // What kernels have one way or another, and this one has.
    let mut have = Vec::new();
    let offsets = Offsets::resolve(|field| {
        let reason = match find(btf, field) {
            Ok(offset) => {
                have.push(field.need);
                return Ok(offset);
            }
            Err(reason) => reason,
        };
        match field.need {
            Need::Required => Err(RequiredFieldError {
                field: *field,
                reason,
            }),
            Need::Optional(lost) | Need::OneOf(lost) => {
                missing.push(MissingField {
                    field: *field,
                    reason,
                    lost,
                });
                Ok(ABSENT)
            }
        }
    })?;
    missing.retain(|MissingField { field, .. }| match field.need {
        Need::OneOf(_) => !have.contains(&field.need),
        Need::Required | Need::Optional(_) => true,
    });
    Ok((offsets, missing))
}

fn find(btf: &Btf<'_>, field: &Field) -> Result<u32, FieldError> {
    let FieldLocation { offset, size } = btf.field(field.container, field.path)?;
    if size == field.size {
        Ok(offset)
    } else {
        Err(FieldError::Size {
            found: size,
            expected: field.size,
        })
    }
}
