//! `weir log`: what happened to an object, or to all, and when.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use k8s_openapi::jiff::Timestamp;

use super::remote::{AdminArgs, Output, status_error};
use super::table::width;
use crate::admin::api::v1;
use crate::admin::api::v1::timeline_entry::Kind;
use crate::proto_json;

/// Show what happened to an object, or to all, and when
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir log vs/my-app -n shop                  why did v2 get no traffic at 03:12?
  weir log dr/my-app -n shop --since 1h -f
  weir log -n shop                            all objects of a namespace
  weir log -o json | jq -r '.entries[] | select(.kind == \"NACKED\") | .text'

Each line is an event: a version of the object was read and accepted or rejected, a weight was held
back and released, it came into force with a revision of the mesh, and the proxies ACKed it, rejected
it or lag. What concerns all objects is shown too: that the Kubernetes API did not answer, and that
proxies connected. Times are in UTC, as in weir's own log.

The time line is that of the replica that is asked, about its own proxies; it begins when weir starts
and is kept in memory (see --timeline-memory of weir serve). The line `whole since` says from when on
nothing is missing; the entries above it are incomplete.

Exit status: 0 success; 1 weir cannot be reached or knows no such object; 2 usage error.")]
pub(crate) struct Args {
    /// The object: virtualservice/NAME (vs), destinationrule/NAME (dr), or another kind that weir reads [default: all]
    #[arg(value_name = "KIND/NAME")]
    object: Option<String>,
    /// Its namespace [default: default]; without an object, only objects of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Only events of this last time, for example 30m or 1h
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Keep running and print events as they happen
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    admin: AdminArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

impl Args {
    fn request(&self) -> anyhow::Result<v1::GetTimelineRequest> {
        let since = self.since.clone().unwrap_or_default();
        let Some(object) = &self.object else {
            let namespace = self.namespace.clone().unwrap_or_default();
            return Ok(v1::GetTimelineRequest { namespace, since, ..Default::default() });
        };
        let Some((kind, name)) = object.split_once('/').filter(|(_, name)| !name.is_empty()) else {
            return Err(super::usage(format!("`{object}`: expected KIND/NAME")));
        };
        let namespace = self.namespace.clone().unwrap_or_else(|| "default".to_owned());
        Ok(v1::GetTimelineRequest {
            kind: kind.to_owned(),
            namespace,
            name: name.to_owned(),
            since,
        })
    }
}

/// Runs the command.
///
/// # Errors
/// weir cannot be asked, knows no such object, or the result cannot be written.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let request = args.request()?;
    let mut client = args.admin.client().await?;
    let page = Page::of_terminal(args.object.is_none());
    if !args.follow {
        let answer = client.get_timeline(request).await.map_err(status_error)?.into_inner();
        args.output.print(&proto_json::message_to_json(&answer)?, || page.whole(&answer))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut updates = client.watch_timeline(request).await.map_err(status_error)?.into_inner();
    let mut is_first = true;
    loop {
        tokio::select! {
            update = updates.message() => match update.map_err(status_error)? {
                Some(answer) => {
                    let first = std::mem::take(&mut is_first);
                    if args.output == Output::Yaml && !first {
                        super::print("---\n")?;
                    }
                    args.output.print(&proto_json::message_to_json(&answer)?, || {
                        if first { page.begin(&answer) } else { page.lines(&answer) }
                    })?;
                }
                None => anyhow::bail!("weir closed the stream"),
            },
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// The width of the column with the word for what happened.
const WORD: usize = 11;

/// The least width for the text of an event.
const TEXT: usize = 24;

/// How entries are printed.
struct Page {
    width: usize,
    colours: bool,
    /// Whether each entry names its object.
    names: bool,
}

impl Page {
    fn of_terminal(names: bool) -> Self {
        let wants_none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colours = std::io::stdout().is_terminal() && !wants_none;
        Self { width: usize::from(width()), colours, names }
    }

    /// From when on nothing is missing, all entries, and how it is now.
    fn whole(&self, timeline: &v1::Timeline) -> String {
        self.begin(timeline) + &timeline.now.as_ref().map(|now| self.now(now)).unwrap_or_default()
    }

    fn begin(&self, timeline: &v1::Timeline) -> String {
        let whole = timeline.whole_since.as_ref().map(time).unwrap_or_default();
        let line = format!("{whole}  whole since then, as replica {} saw it", timeline.replica);
        // Versions are kept for longer than conditions that come and go, so there may be some from before.
        let since = timeline.whole_since.as_ref().map(instant);
        let (before, after): (Vec<_>, Vec<_>) =
            timeline.entries.iter().partition(|entry| entry.time.as_ref().map(instant) < since);
        let [before, after] = [before, after].map(|entries| self.entries(entries));
        format!("{before}{}\n{after}", self.painted(&line, DIM))
    }

    fn lines(&self, timeline: &v1::Timeline) -> String {
        self.entries(&timeline.entries)
    }

    fn entries<'a>(&self, entries: impl IntoIterator<Item = &'a v1::TimelineEntry>) -> String {
        entries.into_iter().map(|entry| self.entry(entry)).collect()
    }

    fn entry(&self, entry: &v1::TimelineEntry) -> String {
        let time = entry.time.as_ref().map(time).unwrap_or_default();
        let mut text = match &entry.object {
            Some(object) if self.names => format!("{object}: "),
            _ => String::new(),
        };
        if entry.generation > 0 && matches!(entry.kind(), Kind::Accepted | Kind::Rejected) {
            text += &format!("generation {}: ", entry.generation);
        }
        text += &entry.text;
        if let Some(written) = &entry.written {
            text += &format!("; created at {}", to_the_second(written));
        }
        self.line(&time, word(entry.kind()), colour(entry), &text)
    }

    fn now(&self, now: &v1::ObjectSummary) -> String {
        let mut text = format!("live on {} of {} proxies of this replica", now.live, now.in_scope);
        for missing in &now.missing {
            let state = match missing.state() {
                v1::proxy_state::State::Rejected => "rejected it",
                v1::proxy_state::State::Held => "does not get it",
                _ => "does not have it",
            };
            text += &format!("; {} {state}", missing.proxy);
            if !missing.reason.is_empty() {
                text += &format!(": {}", missing.reason);
            }
        }
        for held in &now.held_changes {
            text += &format!("; held back: {held}");
        }
        let colour =
            if now.live == now.in_scope && now.held_changes.is_empty() { GREEN } else { YELLOW };
        self.line(&time_of(Timestamp::now()), "now", colour, &text)
    }

    /// The text may take several lines, in a column of its own.
    fn line(&self, time: &str, word: &str, colour: &str, text: &str) -> String {
        let margin = time.chars().count() + 2 + WORD + 2;
        let room = self.width.saturating_sub(margin).max(TEXT);
        let mut out = String::new();
        for (n, part) in folded(text, room).into_iter().enumerate() {
            match n {
                0 => {
                    let word = self.painted(&format!("{word:WORD$}"), colour);
                    out += format!("{time}  {word}  {part}").trim_end();
                }
                _ => out += &format!("{:margin$}{part}", ""),
            }
            out.push('\n');
        }
        out
    }

    fn painted(&self, text: &str, colour: &str) -> String {
        if self.colours { format!("{colour}{text}\x1b[0m") } else { text.to_owned() }
    }
}

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "";

fn colour(entry: &v1::TimelineEntry) -> &'static str {
    match entry.kind() {
        Kind::Rejected
        | Kind::Nacked
        | Kind::Lagging
        | Kind::NoEndpoints
        | Kind::ApiSilent
        | Kind::ApiFailing
        | Kind::ApiForbidden
        | Kind::FileUnreadable => RED,
        Kind::Held
        | Kind::MissingCluster
        | Kind::Unseen
        | Kind::NoRequests
        | Kind::ApiAbsent
        | Kind::Deleted => YELLOW,
        Kind::Acked
        | Kind::Requests
        | Kind::Endpoints
        | Kind::Released
        | Kind::CaughtUp
        | Kind::ApiAnswers
        | Kind::FileReadable => GREEN,
        Kind::Connected | Kind::Disconnected | Kind::Started => DIM,
        Kind::Accepted | Kind::Published | Kind::Sent | Kind::FirstAck | Kind::Unspecified => PLAIN,
    }
}

/// At most [`WORD`] letters.
fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "?",
        Kind::Accepted => "accepted",
        Kind::Rejected => "rejected",
        Kind::Deleted => "deleted",
        Kind::Held => "held",
        Kind::Released => "released",
        Kind::Published => "published",
        Kind::Sent => "sent",
        Kind::FirstAck => "first ACK",
        Kind::Acked => "ACKed",
        Kind::Nacked => "NACKed",
        Kind::MissingCluster => "no cluster",
        Kind::Lagging => "lagging",
        Kind::CaughtUp => "caught up",
        Kind::Unseen => "unseen",
        Kind::NoEndpoints => "no endpoint",
        Kind::Endpoints => "endpoint",
        Kind::NoRequests => "no requests",
        Kind::Requests => "requests",
        Kind::Started => "started",
        Kind::ApiSilent => "API silent",
        Kind::ApiFailing => "API fails",
        Kind::ApiForbidden => "forbidden",
        Kind::ApiAbsent => "not served",
        Kind::ApiAnswers => "API answers",
        Kind::FileUnreadable => "unreadable",
        Kind::FileReadable => "readable",
        Kind::Connected => "connected",
        Kind::Disconnected => "gone",
    }
}

/// In UTC with milliseconds, as wide for each time.
fn time(time: &envoy_types::pb::google::protobuf::Timestamp) -> String {
    Timestamp::new(time.seconds, time.nanos).map(time_of).unwrap_or_default()
}

/// For comparing.
fn instant(time: &envoy_types::pb::google::protobuf::Timestamp) -> (i64, i32) {
    (time.seconds, time.nanos)
}

fn time_of(time: Timestamp) -> String {
    format!("{time:.3}")
}

fn to_the_second(time: &envoy_types::pb::google::protobuf::Timestamp) -> String {
    Timestamp::new(time.seconds, 0).map(|time| time.to_string()).unwrap_or_default()
}

/// The text in lines of at most `width` letters, broken between words where that is possible.
fn folded(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        let gap = usize::from(used > 0);
        if used + gap + letters.len() > width && used > 0 {
            lines.push(String::new());
            used = 0;
        }
        for (n, part) in letters.chunks(width.max(1)).enumerate() {
            if n > 0 {
                lines.push(String::new());
                used = 0;
            }
            let Some(line) = lines.last_mut() else { continue };
            if used > 0 {
                line.push(' ');
                used += 1;
            }
            line.extend(part);
            used += part.len();
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::google::protobuf;

    fn page(names: bool) -> Page {
        Page { width: 100, colours: false, names }
    }

    fn entry(kind: Kind, text: &str) -> v1::TimelineEntry {
        v1::TimelineEntry {
            kind: kind.into(),
            time: Some(protobuf::Timestamp { seconds: 1_768_014_720, nanos: 5_000_000 }),
            object: Some(v1::ObjectRef {
                kind: "VirtualService".to_owned(),
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
            }),
            text: text.to_owned(),
            generation: 7,
            ..Default::default()
        }
    }

    #[test]
    fn entries_are_lines_with_the_text_in_a_column() {
        assert_eq!(
            page(false).entry(&entry(Kind::Accepted, "spec.http[0]: v1 100 -> 90 %")),
            "2026-01-10T03:12:00.005Z  accepted     generation 7: spec.http[0]: v1 100 -> 90 %\n"
        );
        let long = page(true).entry(&entry(Kind::Nacked, &"word ".repeat(30)));
        assert!(long.lines().count() > 1 && long.lines().all(|line| line.len() <= 100), "{long}");
        assert!(long.contains("NACKed       VirtualService shop/web: word"), "{long}");
        assert!(long.lines().skip(1).all(|line| line.starts_with(&" ".repeat(39))), "{long}");
    }

    #[test]
    fn entries_from_before_the_whole_part_stand_above_the_line_that_says_so() {
        let mut entries =
            [Kind::Accepted, Kind::NoEndpoints, Kind::Endpoints].map(|kind| entry(kind, "text"));
        for (seconds, entry) in (1_768_014_720..).zip(&mut entries) {
            entry.time = Some(protobuf::Timestamp { seconds, nanos: 0 });
        }
        let whole_since = entries[1].time;
        let entries = entries.to_vec();
        let timeline = v1::Timeline { whole_since, entries, ..Default::default() };
        let text = page(false).begin(&timeline);
        let words: Vec<_> =
            text.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(words, ["accepted", "whole", "no", "endpoint"], "{text}");
    }

    #[test]
    fn every_kind_has_a_word_that_fits() {
        for number in 1..40 {
            let Ok(kind) = Kind::try_from(number) else { continue };
            assert!(word(kind).len() <= WORD && word(kind) != "?", "{kind:?}");
        }
    }

    #[test]
    fn text_is_folded_between_words_and_within_long_ones() {
        assert_eq!(folded("one two three", 7), ["one two", "three"]);
        assert_eq!(folded("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(folded("", 3), [""]);
    }

    #[test]
    fn colours_are_for_terminals() {
        let painted = Page { colours: true, ..page(false) }.entry(&entry(Kind::Rejected, "no"));
        assert!(painted.contains("\x1b[31mrejected   \x1b[0m"), "{painted}");
    }
}
