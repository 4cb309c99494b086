//! What a terminal may be sent besides text.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::IsTerminal,
};

/// Whether it takes control sequences: TERM tells of one that does.
pub fn is_able(out: &impl IsTerminal) -> bool {
    out.is_terminal() && names_able(env::var_os("TERM").as_deref())
}

/// Whether it shows colours, and nobody has said that they are not wanted (<https://no-color.org>).
pub fn has_colours(out: &impl IsTerminal) -> bool {
    is_able(out) && wants_colours(env::var_os("NO_COLOR"))
}

fn names_able(term: Option<&OsStr>) -> bool {
    term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

fn wants_colours(no_color: Option<OsString>) -> bool {
    no_color.is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{names_able, wants_colours};

    #[test]
    fn what_the_environment_says() {
        assert!(names_able(Some("xterm-256color".as_ref())));
        for unable in [None, Some("".as_ref()), Some("dumb".as_ref())] {
            assert!(!names_able(unable));
        }
        assert!(wants_colours(None));
        assert!(wants_colours(Some("".into())));
        assert!(!wants_colours(Some("1".into())));
    }
}
