//! A table in a file of Parquet's format: typed columns, written in groups of rows.

use std::{borrow::Cow, io, sync::Arc};

use bytes::Bytes;
use parquet::{
    basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical, ZstdLevel},
    data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int32Type, Int64Type},
    errors::ParquetError,
    file::{
        metadata::KeyValue,
        properties::WriterProperties,
        writer::{SerializedColumnWriter, SerializedFileWriter},
    },
    schema::types::Type,
};

/// Rows that are kept in memory until they are written: some 25 MB for transitions, twice that for connections.
const ROWS: usize = 32_768;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    U16,
    U32,
    U64,
    /// A time of day in nanoseconds, UTC.
    Time,
    Double,
    Flag,
}

/// One value.
#[derive(Clone, Debug)]
pub enum Cell<'a> {
    Null,
    Word(&'static str),
    Text(Cow<'a, str>),
    U32(u32),
    U64(u64),
    Time(i64),
    Double(f64),
    Flag(bool),
}

impl<'a, T: Into<Cell<'a>>> From<Option<T>> for Cell<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

macro_rules! cells {
    ($($type:ty => $variant:ident,)+) => {
        $(impl From<$type> for Cell<'_> {
            fn from(value: $type) -> Self {
                Self::$variant(value.into())
            }
        })+
    };
}

cells! {
    &'static str => Word,
    String => Text,
    u16 => U32,
    u32 => U32,
    u64 => U64,
    f64 => Double,
    bool => Flag,
}

impl<'a> From<Cow<'a, str>> for Cell<'a> {
    fn from(text: Cow<'a, str>) -> Self {
        Self::Text(text)
    }
}

/// The values of a column that are not null yet to be written.
#[derive(Debug)]
enum Values {
    Text(Vec<ByteArray>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Double(Vec<f64>),
    Flag(Vec<bool>),
}

#[derive(Debug)]
struct Column {
    values: Values,
    /// For each row 1, or 0 if it is null.
    present: Vec<i16>,
}

impl Column {
    const fn new(kind: Kind) -> Self {
        Self {
            values: match kind {
                Kind::Text => Values::Text(Vec::new()),
                Kind::U16 | Kind::U32 => Values::Int32(Vec::new()),
                Kind::U64 | Kind::Time => Values::Int64(Vec::new()),
                Kind::Double => Values::Double(Vec::new()),
                Kind::Flag => Values::Flag(Vec::new()),
            },
            present: Vec::new(),
        }
    }

    /// A value of another kind is none.
    fn push(&mut self, cell: Cell<'_>) {
        let present = match (&mut self.values, cell) {
            (Values::Text(all), Cell::Word(word)) => {
                all.push(Bytes::from_static(word.as_bytes()).into());
                true
            }
            (Values::Text(all), Cell::Text(text)) => {
                all.push(text.into_owned().into_bytes().into());
                true
            }
            // The bits of unsigned numbers: the column says that they are.
            (Values::Int32(all), Cell::U32(number)) => {
                all.push(number.cast_signed());
                true
            }
            (Values::Int64(all), Cell::U64(number)) => {
                all.push(number.cast_signed());
                true
            }
            (Values::Int64(all), Cell::Time(time)) => {
                all.push(time);
                true
            }
            (Values::Double(all), Cell::Double(number)) => {
                all.push(number);
                true
            }
            (Values::Flag(all), Cell::Flag(flag)) => {
                all.push(flag);
                true
            }
            (_, cell) => {
                debug_assert!(matches!(cell, Cell::Null), "{cell:?}");
                false
            }
        };
        self.present.push(present.into());
    }

    fn write(&mut self, out: &mut SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
        let present = Some(&self.present[..]);
        match &mut self.values {
            Values::Text(all) => {
                out.typed::<ByteArrayType>()
                    .write_batch(all, present, None)?;
                all.clear();
            }
            Values::Int32(all) => {
                out.typed::<Int32Type>().write_batch(all, present, None)?;
                all.clear();
            }
            Values::Int64(all) => {
                out.typed::<Int64Type>().write_batch(all, present, None)?;
                all.clear();
            }
            Values::Double(all) => {
                out.typed::<DoubleType>().write_batch(all, present, None)?;
                all.clear();
            }
            Values::Flag(all) => {
                out.typed::<BoolType>().write_batch(all, present, None)?;
                all.clear();
            }
        }
        self.present.clear();
        Ok(())
    }
}

/// A table that is being written.
pub struct Table<W: io::Write + Send> {
    /// `None` when it is finished.
    out: Option<SerializedFileWriter<W>>,
    columns: Vec<Column>,
    rows: usize,
}

impl<W: io::Write + Send> Table<W> {
    /// With these columns.
    pub fn new(out: W, name: &str, columns: &[(String, Kind)]) -> io::Result<Self> {
        let fields = columns
            .iter()
            .map(|(name, kind)| field(name, *kind).map(Arc::new))
            .collect::<Result<_, _>>()
            .map_err(io::Error::other)?;
        let schema = Type::group_type_builder(name)
            .with_fields(fields)
            .build()
            .map_err(io::Error::other)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by(concat!("tcpstate ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let out = SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties))
            .map_err(io::Error::other)?;
        Ok(Self {
            out: Some(out),
            columns: columns.iter().map(|(_, kind)| Column::new(*kind)).collect(),
            rows: 0,
        })
    }

    /// Takes a row: a cell for each column.
    pub fn row<'a>(&mut self, cells: impl IntoIterator<Item = Cell<'a>>) -> io::Result<()> {
        let mut cells = cells.into_iter();
        for column in &mut self.columns {
            column.push(cells.next().unwrap_or(Cell::Null));
        }
        debug_assert!(cells.next().is_none(), "more cells than columns");
        self.rows += 1;
        if self.rows >= ROWS {
            self.group().map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Writes the rows that there are as a group.
    fn group(&mut self) -> Result<(), ParquetError> {
        let Some(out) = self.out.as_mut().filter(|_| self.rows > 0) else {
            return Ok(());
        };
        let mut group = out.next_row_group()?;
        for column in &mut self.columns {
            if let Some(mut out) = group.next_column()? {
                column.write(&mut out)?;
                out.close()?;
            }
        }
        group.close()?;
        self.rows = 0;
        Ok(())
    }

    /// Writes what is left, and what else is known.
    pub fn finish(&mut self, about: &[(&str, String)]) -> io::Result<()> {
        self.group().map_err(io::Error::other)?;
        let Some(mut out) = self.out.take() else {
            return Ok(());
        };
        for (name, value) in about {
            out.append_key_value_metadata(KeyValue::new((*name).to_owned(), value.clone()));
        }
        out.into_inner().map_err(io::Error::other)?.flush()
    }
}

fn field(name: &str, kind: Kind) -> Result<Type, ParquetError> {
    let unsigned = |bit_width| LogicalType::integer(bit_width, false);
    let (physical, logical) = match kind {
        Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        Kind::U16 => (Physical::INT32, Some(unsigned(16))),
        Kind::U32 => (Physical::INT32, Some(unsigned(32))),
        Kind::U64 => (Physical::INT64, Some(unsigned(64))),
        Kind::Time => (
            Physical::INT64,
            Some(LogicalType::timestamp(true, TimeUnit::NANOS)),
        ),
        Kind::Double => (Physical::DOUBLE, None),
        Kind::Flag => (Physical::BOOLEAN, None),
    };
    Type::primitive_type_builder(name, physical)
        .with_repetition(Repetition::OPTIONAL)
        .with_logical_type(logical)
        .build()
}
