//! Names of slices and annotations: written once, and known by number after that.

use hashbrown::HashMap;
use serde_json::{Map, Value};

use super::packet::{DebugAnnotation, InternedData, InternedName};
use crate::sink::escape;

/// The names that were written. There are as many as there are states, ways to end and fields: no name is made of what a
/// recording says.
#[derive(Debug, Default)]
pub struct Names {
    events: HashMap<String, u64>,
    annotations: HashMap<String, u64>,
    colours: HashMap<String, u64>,
    new: InternedData,
}

impl Names {
    /// The number of a slice's name.
    pub fn event(&mut self, name: &str) -> u64 {
        number(&mut self.events, &mut self.new.event_names, name)
    }

    /// The number of what slices of the same colour have in common.
    pub fn colour(&mut self, name: &str) -> u64 {
        number(&mut self.colours, &mut self.new.correlation_id_str, name)
    }

    /// What is known of a slice, as annotations. What is not known is left out.
    pub fn annotations(&mut self, values: &Map<String, Value>) -> Vec<DebugAnnotation> {
        values
            .iter()
            .filter_map(|(name, value)| {
                let mut annotation = self.value(value)?;
                let names = &mut self.new.debug_annotation_names;
                annotation.name_iid = Some(number(&mut self.annotations, names, name));
                Some(annotation)
            })
            .collect()
    }

    fn value(&mut self, value: &Value) -> Option<DebugAnnotation> {
        let mut annotation = DebugAnnotation::default();
        match value {
            Value::Null => return None,
            Value::Bool(value) => annotation.bool_value = Some(*value),
            Value::Number(number) => {
                annotation.uint_value = number.as_u64();
                if annotation.uint_value.is_none() {
                    annotation.int_value = number.as_i64();
                }
                if annotation
                    .uint_value
                    .or(annotation.int_value.map(|_| 0))
                    .is_none()
                {
                    annotation.double_value = number.as_f64();
                }
            }
            Value::String(text) => annotation.string_value = Some(escape::text(text).into_owned()),
            Value::Array(values) if values.is_empty() => return None,
            Value::Array(values) => {
                annotation.array_values = values
                    .iter()
                    .filter_map(|value| self.value(value))
                    .collect();
            }
            Value::Object(values) => {
                annotation.dict_entries = self.annotations(values);
                if annotation.dict_entries.is_empty() {
                    return None;
                }
            }
        }
        Some(annotation)
    }

    /// The names that have not been written yet: they go with the packet that uses them first.
    pub fn take_new(&mut self) -> Option<InternedData> {
        let new = std::mem::take(&mut self.new);
        (new != InternedData::default()).then_some(new)
    }
}

fn number(known: &mut HashMap<String, u64>, new: &mut Vec<InternedName>, name: &str) -> u64 {
    if let Some(number) = known.get(name) {
        return *number;
    }
    // 0 is no number.
    let number = known.len() as u64 + 1;
    known.insert(name.to_owned(), number);
    new.push(InternedName {
        iid: Some(number),
        name: Some(name.to_owned()),
    });
    number
}
