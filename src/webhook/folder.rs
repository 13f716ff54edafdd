//! The webhook's certificate from the files `tls.crt` and `tls.key` of a folder, as a mounted Secret has them.

use std::path::Path;
use std::time::Duration;

use super::certificate::ServedCertificate;
use super::{Reporter, Webhook};

/// The interval at which the files are read again. They are small, and whoever replaces them does so in several steps, so
/// noticing each step would be of no use.
const INTERVAL: Duration = Duration::from_secs(2);

/// The largest file that is read.
const LARGEST: u64 = 1 << 20;

/// Serves the certificate in a folder, and each one that replaces it. One that cannot be used is reported, and the last
/// good one stays. Runs until it is dropped.
pub(crate) async fn follow(folder: &Path, webhook: &Webhook) {
    follow_every(INTERVAL, folder, webhook).await;
}

async fn follow_every(interval: Duration, folder: &Path, webhook: &Webhook) {
    let mut last = None;
    loop {
        let files = match read(folder).await {
            Ok(files) => files,
            Err(why) => {
                webhook.report(Reporter::Certificate, why);
                last = None;
                tokio::time::sleep(interval).await;
                continue;
            }
        };
        if last.as_ref() != Some(&files) {
            match ServedCertificate::read(&files.0, &files.1) {
                Ok(certificate) => webhook.serve(certificate),
                Err(error) => {
                    webhook.report(Reporter::Certificate, format!("{}: {error}", folder.display()))
                }
            }
            last = Some(files);
        }
        tokio::time::sleep(interval).await;
    }
}

/// The certificate and its key.
async fn read(folder: &Path) -> Result<(Vec<u8>, Vec<u8>), String> {
    Ok((file(&folder.join("tls.crt")).await?, file(&folder.join("tls.key")).await?))
}

async fn file(path: &Path) -> Result<Vec<u8>, String> {
    let read = async {
        let length = tokio::fs::metadata(path).await?.len();
        if length > LARGEST {
            return Err(std::io::Error::other(format!("has {length} bytes; expected a PEM file")));
        }
        tokio::fs::read(path).await
    };
    read.await.map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::Health;
    use super::super::certificate::{KeyedCertificate, issue};
    use super::*;
    use crate::metrics::WebhookMetrics;

    fn write(folder: &Path, pair: &KeyedCertificate) {
        std::fs::write(folder.join("tls.crt"), &pair.certificate).unwrap();
        std::fs::write(folder.join("tls.key"), &pair.key).unwrap();
    }

    fn certificate(days: u64) -> KeyedCertificate {
        let lifetime = Duration::from_secs(days * 86_400);
        issue(&["weir.test".to_owned()], SystemTime::now(), lifetime).unwrap().certificate
    }

    #[tokio::test]
    async fn a_replaced_certificate_is_served_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let webhook = Webhook::new(WebhookMetrics::default());
        let mut health = webhook.health();
        let following = follow_every(Duration::from_millis(1), folder.path(), &webhook);
        let steps = async {
            let missing = health.wait_for(|health| !health.problems.is_empty()).await.unwrap();
            assert!(missing.problems[0].contains("tls.crt"), "{missing:?}");
            drop(missing);
            write(folder.path(), &certificate(1));
            let first = health.wait_for(|health| health.works()).await.unwrap().valid_until;
            write(folder.path(), &certificate(2));
            let second =
                health.wait_for(|health| health.valid_until > first).await.unwrap().valid_until;
            std::fs::write(folder.path().join("tls.key"), certificate(3).key).unwrap();
            let broken = health.wait_for(|health| !health.problems.is_empty()).await.unwrap();
            assert_eq!(broken.valid_until, second, "the last good one stays");
            assert!(broken.problems[0].contains("tls.key does not fit tls.crt"), "{broken:?}");
            drop(broken);
            write(folder.path(), &certificate(4));
            assert!(health.wait_for(Health::works).await.unwrap().valid_until > second);
        };
        tokio::select! {
            () = following => {}
            () = steps => {}
        }
    }
}
