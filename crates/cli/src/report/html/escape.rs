//! Texts of others, made harmless.

use std::fmt::{self, Display, Write};

use crate::report::Named;

/// Most characters of a name. The kernel's are shorter; a guest may tell others.
const NAME_MAX: usize = 40;

/// A text as content or as the value of an attribute: nothing in it is markup, and nothing moves
/// the text around it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() || invisible(c) => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Characters that turn the direction of text, break lines, or show nothing.
fn invisible(c: char) -> bool {
    matches!(
        c,
        '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}'
            | '\u{61c}'
    )
}

/// At most so many characters, the last of them an ellipsis if there were more.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept = text.chars().take(most.saturating_sub(1));
    kept.chain(['…']).collect()
}

/// A process, with its id; not escaped.
pub(super) fn named(process: &Named) -> String {
    let name = if process.name.is_empty() {
        "process"
    } else {
        &process.name
    };
    format!("{} ({})", cut(name, NAME_MAX), process.pid)
}

/// Things in a row: `a, b and c`.
pub(super) fn listed(things: &[String]) -> String {
    match things {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_guest_is_markup() {
        let hostile = "<script>alert('x')</script>&\"\u{202e}gpj\n\0";
        assert_eq!(
            Escaped(hostile).to_string(),
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;\u{fffd}gpj\u{fffd}\u{fffd}"
        );
    }

    #[test]
    fn long_names_are_cut_at_characters() {
        assert_eq!(cut("äöüß", 4), "äöüß");
        assert_eq!(cut("äöüßé", 4), "äöü…");
    }
}
