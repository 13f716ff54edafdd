//! Tells another replica on how many proxies of this one each object is live.

use tokio::sync::mpsc;
use tonic::Status;

use super::Admin;
use super::api::v1;
use crate::replicas::Summaries;
use crate::status;

/// Sends all summaries, and then those that changed, no faster than they are read.
pub(super) async fn send(admin: &Admin, to: &mpsc::Sender<Result<v1::SummariesUpdate, Status>>) {
    let (mut proxies, mut states) = (admin.connections.changes(), admin.published.changes());
    let mut summaries = Summaries::default();
    let mut sent: Option<status::Summaries> = None;
    loop {
        proxies.mark_unchanged();
        states.mark_unchanged();
        let now = match summaries.take(&admin.published, &admin.connections).await {
            Ok((_, now)) => now,
            Err(error) => {
                let _ = to.send(Err(Status::internal(error.to_string()))).await;
                return;
            }
        };
        let update = update(sent.as_ref(), &now);
        // The first is sent even if it is empty: it says that this replica answers.
        let is_news = sent.is_none() || !update.objects.is_empty() || !update.deleted.is_empty();
        if is_news && to.send(Ok(update)).await.is_err() {
            return;
        }
        sent = Some(now);
        summaries.pause().await;
        let changed = tokio::select! {
            changed = proxies.changed() => changed,
            changed = states.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// What changed.
fn update(old: Option<&status::Summaries>, new: &status::Summaries) -> v1::SummariesUpdate {
    let objects =
        new.iter().filter(|(key, summary)| old.and_then(|old| old.get(*key)) != Some(*summary));
    let deleted = old.into_iter().flatten().filter(|(key, _)| !new.contains_key(*key));
    v1::SummariesUpdate {
        objects: objects.map(|(key, summary)| v1::ObjectSummary::of(key, summary)).collect(),
        deleted: deleted.map(|(key, _)| key.into()).collect(),
    }
}
