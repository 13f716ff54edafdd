//! A source that reads objects from standard input, a line of JSON for each change. `weir bench` uses it to measure weir
//! without a file system or an API.

use std::os::fd::AsFd as _;

use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::{LocatedProblem, Origin, SourceEvent, event_from};
use crate::api::{self, Identity, Problem};

/// A change.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Line {
    /// An object was added or changed.
    Apply(Value),
    /// An object was deleted.
    Delete(Value),
    /// Everything was sent that exists at the beginning.
    Synced,
}

/// The name of this source in messages.
const SUBJECT: &str = "standard input";

/// Standard input, which is read without blocking a thread.
///
/// # Errors
/// It is not a pipe.
pub(crate) fn open() -> std::io::Result<BufReader<pipe::Receiver>> {
    let pipe = std::io::stdin().as_fd().try_clone_to_owned()?;
    Ok(BufReader::new(pipe::Receiver::from_owned_fd(pipe)?))
}

/// Reads changes until the input or the receiver ends.
///
/// # Errors
/// The input cannot be read.
pub(crate) async fn watch(
    input: impl AsyncBufRead + Unpin,
    changes: mpsc::Sender<Vec<SourceEvent>>,
) -> std::io::Result<()> {
    let mut lines = input.lines();
    while let Some(line) = lines.next_line().await? {
        if changes.send(vec![event(&line)]).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn event(line: &str) -> SourceEvent {
    let read = serde_json::from_str(line).map_err(|error| error.to_string());
    match read {
        Ok(Line::Synced) => SourceEvent::Synced,
        Ok(Line::Apply(document)) => match api::identify(&document) {
            Ok(Identity::Known(key)) => {
                let parsed = api::parse(&key, document, 0);
                event_from(key, parsed, Origin::Cluster, |_| Origin::Cluster)
            }
            _ => problem("not an object that weir knows".to_owned()),
        },
        Ok(Line::Delete(document)) => match api::identify(&document) {
            Ok(Identity::Known(key)) => SourceEvent::Delete(key),
            _ => problem("not an object that weir knows".to_owned()),
        },
        Err(error) => problem(error),
    }
}

fn problem(message: String) -> SourceEvent {
    let problem = Problem::new(SUBJECT.to_owned(), message, "a line of JSON for each change");
    let problems = vec![LocatedProblem { origin: Origin::Cluster, problem }];
    SourceEvent::SourceProblems { subject: SUBJECT.to_owned(), problems }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_changes() {
        let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"shop"}}"#;
        let text = format!("{{\"apply\":{pod}}}\n\"synced\"\n{{\"delete\":{pod}}}\nnonsense\n");
        let (sender, mut changes) = mpsc::channel(8);
        watch(text.as_bytes(), sender).await.unwrap();
        let mut found = Vec::new();
        while let Some(events) = changes.recv().await {
            found.extend(events);
        }
        assert!(
            matches!(
                found.as_slice(),
                [
                    SourceEvent::Apply { .. },
                    SourceEvent::Synced,
                    SourceEvent::Delete(_),
                    SourceEvent::SourceProblems { .. }
                ]
            ),
            "{found:?}"
        );
    }
}
