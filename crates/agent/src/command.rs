//! A process's command line, for people to read: what looks like a secret is not told.

use guest_proto::shortened;

/// Most characters that are told.
const LENGTH_MAX: usize = 120;
/// Words whose values are nobody's business.
const SECRET: [&str; 9] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "apikey",
    "api-key",
    "api_key",
];
const HIDDEN: &str = "***";

/// From `/proc/PID/cmdline`.
pub(crate) fn told(cmdline: &str) -> String {
    let mut told: Vec<String> = Vec::new();
    let mut value_follows = false;
    for (number, word) in cmdline.trim_end_matches('\0').split('\0').enumerate() {
        let hidden = std::mem::take(&mut value_follows) && !word.starts_with('-');
        if hidden {
            told.push(HIDDEN.to_owned());
            continue;
        }
        // The program's own name is no option, whatever it is.
        value_follows =
            number > 0 && word.starts_with('-') && !word.contains('=') && is_secret(word);
        told.push(without_values(word));
    }
    shortened(&told.join(" "), LENGTH_MAX)
}

/// A word as it is, but for the value of `secret=value` and the password in `scheme://user:password@`.
fn without_values(word: &str) -> String {
    if let Some((name, _)) = word.split_once('=')
        && is_secret(name)
    {
        return format!("{name}={HIDDEN}");
    }
    if let Some((scheme, rest)) = word.split_once("://")
        && let Some((user, host)) = rest.split_once('@')
        && let Some((user, _)) = user.split_once(':')
    {
        return format!("{scheme}://{user}:{HIDDEN}@{host}");
    }
    word.to_owned()
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_look_like_secrets_are_not_told() {
        for (words, expected) in [
            ("sshd\0-D\0", "sshd -D"),
            (
                "app\0--db-password\0hunter2\0-v",
                "app --db-password *** -v",
            ),
            ("app\0--token=abc=def\0x", "app --token=*** x"),
            ("env\0API_KEY=1234\0run", "env API_KEY=*** run"),
            (
                "worker\0postgres://shop:hunter2@db/shop",
                "worker postgres://shop:***@db/shop",
            ),
            ("/usr/bin/passwd\0root", "/usr/bin/passwd root"),
            ("app\0--password\0--next", "app --password --next"),
            ("", ""),
        ] {
            assert_eq!(told(words), expected);
        }
        assert!(told(&"x".repeat(500)).chars().count() <= LENGTH_MAX);
    }
}
