//! Where packages of another Debian release come from: the machine's own sources with another suite name, so that a mirror
//! or a proxy chosen for this machine is used for them too.

/// Both forms in which apt is told its sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `*.list`: one source a line.
    Lines,
    /// `*.sources`: one source a paragraph.
    Paragraphs,
}

/// A suite that packages are wanted of.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    pub name: &'static str,
    /// It has companions for security and updates, as released ones have.
    pub released: bool,
}

/// The machine's sources for its own release, rewritten for another suite; sources that are not part of the release
/// (another vendor's) are left out. Empty if none remains.
pub fn rewritten(text: &str, form: Form, codename: &str, suite: Suite) -> String {
    match form {
        Form::Lines => text
            .lines()
            .filter_map(|line| rewritten_line(line, codename, suite))
            .map(|line| line + "\n")
            .collect(),
        Form::Paragraphs => {
            let lines: Vec<_> = text
                .lines()
                .map(str::trim_end)
                .filter(|line| !line.starts_with('#'))
                .collect();
            lines
                .split(|line| line.is_empty())
                .filter_map(|paragraph| rewritten_paragraph(paragraph, codename, suite))
                .map(|paragraph| paragraph + "\n")
                .collect()
        }
    }
}

/// `deb [options] address suite component...`
fn rewritten_line(line: &str, codename: &str, suite: Suite) -> Option<String> {
    let line = line.split('#').next()?;
    let mut words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
    if words.first()? != "deb" {
        return None;
    }
    let options = if words.get(1)?.starts_with('[') {
        words.iter().position(|word| word.ends_with(']'))?
    } else {
        0
    };
    let at = options + 2;
    *words.get_mut(at)? = renamed(words.get(at)?, codename, suite)?;
    let has_main = words[at + 1..].iter().any(|component| component == "main");
    let (options, source) = words.split_at(options + 1);
    // Which processor it is for, apt is told elsewhere.
    let options: Vec<_> = options
        .iter()
        .map(|word| word.trim_matches(['[', ']']))
        .filter(|word| !word.is_empty() && *word != "deb" && !word.starts_with("arch="))
        .collect();
    let options = match options.as_slice() {
        [] => String::new(),
        some => format!("[{}] ", some.join(" ")),
    };
    has_main.then(|| format!("deb {options}{}", source.join(" ")))
}

fn rewritten_paragraph(lines: &[&str], codename: &str, suite: Suite) -> Option<String> {
    let value = |key: &str| {
        lines.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(key).then_some(value.trim())
        })
    };
    let suites: Vec<_> = value("Suites")?
        .split_whitespace()
        .filter_map(|name| renamed(name, codename, suite))
        .collect();
    let usable = value("Types")?.split_whitespace().any(|kind| kind == "deb")
        && value("Components")?
            .split_whitespace()
            .any(|component| component == "main")
        && value("Enabled").is_none_or(|enabled| enabled != "no")
        && !suites.is_empty();
    usable.then(|| {
        let lines = lines.iter().map(|line| match line.split_once(':') {
            Some((key, _)) if key.eq_ignore_ascii_case("Suites") => {
                format!("Suites: {}\n", suites.join(" "))
            }
            Some((key, _)) if key.eq_ignore_ascii_case("Architectures") => String::new(),
            Some((key, _)) if key.eq_ignore_ascii_case("Types") => "Types: deb\n".to_owned(),
            _ => format!("{line}\n"),
        });
        lines.collect()
    })
}

/// The suite in place of the machine's own, with the same companion (`-security`); none if it is no suite of this release.
fn renamed(name: &str, codename: &str, suite: Suite) -> Option<String> {
    let companion = name.strip_prefix(codename)?;
    let known = companion.is_empty()
        || suite.released && ["-security", "-updates", "-backports"].contains(&companion);
    known.then(|| format!("{}{companion}", suite.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Suite = Suite {
        name: "bullseye",
        released: true,
    };
    const NEXT: Suite = Suite {
        name: "sid",
        released: false,
    };

    #[test]
    fn lines_of_the_release_are_renamed_and_others_left_out() {
        let text = "\
            # deb http://a.example/debian bookworm main\n\
            deb [arch=amd64 signed-by=/k] http://a.example/debian bookworm main contrib # ours\n\
            deb-src http://a.example/debian bookworm main\n\
            deb [arch=amd64] http://a.example/security bookworm-security main\n\
            deb http://b.example/tool bookworm stable\n\
            deb http://c.example/tool tool-bookworm main\n";
        assert_eq!(
            rewritten(text, Form::Lines, "bookworm", OLD),
            "deb [signed-by=/k] http://a.example/debian bullseye main contrib\n\
             deb http://a.example/security bullseye-security main\n"
        );
        assert_eq!(
            rewritten(text, Form::Lines, "bookworm", NEXT),
            "deb [signed-by=/k] http://a.example/debian sid main contrib\n"
        );
    }

    #[test]
    fn paragraphs_of_the_release_are_renamed_and_others_left_out() {
        let text = "\
            # ours\n\
            Types: deb deb-src\n\
            URIs: http://a.example/debian\n\
            Suites: bookworm bookworm-updates\n\
            Architectures: amd64\n\
            Components: main\n\
            Signed-By: /k\n\
            \n\
            Types: deb\n\
            Enabled: no\n\
            URIs: http://b.example/debian\n\
            Suites: bookworm\n\
            Components: main\n\
            \n\
            Types: deb\n\
            URIs: http://c.example/tool\n\
            Suites: nodistro\n\
            Components: main\n";
        let wanted = |suites: &str| {
            format!(
                "Types: deb\nURIs: http://a.example/debian\nSuites: {suites}\nComponents: main\nSigned-By: /k\n\n"
            )
        };
        assert_eq!(
            rewritten(text, Form::Paragraphs, "bookworm", OLD),
            wanted("bullseye bullseye-updates")
        );
        assert_eq!(
            rewritten(text, Form::Paragraphs, "bookworm", NEXT),
            wanted("sid")
        );
    }
}
