//! Resolves the lines of fields. They are not stored with the objects because that would take more memory than the
//! objects themselves; files with findings are read again.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::{Finding, sort};
use crate::api::{Identity, ObjectKey, expand_list, identify};
use crate::source::{Origin, yaml};

/// Sets the lines of findings about fields of objects in files; `read` returns the content of a file. If a file has
/// changed and no longer contains the object, or cannot be read, the line stays that of the object.
pub(crate) fn refine(findings: &mut [Finding], mut read: impl FnMut(&Path) -> Option<Vec<u8>>) {
    let mut by_file: HashMap<Arc<std::path::PathBuf>, Vec<&mut Finding>> = HashMap::new();
    for finding in findings.iter_mut() {
        if let (Origin::File { path, .. }, Some(_), false) =
            (&finding.origin, &finding.object, finding.path.is_empty())
        {
            by_file.entry(path.clone()).or_default().push(finding);
        }
    }
    for (path, findings) in by_file {
        let Some(documents) = read(&path).and_then(|bytes| yaml::documents(&bytes).ok()) else {
            continue;
        };
        let mut places: HashMap<(ObjectKey, u32), (usize, String)> = HashMap::new();
        let mut documents = documents;
        for (n, document) in documents.iter_mut().enumerate() {
            for (prefix, member) in expand_list(std::mem::take(&mut document.value)) {
                let Ok(Identity::Known(key)) = identify(&member) else {
                    continue;
                };
                let line = document.locate(&prefix).unwrap_or(document.line);
                places.entry((key, line)).or_insert((n, prefix));
            }
        }
        for finding in findings {
            let (Some(object), Origin::File { line, .. }) = (&finding.object, &mut finding.origin)
            else {
                continue;
            };
            // Findings of the parser already have the line of their field, at which no object starts.
            let Some((n, prefix)) = places.get(&(object.clone(), *line)) else {
                continue;
            };
            let dot = if prefix.is_empty() { "" } else { "." };
            let field = format!("{prefix}{dot}{}", finding.path);
            if let Some(exact) = documents.get(*n).and_then(|document| document.locate(&field)) {
                *line = exact;
            }
        }
    }
    sort(findings);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{BASE_FILE, base, store};
    use super::super::{analyze, refine};
    use crate::mesh::MeshConfig;
    use crate::source::Origin;

    fn lines(text: &str) -> Vec<(String, u32)> {
        let mut found = analyze(&store(text), &MeshConfig::default());
        refine(&mut found, |path| {
            (path.to_str() == Some(BASE_FILE)).then(|| text.as_bytes().to_vec())
        });
        let lines = found.into_iter().map(|finding| match finding.origin {
            Origin::File { line, .. } => (finding.path, line),
            Origin::Cluster => (finding.path, 0),
        });
        lines.collect()
    }

    #[test]
    fn a_finding_has_the_line_of_its_field() {
        let before = u32::try_from(base().lines().count()).unwrap();
        let object = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: shop}\n\
                      spec:\n  hosts: ['*.a.b']\n  http:\n  - route:\n    - destination:\n        host: nobody\n    extra: 1\n";
        assert_eq!(
            lines(&(base() + object)),
            [
                ("spec.http[0].route[0].destination.host".to_owned(), before + 10),
                ("spec.http[0].extra".to_owned(), before + 11)
            ]
        );
        let list = "---\nkind: List\napiVersion: v1\nitems:\n- apiVersion: networking.istio.io/v1\n  kind: VirtualService\n  \
                    metadata: {name: v, namespace: shop}\n  spec:\n    hosts: ['*.a.b']\n    http:\n    - route:\n      \
                    - destination:\n          host: nobody\n";
        let found = lines(&(base() + list));
        assert_eq!(found, [("spec.http[0].route[0].destination.host".to_owned(), before + 13)]);
    }
}
