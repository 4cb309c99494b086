//! What a guest is to do: written by the host, read by the guest, `key=value` lines.

use std::fmt;
use std::str::FromStr;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// Where tcpstate is.
    pub tcpstate: String,
    /// Seconds that a test may take.
    pub limit: u64,
    /// How many tests run at a time, besides those that wait.
    pub lanes: usize,
    /// Beginnings of the names of tests that wait more than they work: all of them are started first.
    pub waiting: Vec<String>,
    /// Folders of the kernel's that nobody shall see.
    pub hidden: Vec<String>,
    /// The capabilities (`bpf,perfmon`) with which `tcpstate probe` is run as nobody; as root if there are none.
    pub capabilities: String,
    /// For the test program: part of a test's name, `--skip` ...
    pub arguments: Vec<String>,
    /// What the tests are run with, one after the other.
    pub plans: Vec<Plan>,
}

/// Tests, and what they are run with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub label: String,
    /// For the test program: which tests.
    pub filters: Vec<String>,
    /// Environment variables.
    pub variables: Vec<(String, String)>,
}

impl fmt::Display for Orders {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "tcpstate={}", self.tcpstate)?;
        writeln!(out, "limit={}", self.limit)?;
        writeln!(out, "lanes={}", self.lanes)?;
        writeln!(out, "capabilities={}", self.capabilities)?;
        let lists = [
            ("waiting", &self.waiting),
            ("hidden", &self.hidden),
            ("argument", &self.arguments),
        ];
        for (key, values) in lists {
            for value in values {
                writeln!(out, "{key}={value}")?;
            }
        }
        for plan in &self.plans {
            writeln!(out, "plan={}", plan.label)?;
            for filter in &plan.filters {
                writeln!(out, "filter={filter}")?;
            }
            for (name, value) in &plan.variables {
                writeln!(out, "variable={name}={value}")?;
            }
        }
        Ok(())
    }
}

/// Reads what was written; the line that is not understood is the error.
impl FromStr for Orders {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut orders = Self::default();
        for line in text.lines() {
            orders.take(line).ok_or_else(|| line.to_owned())?;
        }
        Ok(orders)
    }
}

impl Orders {
    fn take(&mut self, line: &str) -> Option<()> {
        let (key, value) = line.split_once('=')?;
        let value = value.to_owned();
        match key {
            "tcpstate" => self.tcpstate = value,
            "limit" => self.limit = value.parse().ok()?,
            "lanes" => self.lanes = value.parse().ok()?,
            "capabilities" => self.capabilities = value,
            "waiting" => self.waiting.push(value),
            "hidden" => self.hidden.push(value),
            "argument" => self.arguments.push(value),
            "plan" => self.plans.push(Plan {
                label: value,
                ..Plan::default()
            }),
            "filter" => self.plans.last_mut()?.filters.push(value),
            "variable" => {
                let (name, value) = value.split_once('=')?;
                let variable = (name.to_owned(), value.to_owned());
                self.plans.last_mut()?.variables.push(variable);
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let orders = Orders {
            tcpstate: "/a b/tcpstate".to_owned(),
            limit: 60,
            lanes: 2,
            waiting: words(&["netem::"]),
            hidden: words(&["/sys/kernel/btf"]),
            capabilities: "bpf,perfmon".to_owned(),
            arguments: words(&["--skip", "a=b"]),
            plans: vec![
                Plan {
                    label: "TIME_WAIT by timer".to_owned(),
                    filters: words(&["timewait::"]),
                    variables: vec![("A".to_owned(), "b=c".to_owned())],
                },
                Plan {
                    label: "rest".to_owned(),
                    ..Plan::default()
                },
            ],
        };
        assert_eq!(orders.to_string().parse(), Ok(orders));
        assert_eq!("limit=x".parse::<Orders>(), Err("limit=x".to_owned()));
        assert_eq!("filter=x".parse::<Orders>(), Err("filter=x".to_owned()));
    }
}
