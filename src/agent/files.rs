//! The files that Envoy starts with, and its arguments.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::Options;
use crate::bootstrap::label;

/// How long a listener or filter chain that is removed may keep its connections, in seconds; as in Istio.
const DRAIN: &str = "45";

/// Envoy's default arguments, unless others are given. Flags of one row are the same.
///
/// Responses of a draining listener close their connections at once, not only with growing probability. Envoy warns of each
/// deprecated field of each update, at the level of `misc`.
const DEFAULTS: [(&[&str], &str); 4] = [
    (&["--log-level", "-l"], "warning"),
    (&["--component-log-level"], "misc:error"),
    (&["--drain-time-s"], DRAIN),
    (&["--drain-strategy"], "immediate"),
];

/// Writes the files, and returns Envoy's arguments.
pub(super) fn write(options: &Options) -> anyhow::Result<Vec<OsString>> {
    let Options { bootstrap, folder, .. } = options;
    if let Some(identity) = &bootstrap.identity {
        for (what, file) in [("--token-file", &identity.token), ("--root-cert", &identity.roots)] {
            if let Err(error) = std::fs::File::open(file) {
                bail!("{what} {}: {error}", file.display());
            }
        }
        create(&identity.token_secret, &format!("{:#}\n", identity.token_secret()))?;
    }
    let config = folder.join("envoy.json");
    create(&config, &format!("{:#}\n", bootstrap.to_json()))?;
    let mut args: Vec<OsString> = vec!["-c".into(), config.into()];
    // Nothing restarts Envoy within its container.
    args.push("--disable-hot-restart".into());
    for (flags, value) in DEFAULTS {
        if let [flag, ..] = flags
            && !flags.iter().any(|flag| is_given(flag, &options.envoy_args))
        {
            args.extend([flag.into(), value.into()]);
        }
    }
    args.extend(options.envoy_args.iter().cloned());
    Ok(args)
}

fn is_given(flag: &str, args: &[OsString]) -> bool {
    args.iter().any(|arg| {
        let given = arg.to_string_lossy();
        given == flag || given.strip_prefix(flag).is_some_and(|rest| rest.starts_with('='))
    })
}

fn create(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// The labels in a file of the downward API: a line `key="value"` for each, where the value is quoted as in Go.
///
/// # Errors
/// A description of the first line that is none.
pub(crate) fn labels(text: &str) -> Result<Vec<(String, String)>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(n, line)| label_of(line).map_err(|reason| format!("line {}: {reason}", n + 1)))
        .collect()
}

fn label_of(line: &str) -> Result<(String, String), String> {
    let quoted = line
        .split_once('=')
        .and_then(|(key, value)| Some((key, value.strip_prefix('"')?.strip_suffix('"')?)));
    // The value of a label contains nothing that is escaped within quotes.
    let (key, value) = quoted.ok_or_else(|| format!("{line:?} is not KEY=\"VALUE\""))?;
    label(&format!("{key}={value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_from_a_file_of_the_downward_api() {
        let text = "app=\"web\"\ntopology.kubernetes.io/zone=\"eu-a\"\nempty=\"\"";
        let pairs = [("app", "web"), ("topology.kubernetes.io/zone", "eu-a"), ("empty", "")];
        assert_eq!(labels(text).unwrap(), pairs.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(labels("a=\"b\"\nc=d").unwrap_err(), "line 2: \"c=d\" is not KEY=\"VALUE\"");
        assert!(labels("a=\"b c\"").unwrap_err().starts_with("line 1: \"b c\" is not the value"));
    }

    #[test]
    fn a_default_gives_way_to_what_is_given() {
        let args = ["-l", "debug", "--drain-time-s=3"].map(OsString::from);
        let given = DEFAULTS.map(|(flags, _)| flags.iter().any(|flag| is_given(flag, &args)));
        assert_eq!(given, [true, false, true, false]);
    }
}
