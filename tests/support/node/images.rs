//! What the images of a cluster contain: programs of this machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// An image: the machine's own folders of programs, and one program more.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The program on this machine, and where it is in the image.
    pub program: (PathBuf, String),
    pub entrypoint: Vec<String>,
    pub env: Vec<(String, String)>,
    pub user: i64,
}

/// Images by the last part of their names, whatever their tags are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Images(BTreeMap<String, Image>);

impl Images {
    /// Those of weir and Envoy.
    pub(crate) fn of_the_mesh(envoy: PathBuf) -> Self {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
        // As the Dockerfile says.
        let weir = Image {
            program: (env!("CARGO_BIN_EXE_weir").into(), "/weir".into()),
            entrypoint: vec!["/weir".into()],
            env: vec![("PATH".into(), "/usr/sbin:/sbin".into())],
            user: 65532,
        };
        let envoy = Image {
            program: (envoy, "/usr/local/bin/envoy".into()),
            entrypoint: vec!["/usr/local/bin/envoy".into()],
            env: vec![("PATH".into(), path)],
            user: 0,
        };
        Self(BTreeMap::from([("weir".to_owned(), weir), ("envoy".to_owned(), envoy)]))
    }

    pub(crate) fn with(mut self, name: &str, image: Image) -> Self {
        self.0.insert(name.to_owned(), image);
        self
    }

    /// The image that a container names.
    pub(crate) fn find(&self, image: &str) -> Result<&Image, String> {
        let name = image.rsplit('/').next().unwrap_or_default();
        let name = name.split([':', '@']).next().unwrap_or_default();
        self.0.get(name).ok_or_else(|| format!("there is no image {image}"))
    }
}
