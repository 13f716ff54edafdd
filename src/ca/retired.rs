//! How a weir tells the next one until when it trusts the roots that no longer sign: in an annotation of the ConfigMap with
//! the roots, by the SHA-256 of each.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use ring::digest::{SHA256, digest};
use tokio_rustls::rustls::pki_types::CertificateDer;

/// The annotation.
pub(super) const ANNOTATION: &str = "weir.dev/retired-roots";

/// The value of the annotation: a JSON object from the hash of a root to seconds of Unix time.
pub(super) fn write(roots: &[(CertificateDer<'static>, SystemTime)]) -> String {
    let ends = roots.iter().map(|(root, until)| {
        let since = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (hash(root), since.as_secs())
    });
    serde_json::json!(ends.collect::<BTreeMap<_, _>>()).to_string()
}

/// Until when a root is trusted according to the annotation, if it says so.
pub(super) fn read(annotation: &str, root: &CertificateDer<'_>) -> Option<SystemTime> {
    let ends: BTreeMap<String, u64> = serde_json::from_str(annotation).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(*ends.get(&hash(root))?))
}

fn hash(root: &CertificateDer<'_>) -> String {
    let mut hex = String::new();
    for byte in digest(&SHA256, root).as_ref() {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let root = CertificateDer::from(vec![1, 2, 3]);
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let annotation = write(&[(root.clone(), until)]);
        assert_eq!(read(&annotation, &root), Some(until));
        assert_eq!(read(&annotation, &CertificateDer::from(vec![1])), None);
        for wrong in ["", "{", "[]", r#"{"x":-1}"#] {
            assert_eq!(read(wrong, &root), None);
        }
        assert_eq!(write(&[]), "{}");
    }
}
