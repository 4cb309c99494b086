//! The fields of kernels that we do not run on, of the one that we do run on, and of BTF that no kernel would have.

use std::{collections::BTreeMap, error::Error, fs};

use tcpstate_common::fields::{ABSENT, Field, Need, Offsets};
use tcpstate_user::kernel::{
    Missing,
    btf::{Btf, BtfError, FieldError, FieldLocation, KERNEL_BTF, resolve_offsets},
};

type TestResult = Result<(), Box<dyn Error>>;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/btf");
const KERNELS: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7.2"];
const NONE: u32 = ABSENT;

/// Offsets by kernel, in the order of [`KERNELS`]. They were not taken from our own reader; see the fixtures' README.
const OFFSETS: &[(&str, [u32; 5])] = &[
    ("family", [16, 16, 16, 16, 16]),
    ("lport", [14, 14, 14, 14, 14]),
    ("rport", [12, 12, 12, 12, 12]),
    ("laddr4", [4, 4, 4, 4, 4]),
    ("raddr4", [0, 0, 0, 0, 0]),
    ("laddr6", [72, 72, 72, 72, 72]),
    ("raddr6", [56, 56, 56, 56, 56]),
    ("bound_lport", [776, 804, 806, 814, 830]),
    ("netns", [48, 48, 48, 48, 48]),
    ("netns_inode", [136, 144, 136, 176, 280]),
    ("netns_count", [4, NONE, NONE, NONE, NONE]),
    ("netns_ns_count", [NONE, 148, 140, NONE, NONE]),
    ("netns_ns_ref", [NONE, NONE, NONE, 180, 192]),
    ("netns_cookie", [4416, 4032, 4224, 4160, 4608]),
    ("cookie", [88, 88, 88, 88, 88]),
    ("bind_node", [24, 24, 24, 24, 24]),
    ("owned", [140, 156, 324, 324, 320]),
    ("protocol", [540, 516, 574, 532, 540]),
    ("error", [568, 544, 284, 284, 284]),
    ("uid", [584, 560, 612, 528, 536]),
    ("cgroup", [NONE, 648, 672, 672, 688]),
    ("cgroup_node", [248, 248, 256, 256, 296]),
    ("cgroup_id", [104, 104, 96, 96, 96]),
    ("socket", [640, 624, 288, 288, 288]),
    ("socket_file", [16, 16, 16, 16, 16]),
    ("state", [18; 5]),
    ("file_inode", [32, 32, 40, 32, 32]),
    ("inode_number", [64; 5]),
    ("file_count", [56, 56, 0, NONE, NONE]),
    ("file_ref", [NONE, NONE, NONE, 176, 168]),
    ("bytes_acked", [1448, 1496, 1840, 1824, 1608]),
    ("bytes_received", [1400, 1448, 1784, 1752, 1864]),
    ("retransmits", [2096, 2144, 2216, 2200, 2304]),
    ("srtt_us", [1624, 1672, 1728, 1680, 1784]),
    ("segments_sent", [1432, 1480, 1600, 1536, 1856]),
    ("sock_flags", [96; 5]),
    ("timer_node", [8; 5]),
    ("timer_function", [24; 5]),
    ("timer_expires", [16; 5]),
    ("tw_timer", [184; 5]),
    ("tw_substate", [140; 5]),
    ("task_flags", [36, 44, 44, 44, 44]),
    ("task_files", [2808, 3048, 3048, 1824, 3416]),
    ("task_status", [8, 16, 16, 16, 16]),
    ("files_table", [32; 5]),
    ("table_size", [0; 5]),
    ("table_files", [8; 5]),
    ("file_socket", [200, 200, 32, 24, 24]),
    ("socket_sock", [24; 5]),
    ("call_number", [120; 5]),
    ("call_fd", [112; 5]),
    ("call_address", [104; 5]),
    ("task_leader", [2296, 2480, 2496, 1328, 2872]),
    ("task_comm", [2736, 2976, 2976, 1752, 3344]),
];

/// What is reported as missing: kernel, field, reason.
const MISSING: &[(&str, &str, &str)] = &[("5.10", "cgroup", "no such member: cgroup")];

fn fixture(kernel: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let path = format!("{FIXTURES}/{kernel}.btf");
    Ok(fs::read(&path).map_err(|error| format!("{path}: {error}"))?)
}

#[test]
fn every_kernel_has_its_fields_where_the_table_says() -> TestResult {
    let table: BTreeMap<_, _> = OFFSETS.iter().copied().collect();
    for (column, kernel) in KERNELS.into_iter().enumerate() {
        let expected = Offsets::resolve(|field| {
            let row = table.get(field.name);
            row.map(|row| row[column])
                .ok_or(format!("the table has no field {}", field.name))
        })?;
        let bytes = fixture(kernel)?;
        let (offsets, missing) = resolve_offsets(&Btf::parse(&bytes)?)?;
        assert_eq!(offsets, expected, "Linux {kernel}");

        let missing: Vec<_> = missing
            .iter()
            .map(|lack| (kernel, lack.field.name, lack.reason.to_string()))
            .collect();
        let expected: Vec<_> = MISSING
            .iter()
            .filter(|lack| lack.0 == kernel)
            .map(|(kernel, field, reason)| (*kernel, *field, (*reason).to_owned()))
            .collect();
        assert_eq!(missing, expected, "Linux {kernel}");
    }
    assert_eq!(
        table.len(),
        Offsets::FIELDS.len(),
        "the table has a field that is not in the list"
    );
    Ok(())
}

#[test]
fn the_running_kernel_has_the_fields() -> TestResult {
    let Ok(bytes) = fs::read(KERNEL_BTF) else {
        eprintln!("skipped: this kernel has no BTF");
        return Ok(());
    };
    let (offsets, missing) = resolve_offsets(&Btf::parse(&bytes)?)?;
    assert_ne!(offsets.family, ABSENT);
    for lack in missing {
        eprintln!("{}: {}, lost: {}", lack.field.name, lack.reason, lack.lost);
    }
    Ok(())
}

#[test]
fn a_truncated_file_is_an_error_at_every_length() -> TestResult {
    let bytes = fixture("6.12")?;
    for len in 0..bytes.len() {
        assert!(Btf::parse(&bytes[..len]).is_err(), "{len} bytes");
    }
    Ok(())
}

#[test]
fn shortened_sections_do_no_harm() -> TestResult {
    let bytes = fixture("7.2")?;
    let whole = Btf::parse(&bytes)?;
    for section_len in [12, 20] {
        let full = u32::from_le_bytes(bytes[section_len..section_len + 4].try_into()?);
        for len in (0..full).step_by(13) {
            let mut bytes = bytes.clone();
            bytes[section_len..section_len + 4].copy_from_slice(&len.to_le_bytes());
            let Ok(btf) = Btf::parse(&bytes) else {
                continue;
            };
            for Field {
                container, path, ..
            } in Offsets::FIELDS
            {
                let found = btf.field(container, path);
                assert!(
                    found.is_err() || found == whole.field(container, path),
                    "{len}: {path}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn flipped_bits_do_no_harm() -> TestResult {
    let mut random = Random(0x7463_7073_7461_7465);
    let (mut refused, mut read) = (0, 0);
    for kernel in KERNELS {
        let original = fixture(kernel)?;
        for round in 0..600 {
            let mut bytes = original.clone();
            for _ in 0..=round % 8 {
                let place = random.below(bytes.len());
                bytes[place] ^= 1 << random.below(8);
            }
            match Btf::parse(&bytes) {
                Ok(btf) => {
                    read += 1;
                    drop(resolve_offsets(&btf));
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 0 && read > 0, "{refused} refused, {read} read");
    Ok(())
}

/// A small generator (xorshift64), so that the same bits are flipped every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit
    }
}

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
const KIND_FLAG: u32 = 1 << 31;

/// BTF made by hand.
struct Builder {
    types: Vec<u32>,
    names: Vec<u8>,
    layout: Vec<u8>,
    last: u32,
}

impl Builder {
    fn new() -> Self {
        Self {
            types: Vec::new(),
            names: vec![0],
            layout: Vec::new(),
            last: 0,
        }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let place = self.names.len();
        self.names.extend(name.as_bytes());
        self.names.push(0);
        u32::try_from(place).unwrap_or(u32::MAX)
    }

    fn add(&mut self, name: &str, info: u32, size_or_type: u32, payload: &[u32]) -> u32 {
        let name = self.name(name);
        self.types.extend([name, info, size_or_type]);
        self.types.extend(payload);
        self.last += 1;
        self.last
    }

    fn plain(&mut self, kind: u32, size_or_type: u32) -> u32 {
        self.add("", kind << 24, size_or_type, &[])
    }

    fn int(&mut self, size: u32) -> u32 {
        self.add("int", INT << 24, size, &[size * 8])
    }

    fn array(&mut self, element: u32, count: u32) -> u32 {
        self.add("", ARRAY << 24, 0, &[element, element, count])
    }

    /// A struct or union; members are name, type and place in bits.
    fn members(&mut self, kind: u32, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let mut payload = Vec::new();
        for (name, type_id, place) in members {
            payload.extend([self.name(name), *type_id, *place]);
        }
        let count = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let flag = kind & KIND_FLAG;
        self.add(
            name,
            flag | (kind & !KIND_FLAG) << 24 | count,
            size,
            &payload,
        )
    }

    fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.members(STRUCT, name, size, members)
    }

    fn build(&self) -> Vec<u8> {
        let types: Vec<u8> = self
            .types
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut header = vec![
            0x0001_eb9f,
            24,
            0,
            len(&types),
            len(&types),
            len(&self.names),
        ];
        if !self.layout.is_empty() {
            header[1] = 32;
            header.extend([len(&types) + len(&self.names), len(&self.layout)]);
        }
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(types);
        bytes.extend(&self.names);
        bytes.extend(&self.layout);
        bytes
    }

    fn field(&self, container: &str, path: &str) -> Result<FieldLocation, FieldError> {
        Btf::parse(&self.build())?.field(container, path)
    }
}

const fn at(offset: u32, size: u32) -> FieldLocation {
    FieldLocation { offset, size }
}

fn is_damaged<T>(result: &Result<T, FieldError>) -> bool {
    matches!(result, Err(FieldError::Damaged(BtfError::Damaged { .. })))
}

#[test]
fn a_path_passes_through_anonymous_members() {
    let mut btf = Builder::new();
    let int = btf.int(4);
    let inner = btf.structure("", 8, &[("a", int, 0), ("b", int, 32)]);
    let union = btf.members(UNION, "", 8, &[("whole", int, 0), ("", inner, 0)]);
    // As in `struct slock_owned` of Linux 7.2: anonymous, though its type has a name and another one.
    let named = btf.structure("named", 8, &[("c", int, 0), ("d", int, 32)]);
    let alias = btf.add("alias", TYPEDEF << 24, named, &[]);
    let constant = btf.plain(CONST, alias);
    let members = [
        ("", int, 0),
        ("", union, 64),
        ("", constant, 128),
        ("", int, 0),
    ];
    let outer = btf.structure("outer", 32, &members);
    btf.structure("top", 64, &[("first", int, 0), ("outer", outer, 64)]);

    assert_eq!(btf.field("outer", "whole"), Ok(at(8, 4)));
    assert_eq!(btf.field("outer", "b"), Ok(at(12, 4)));
    assert_eq!(btf.field("outer", "d"), Ok(at(20, 4)));
    assert_eq!(btf.field("top", "outer.b"), Ok(at(20, 4)));
    assert_eq!(btf.field("top", "outer"), Ok(at(8, 32)));
    for wrong in ["named", "alias", "", "e", "whol", "wholes"] {
        assert_eq!(
            btf.field("outer", wrong),
            Err(FieldError::NoMember(wrong.into()))
        );
    }
    assert_eq!(
        btf.field("top", "outer."),
        Err(FieldError::NoMember(String::new()))
    );
}

#[test]
fn a_path_passes_through_other_names_and_qualifiers() {
    let mut btf = Builder::new();
    let int = btf.int(8);
    let anonymous = btf.structure("", 8, &[("counter", int, 0)]);
    let mut outermost = btf.add("atomic64_t", TYPEDEF << 24, anonymous, &[]);
    for kind in [TYPEDEF, CONST, VOLATILE, RESTRICT, TYPE_TAG, TYPEDEF] {
        outermost = btf.plain(kind, outermost);
    }
    btf.structure("file", 16, &[("count", outermost, 64)]);
    assert_eq!(btf.field("file", "count.counter"), Ok(at(8, 8)));
    assert_eq!(btf.field("file", "count"), Ok(at(8, 8)));
    // Another name for a struct is not a struct, and an anonymous one is not found by an empty name.
    assert_eq!(
        btf.field("atomic64_t", "counter"),
        Err(FieldError::NoStruct)
    );
    assert_eq!(btf.field("", "counter"), Err(FieldError::NoStruct));
}

#[test]
fn every_type_that_has_a_size_gives_it() {
    let mut btf = Builder::new();
    let int = btf.int(2);
    let forward = btf.add("elsewhere", FWD << 24, 0, &[]);
    let pointer = btf.plain(PTR, forward);
    let function = btf.plain(FUNC_PROTO, 0);
    let matrix = btf.array(int, 3);
    let matrix = btf.array(matrix, 5);
    let flexible = btf.array(int, 0);
    let small = btf.add("small", ENUM << 24 | 1, 4, &[0, 7]);
    let large = btf.add("large", ENUM64 << 24 | 1, 8, &[0, 7, 7]);
    let float = btf.plain(FLOAT, 8);
    let union = btf.members(UNION, "", 12, &[]);
    btf.add("f", FUNC << 24 | 1, function, &[]);
    let variable = btf.add("v", VAR << 24, int, &[1]);
    btf.add(".data", DATASEC << 24 | 1, 2, &[variable, 0, 2]);
    btf.add("tag", DECL_TAG << 24, int, &[u32::MAX]);
    let members = [
        ("pointer", pointer, 0),
        ("matrix", matrix, 64),
        ("flexible", flexible, 320),
        ("small", small, 320),
        ("large", large, 352),
        ("float", float, 416),
        ("union", union, 480),
        ("void", 0, 0),
        ("forward", forward, 0),
        ("function", function, 0),
    ];
    btf.structure("all", 72, &members);

    let sizes = [8, 30, 0, 4, 8, 8, 12];
    for ((name, _, bit_offset), size) in members.into_iter().zip(sizes) {
        assert_eq!(
            btf.field("all", name),
            Ok(at(bit_offset / 8, size)),
            "{name}"
        );
    }
    for name in ["void", "forward", "function"] {
        assert_eq!(btf.field("all", name), Err(FieldError::NoSize), "{name}");
    }
    for name in ["pointer", "matrix", "small", "void", "forward"] {
        let path = format!("{name}.member");
        assert_eq!(
            btf.field("all", &path),
            Err(FieldError::NotAStruct(name.into()))
        );
    }
}

#[test]
fn bit_fields_are_refused() {
    let mut btf = Builder::new();
    let int = btf.int(4);
    let narrow = btf.add("narrow", INT << 24, 4, &[3]);
    let shifted = btf.add("shifted", INT << 24, 4, &[8 << 16 | 32]);
    let inner = btf.structure("", 4, &[("inner", int, 0)]);
    let place = |width: u32, bit_offset: u32| width << 24 | bit_offset;
    btf.members(
        STRUCT | KIND_FLAG,
        "flagged",
        16,
        &[
            ("three", int, place(3, 0)),
            ("whole", int, place(32, 32)),
            ("odd", int, place(0, 65)),
            ("fine", int, place(0, 64)),
            ("", int, place(5, 96)),
            ("", inner, place(0, 96)),
        ],
    );
    btf.structure(
        "old",
        8,
        &[
            ("narrow", narrow, 0),
            ("shifted", shifted, 0),
            ("odd", int, 1),
        ],
    );

    for name in ["three", "whole", "odd"] {
        assert_eq!(
            btf.field("flagged", name),
            Err(FieldError::BitField),
            "{name}"
        );
    }
    assert_eq!(btf.field("flagged", "fine"), Ok(at(8, 4)));
    assert_eq!(btf.field("flagged", "inner"), Ok(at(12, 4)));
    for name in ["narrow", "shifted", "odd"] {
        assert_eq!(btf.field("old", name), Err(FieldError::BitField), "{name}");
    }
}

#[test]
fn a_struct_defined_twice_must_say_the_same_twice() {
    let mut btf = Builder::new();
    let int = btf.int(4);
    btf.add("twice", FWD << 24, 0, &[]);
    btf.members(UNION, "twice", 4, &[("moved", int, 0)]);
    btf.add("twice", TYPEDEF << 24, int, &[]);
    btf.structure(
        "twice",
        16,
        &[("same", int, 0), ("moved", int, 32), ("only", int, 64)],
    );
    assert_eq!(btf.field("twice", "moved"), Ok(at(4, 4)));
    btf.structure("twice", 16, &[("same", int, 0), ("moved", int, 64)]);
    assert_eq!(btf.field("twice", "same"), Ok(at(0, 4)));
    assert_eq!(btf.field("twice", "moved"), Err(FieldError::Ambiguous));
    assert_eq!(btf.field("twice", "only"), Err(FieldError::Ambiguous));
    assert_eq!(
        btf.field("twice", "none"),
        Err(FieldError::NoMember("none".into()))
    );
}

#[test]
fn circles_and_towers_end() {
    let mut btf = Builder::new();
    let int = btf.int(4);
    // Type 2 is a name of type 3, which is a name of type 2.
    btf.plain(TYPEDEF, 3);
    let circle = btf.plain(TYPEDEF, 2);
    let array = btf.array(4, 1);
    assert_eq!(array, 4);
    btf.structure(
        "typedef",
        64,
        &[("before", int, 0), ("a", circle, 0), ("array", array, 0)],
    );
    btf.structure("anonymous", 64, &[("before", int, 0), ("", 6, 0)]);
    let mut tower = int;
    for _ in 0..40 {
        tower = btf.members(UNION, "", 4, &[("", tower, 0), ("", tower, 0)]);
    }
    btf.structure("tower", 64, &[("before", int, 0), ("", tower, 0)]);
    // Not too deep, but 2^24 members in all.
    let mut wide = int;
    for _ in 0..24 {
        wide = btf.members(UNION, "", 4, &[("", wide, 0), ("", wide, 0)]);
    }
    btf.structure("wide", 64, &[("before", int, 0), ("", wide, 0)]);

    for (container, path) in [
        ("typedef", "a"),
        ("typedef", "a.b"),
        ("typedef", "array"),
        ("anonymous", "a"),
        ("tower", "a"),
        ("wide", "a"),
    ] {
        assert!(
            is_damaged(&btf.field(container, path)),
            "{container} {path}"
        );
        assert_eq!(btf.field(container, "before"), Ok(at(0, 4)));
    }
}

#[test]
fn references_to_nowhere_are_noticed() {
    let mut btf = Builder::new();
    let int = btf.int(4);
    let huge = btf.array(int, u32::MAX);
    let huge = btf.array(huge, u32::MAX);
    btf.structure(
        "s",
        8,
        &[
            ("type", 99, 0),
            ("past", int, 64),
            ("far", int, !7),
            ("huge", huge, 0),
        ],
    );
    for path in ["type", "past", "far", "huge"] {
        assert!(is_damaged(&btf.field("s", path)), "{path}");
    }
    let start = btf.types.len();
    btf.structure("names", 8, &[("a", int, 0)]);
    btf.types[start + 3] = 9999;
    assert!(is_damaged(&btf.field("names", "a")));

    // The last type says it has a member more; the names that follow are not to be taken for it.
    let mut btf = Builder::new();
    btf.names = vec![0; 12];
    btf.structure("s", 8, &[("a", 0, 0)]);
    btf.types[1] += 1;
    assert!(is_damaged(&btf.field("s", "b")));
}

#[test]
fn an_unknown_kind_is_passed_over_only_if_the_layout_tells_its_length() {
    let mut btf = Builder::new();
    let int = btf.int(4);
    let new = btf.add("new", 20 << 24 | 2, 0, &[1, 2, 3, 4]);
    let offset = 24 + 16;
    btf.structure("s", 8, &[("new", new, 0), ("old", int, 32)]);
    let error = BtfError::UnknownKind {
        kind: 20,
        id: 2,
        offset,
    };
    assert_eq!(btf.field("s", "old"), Err(error.clone().into()));
    let text = error.to_string();
    assert!(
        text.starts_with("type 2 of the BTF, at byte 40, is of unknown kind 20;"),
        "{text}"
    );

    // Two words, then one word for each of two.
    btf.layout = [[0; 4]; 20].concat();
    let error = BtfError::UnknownKind {
        kind: 20,
        id: 2,
        offset: offset + 8,
    };
    assert_eq!(btf.field("s", "old"), Err(error.into()));
    btf.layout.extend([8, 4, 0, 0]);
    assert_eq!(btf.field("s", "old"), Ok(at(4, 4)));
    assert_eq!(btf.field("s", "new"), Err(FieldError::NoSize));

    for kind in [0, STRUCT | 0x40, 127] {
        let mut btf = Builder::new();
        btf.add("s", kind << 24, 4, &[]);
        btf.layout = vec![0; 4];
        let error = BtfError::UnknownKind {
            kind,
            id: 1,
            offset: 32,
        };
        assert_eq!(btf.field("s", "a"), Err(error.into()));
    }
}

#[test]
fn what_is_not_our_btf_is_refused_by_name() {
    let good = Builder::new().build();
    assert!(Btf::parse(&good).is_ok());
    assert_eq!(Btf::parse(&[]).err(), Some(BtfError::NotBtf));
    assert_eq!(Btf::parse(b"\x7fELF").err(), Some(BtfError::NotBtf));
    assert_eq!(
        Btf::parse(&[0xeb, 0x9f, 1, 0]).err(),
        Some(BtfError::BigEndian)
    );
    assert_eq!(
        Btf::parse(&[0x9f, 0xeb, 2, 0]).err(),
        Some(BtfError::UnknownVersion(2))
    );
    // A header that is too short or reaches past the end, sections that do, names without their zero bytes.
    for (place, value) in [
        (4, 23),
        (4, 200),
        (4, 255),
        (8, 2),
        (12, 12),
        (16, 7),
        (20, 0),
        (20, 2),
    ] {
        let mut bad = good.clone();
        bad[place] = value;
        let error = Btf::parse(&bad).err();
        assert!(
            matches!(error, Some(BtfError::Damaged { .. })),
            "{place}: {value}: {error:?}"
        );
    }
    for names in [b"a\0", b"\0a"] {
        let btf = Builder {
            names: names.to_vec(),
            ..Builder::new()
        };
        assert!(is_damaged(&btf.field("s", "a")), "{names:?}");
    }
    for place in [4, 8, 12, 16, 20] {
        let mut bad = good.clone();
        bad[place..place + 4].fill(0xff);
        assert!(Btf::parse(&bad).is_err(), "{place}");
    }
}

/// BTF with all structs of the list, and those of its fields that are given a size.
fn kernel(size: impl Fn(&Field) -> Option<u32>) -> Vec<u8> {
    let mut btf = Builder::new();
    let byte = btf.int(1);
    let mut structs: BTreeMap<&str, Vec<(&str, u32)>> = BTreeMap::new();
    for field in Offsets::FIELDS {
        let paths = structs.entry(field.container).or_default();
        paths.extend(size(field).map(|size| (field.path, size)));
    }
    for (name, paths) in structs {
        let members = tree(&mut btf, byte, &paths);
        btf.structure(name, 1 << 20, &members);
    }
    btf.build()
}

fn kernel_without(missing: &[&str]) -> Vec<u8> {
    kernel(|field| (!missing.contains(&field.name)).then_some(field.size))
}

/// The members that these paths begin with, 1 KiB apart.
fn tree<'a>(btf: &mut Builder, byte: u32, paths: &[(&'a str, u32)]) -> Vec<(&'a str, u32, u32)> {
    let mut groups: BTreeMap<&str, Vec<(&str, u32)>> = BTreeMap::new();
    for (path, size) in paths {
        let (first, rest) = path.split_once('.').unwrap_or((path, ""));
        groups.entry(first).or_default().push((rest, *size));
    }
    let mut members = Vec::new();
    for (place, (name, rest)) in (0..).step_by(8 * 1024).zip(groups) {
        let type_id = if let [("", size)] = rest[..] {
            btf.array(byte, size)
        } else {
            let inner = tree(btf, byte, &rest);
            btf.structure("", 1 << 16, &inner)
        };
        members.push((name, type_id, place));
    }
    members
}

fn names_missing(bytes: &[u8]) -> Result<Vec<&'static str>, Box<dyn Error>> {
    let (_, missing) = resolve_offsets(&Btf::parse(bytes)?)?;
    Ok(missing.iter().map(|lack| lack.field.name).collect())
}

#[test]
fn each_need_is_honoured() -> TestResult {
    assert!(names_missing(&kernel_without(&[]))?.is_empty());
    for field in Offsets::FIELDS {
        let missing = names_missing(&kernel_without(&[field.name]));
        match field.need {
            Need::Required => assert!(missing.is_err(), "{}", field.name),
            Need::Optional(_) => assert_eq!(missing?, [field.name]),
            Need::OneOf(_) => assert!(missing?.is_empty(), "{}", field.name),
        }
    }
    let both = ["file_count", "file_ref"];
    assert_eq!(names_missing(&kernel_without(&both))?, both);
    let some = kernel_without(&["cgroup", "file_ref", "uid"]);
    assert_eq!(names_missing(&some)?, ["uid", "cgroup"]);
    Ok(())
}

/// As on processors other than x86-64, whose registers have other names.
#[test]
fn fields_of_system_calls_are_no_loss_for_others() -> TestResult {
    let registers = ["task_status", "call_number", "call_fd", "call_address"];
    let names = [&registers[..], &["uid"]].concat();
    let bytes = kernel_without(&names);
    let (_, lacking) = resolve_offsets(&Btf::parse(&bytes)?)?;
    assert_eq!(lacking.len(), 5);
    let lost = Missing::by_fields(&lacking);
    let lost: Vec<_> = lost.iter().map(|one| (&*one.loses, &*one.what)).collect();
    assert_eq!(lost, [("user ids", "sock.sk_uid: no such member: sk_uid")]);
    Ok(())
}

#[test]
fn a_loss_is_told_with_its_reason() -> TestResult {
    let bytes = kernel_without(&["uid"]);
    let (offsets, missing) = resolve_offsets(&Btf::parse(&bytes)?)?;
    assert_eq!(offsets.uid, ABSENT);
    assert_eq!(missing.len(), 1);
    assert_eq!(missing[0].reason.to_string(), "no such member: sk_uid");
    assert_eq!(missing[0].lost, "user ids");

    let bytes = kernel(|field| Some(if field.name == "uid" { 8 } else { field.size }));
    let (offsets, missing) = resolve_offsets(&Btf::parse(&bytes)?)?;
    assert_eq!(offsets.uid, ABSENT);
    assert_eq!(missing.len(), 1);
    assert_eq!(missing[0].reason.to_string(), "size is 8, expected 4");

    let bytes = kernel_without(&["protocol"]);
    let error = resolve_offsets(&Btf::parse(&bytes)?)
        .err()
        .ok_or("accepted")?
        .to_string();
    for part in [
        "struct sock",
        "sk_protocol",
        "no such member",
        "5.8 or later",
        "uname -r",
    ] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }

    let empty = Builder::new().build();
    let error = resolve_offsets(&Btf::parse(&empty)?)
        .err()
        .ok_or("accepted")?;
    assert_eq!(error.reason, FieldError::NoStruct);
    Ok(())
}
