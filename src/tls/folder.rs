//! A certificate from the files `tls.crt` and `tls.key` of a folder, as a mounted Secret has them.

use std::path::Path;
use std::time::Duration;

use super::ServedCertificate;

/// The interval at which the files are read again. They are small, and whoever replaces them does so in several steps, so
/// noticing each step would be of no use.
const INTERVAL: Duration = Duration::from_secs(2);

/// The largest file that is read.
const LARGEST: u64 = 1 << 20;

/// Reads the certificate in a folder, and each one that replaces it, and hands it to `on`: or why it cannot be used, once.
/// Runs until it is dropped.
pub(crate) async fn follow_folder(
    folder: &Path,
    on: impl FnMut(Result<ServedCertificate, String>),
) {
    follow_every(INTERVAL, folder, on).await;
}

async fn follow_every(
    interval: Duration,
    folder: &Path,
    mut on: impl FnMut(Result<ServedCertificate, String>),
) {
    let mut last = None;
    loop {
        let files = read(folder).await;
        if last.as_ref() != Some(&files) {
            on(files.clone().and_then(|(certificate, key)| {
                ServedCertificate::read(&certificate, &key)
                    .map_err(|error| format!("{}: {error}", folder.display()))
            }));
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

    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::tls::{KeyedCertificate, issue};

    fn write(folder: &Path, pair: &KeyedCertificate) {
        std::fs::write(folder.join("tls.crt"), &pair.certificate).unwrap();
        std::fs::write(folder.join("tls.key"), &pair.key).unwrap();
    }

    #[tokio::test]
    async fn a_replaced_certificate_is_read_and_a_broken_one_is_reported_once() {
        let folder = tempfile::tempdir().unwrap();
        let made = |days: u64| {
            let lifetime = Duration::from_secs(days * 86_400);
            issue(&["weir.test".to_owned()], SystemTime::now(), lifetime).unwrap().certificate
        };
        let (sender, mut reads) = tokio::sync::mpsc::unbounded_channel();
        let following = follow_every(Duration::from_millis(1), folder.path(), |read| {
            let _ = sender.send(read.map(|certificate| certificate.valid_until));
        });
        let steps = async {
            let missing = reads.recv().await.unwrap().unwrap_err();
            assert!(missing.contains("tls.crt"), "{missing}");
            write(folder.path(), &made(1));
            // The key may be missing when the certificate is read, and may not fit while it is replaced.
            let first = good(&mut reads).await;
            write(folder.path(), &made(2));
            assert!(good(&mut reads).await > first);
            std::fs::write(folder.path().join("tls.key"), made(3).key).unwrap();
            let broken = reads.recv().await.unwrap().unwrap_err();
            assert!(broken.contains("tls.key does not fit tls.crt"), "{broken}");
            write(folder.path(), &made(4));
            good(&mut reads).await;
        };
        tokio::select! {
            () = following => {}
            () = steps => {}
        }
    }

    async fn good(
        reads: &mut tokio::sync::mpsc::UnboundedReceiver<Result<Timestamp, String>>,
    ) -> Timestamp {
        loop {
            if let Ok(valid_until) = reads.recv().await.unwrap() {
                return valid_until;
            }
        }
    }
}
