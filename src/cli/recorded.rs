//! Requests recorded in a file, one per line: the access log of a sidecar, or requests that a person wrote down.

mod line;

use std::collections::BTreeMap;
use std::io::{BufRead, Read as _};

use line::{Line, read_line};

use super::progress::Progress;
use crate::admin::MAX_RECORDED;
use crate::admin::api::v1;

/// The maximum length of a line in bytes. Envoy accepts at most 60 KiB of request headers.
const MAX_LINE: usize = 64 << 10;

/// The maximum size of all different requests in bytes: they travel in one message with the files.
const MAX_BYTES: usize = 8 << 20;

/// How many lines are read between two reports.
const REPORTED: u64 = 10_000;

/// A request in the words of the flags: `METHOD URL`, and its headers.
pub(super) type Request = (String, Vec<String>);

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Recording {
    /// The different requests, and how often each was sent.
    pub requests: BTreeMap<Request, u64>,
    /// The number of lines.
    pub lines: u64,
    /// Lines of an access log about requests that the pod received, and about connections without HTTP.
    pub not_sent: u64,
    /// Requests that are not among `requests`, because there were too many different ones.
    pub too_many: u64,
    /// Lines that are not a request.
    pub unreadable: u64,
    /// The first of them: its number, and what is wrong with it.
    pub first_unreadable: Option<(u64, String)>,
    bytes: usize,
}

impl Recording {
    /// Reads all lines.
    ///
    /// # Errors
    /// The input cannot be read.
    pub(super) fn read(mut input: impl BufRead, progress: &Progress) -> std::io::Result<Self> {
        progress.is("reading requests");
        let mut recording = Self::default();
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX) + 1;
            if input.by_ref().take(limit).read_until(b'\n', &mut buffer)? == 0 {
                return Ok(recording);
            }
            recording.lines += 1;
            if recording.lines.is_multiple_of(REPORTED) {
                progress.further(&format!("reading requests: {} lines", recording.lines));
            }
            if buffer.len() > MAX_LINE && !buffer.ends_with(b"\n") {
                input.skip_until(b'\n')?;
                recording.add(Err(format!("is longer than {MAX_LINE} bytes")));
                continue;
            }
            match std::str::from_utf8(&buffer) {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => recording.add(read_line(text.trim())),
                Err(_) => recording.add(Err("is not UTF-8".to_owned())),
            }
        }
    }

    fn add(&mut self, line: Result<Line, String>) {
        match line {
            Ok(Line::Sent(request)) => self.add_request(request),
            Ok(Line::NotSent) => self.not_sent += 1,
            Err(why) => {
                self.unreadable += 1;
                self.first_unreadable.get_or_insert((self.lines, why));
            }
        }
    }

    fn add_request(&mut self, request: Request) {
        if let Some(count) = self.requests.get_mut(&request) {
            *count += 1;
            return;
        }
        let size = request.0.len() + request.1.iter().map(String::len).sum::<usize>();
        if self.requests.len() >= MAX_RECORDED || self.bytes + size > MAX_BYTES {
            self.too_many += 1;
            return;
        }
        self.bytes += size;
        self.requests.insert(request, 1);
    }

    /// The same for weir, as requests of the pod `from`. The most frequent come first.
    pub(super) fn asked(&self, from: &str) -> Vec<v1::RecordedRequest> {
        let requests = self.requests.iter().map(|((request, headers), count)| {
            let (from, request, headers) = (from.to_owned(), request.clone(), headers.clone());
            let request = v1::ExplainRequest { from, request, headers, ..Default::default() };
            v1::RecordedRequest { request: Some(request), count: *count }
        });
        let mut requests: Vec<_> = requests.collect();
        requests.sort_by_key(|item| std::cmp::Reverse(item.count));
        requests
    }

    /// What was read, for programs.
    pub(super) fn json(&self) -> serde_json::Value {
        let first = self.first_unreadable.as_ref();
        serde_json::json!({
            "lines": self.lines,
            "differentRequests": self.requests.len(),
            "notSent": self.not_sent,
            "leftOut": self.too_many,
            "unreadable": self.unreadable,
            "firstUnreadable": first.map(|(line, why)| serde_json::json!({"line": line, "why": why})),
        })
    }

    /// What is to be known about lines that count for nothing, for people.
    pub(super) fn remarks(&self, file: &str) -> Vec<String> {
        let mut remarks = Vec::new();
        if let Some((line, why)) = &self.first_unreadable {
            let count = self.unreadable;
            remarks.push(format!(
                "lines that are not a request: {count}; the first: {file}:{line}: {why}"
            ));
        }
        if self.not_sent > 0 {
            remarks.push(format!(
                "{file}: lines about received requests or connections without HTTP: {}",
                self.not_sent
            ));
        }
        if self.too_many > 0 {
            remarks.push(format!(
                "{file}: requests left out: {}; more than {MAX_RECORDED} are different, or those are \
                 larger than {} MiB",
                self.too_many,
                MAX_BYTES >> 20
            ));
        }
        remarks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(text: &[u8]) -> Recording {
        Recording::read(text, &Progress::start("weir diff")).unwrap()
    }

    #[tokio::test]
    async fn equal_requests_are_counted_and_other_lines_are_named() {
        let long = "x".repeat(3 * MAX_LINE);
        let text = format!(
            "{{\"host\": \"web\"}}\n\n2026-01-02T03:04:05Z info xds ready\n{{\"host\": \"web\"}}\r\n{long}\n{{\"host\": \"b\"}}"
        );
        let recording = read(text.as_bytes()).await;
        let counts: Vec<_> =
            recording.requests.iter().map(|(of, count)| (&*of.0, *count)).collect();
        assert_eq!(counts, [("GET http://b:80/", 1), ("GET http://web:80/", 2)]);
        assert_eq!((recording.lines, recording.unreadable), (6, 2), "{recording:?}");
        let remarks = recording.remarks("a.log");
        assert!(
            remarks[0].starts_with("lines that are not a request: 2; the first: a.log:3: "),
            "{remarks:?}"
        );
        assert!(!read(b"\xff\n").await.remarks("f")[0].is_empty());
    }

    #[tokio::test]
    async fn a_line_may_be_as_long_as_the_limit() {
        let request =
            |length: usize| format!("{{\"host\":\"a\",\"path\":\"/{}\"}}\n", "x".repeat(length));
        let frame = request(0).len() - 1;
        let fits = read(request(MAX_LINE - frame).as_bytes()).await;
        assert_eq!((fits.requests.len(), fits.unreadable), (1, 0));
        let too_long = read(request(MAX_LINE - frame + 1).as_bytes()).await;
        assert_eq!((too_long.requests.len(), too_long.unreadable, too_long.lines), (0, 1, 1));
    }

    #[tokio::test]
    async fn the_number_and_the_size_of_different_requests_are_limited() {
        let many: String = (0..MAX_RECORDED + 5)
            .map(|n| format!("{{\"host\":\"a\",\"path\":\"/{n}\"}}\n"))
            .collect();
        let recording = read((many.clone() + &many).as_bytes()).await;
        assert_eq!((recording.requests.len(), recording.too_many), (MAX_RECORDED, 10));
        assert!(recording.requests.values().all(|count| *count == 2));
        let path = "x".repeat(MAX_LINE / 2);
        let large: String =
            (0..300).map(|n| format!("{{\"host\":\"a\",\"path\":\"/{n}{path}\"}}\n")).collect();
        let recording = read(large.as_bytes()).await;
        assert!(recording.bytes <= MAX_BYTES && recording.too_many > 0);
        assert!(recording.remarks("f")[0].contains("left out: "));
    }
}
