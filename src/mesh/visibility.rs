//! `exportTo`: which namespaces see an object.

use std::collections::BTreeSet;
use std::sync::Arc;

/// The namespaces that see an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Visibility {
    /// All of them (`*`, the default).
    #[default]
    Public,
    /// These namespaces; none if empty (`~`).
    Namespaces(BTreeSet<Arc<str>>),
}

impl Visibility {
    /// Parses the `exportTo` of an object in namespace `own`: `*` means all, `.` its own, `~` none regardless of other
    /// entries, anything else is a namespace. Empty means all.
    pub(crate) fn new<'a>(export_to: impl IntoIterator<Item = &'a str>, own: &Arc<str>) -> Self {
        let mut namespaces = BTreeSet::new();
        let (mut given, mut nobody) = (false, false);
        for entry in export_to.into_iter().map(str::trim).filter(|entry| !entry.is_empty()) {
            given = true;
            match entry {
                "*" => return Visibility::Public,
                "." => {
                    namespaces.insert(own.clone());
                }
                "~" => nobody = true,
                name => {
                    namespaces.insert(Arc::from(name));
                }
            }
        }
        if nobody {
            namespaces.clear();
        }
        if given { Visibility::Namespaces(namespaces) } else { Visibility::Public }
    }

    /// Visible only in namespace `own`.
    pub(crate) fn private(own: &Arc<str>) -> Self {
        Visibility::Namespaces(BTreeSet::from([own.clone()]))
    }

    /// Whether `namespace` sees the object.
    pub(crate) fn includes(&self, namespace: &str) -> bool {
        match self {
            Visibility::Public => true,
            Visibility::Namespaces(namespaces) => namespaces.contains(namespace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_to_is_read_as_istio_does() {
        let own: Arc<str> = "shop".into();
        assert!(Visibility::new([], &own).includes("any"));
        assert!(Visibility::new(["*"], &own).includes("any"));
        let private = Visibility::new(["."], &own);
        assert!(private.includes("shop") && !private.includes("pay"));
        let listed = Visibility::new(["pay", "."], &own);
        assert!(listed.includes("shop") && listed.includes("pay") && !listed.includes("other"));
        assert!(!Visibility::new(["~"], &own).includes("shop"));
        assert!(!Visibility::new(["~", "pay"], &own).includes("pay"));
        assert_eq!(Visibility::new(["."], &own), Visibility::private(&own));
    }
}
