//! Writes the descriptors of every Envoy message weir can print or read to `OUT_DIR/envoy_descriptors.bin`, and compiles weir's
//! own protos.
//!
//! The crate `envoy-types` ships one serialized `FileDescriptorSet` for all of Envoy's API. Most of it consists of
//! source comments and extensions that weir never uses, so the binary embeds only the dependency closure of the files
//! below, without comments. The set is processed at the wire level and the remaining bytes of each file are copied
//! unchanged: decoding into typed descriptors would drop the custom options, including the `validate.rules` that define
//! what Envoy accepts.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Files, or folders with a trailing slash, whose messages weir emits or reads. Their imports are included.
const ROOTS: &[&str] = &[
    "envoy/config/accesslog/v3/",
    "envoy/config/bootstrap/v3/",
    "envoy/config/cluster/v3/",
    "envoy/config/core/v3/",
    "envoy/config/endpoint/v3/",
    "envoy/config/listener/v3/",
    "envoy/config/rbac/v3/",
    "envoy/config/route/v3/",
    "envoy/extensions/access_loggers/file/v3/",
    "envoy/extensions/access_loggers/stream/v3/",
    "envoy/extensions/clusters/common/dns/v3/",
    "envoy/extensions/clusters/dns/v3/",
    "envoy/extensions/clusters/original_dst/v3/",
    "envoy/extensions/filters/common/fault/v3/",
    "envoy/extensions/filters/common/set_filter_state/v3/",
    "envoy/extensions/filters/http/cors/v3/",
    "envoy/extensions/filters/http/fault/v3/",
    "envoy/extensions/filters/http/grpc_stats/v3/",
    "envoy/extensions/filters/http/grpc_web/v3/",
    "envoy/extensions/filters/http/header_to_metadata/v3/",
    "envoy/extensions/filters/http/local_ratelimit/v3/",
    "envoy/extensions/filters/http/rbac/v3/",
    "envoy/extensions/filters/http/router/v3/",
    "envoy/extensions/filters/http/set_filter_state/v3/",
    "envoy/extensions/filters/http/stateful_session/v3/",
    "envoy/extensions/filters/listener/http_inspector/v3/",
    "envoy/extensions/filters/listener/original_dst/v3/",
    "envoy/extensions/filters/listener/proxy_protocol/v3/",
    "envoy/extensions/filters/listener/set_filter_state/v3/",
    "envoy/extensions/filters/listener/tls_inspector/v3/",
    "envoy/extensions/filters/network/connection_limit/v3/",
    "envoy/extensions/filters/network/http_connection_manager/v3/",
    "envoy/extensions/filters/network/rbac/v3/",
    "envoy/extensions/filters/network/set_filter_state/v3/",
    "envoy/extensions/filters/network/sni_cluster/v3/",
    "envoy/extensions/filters/network/tcp_proxy/v3/",
    "envoy/extensions/http/stateful_session/",
    "envoy/extensions/load_balancing_policies/",
    "envoy/extensions/network/dns_resolver/cares/v3/",
    "envoy/extensions/network/dns_resolver/getaddrinfo/v3/",
    "envoy/extensions/request_id/uuid/v3/",
    "envoy/extensions/retry/host/",
    "envoy/extensions/retry/priority/previous_priorities/v3/",
    "envoy/extensions/transport_sockets/http_11_proxy/v3/",
    "envoy/extensions/transport_sockets/internal_upstream/v3/",
    "envoy/extensions/transport_sockets/proxy_protocol/v3/",
    "envoy/extensions/transport_sockets/raw_buffer/v3/",
    "envoy/extensions/transport_sockets/tls/v3/",
    "envoy/extensions/upstreams/http/v3/",
    "envoy/extensions/upstreams/tcp/v3/",
    "envoy/service/discovery/v3/",
    "envoy/service/runtime/v3/",
    "envoy/type/",
    "google/protobuf/",
    "validate/",
];

/// Field numbers of `google.protobuf.FileDescriptorSet` and `FileDescriptorProto`.
const SET_FILE: u64 = 1;
const FILE_NAME: u64 = 1;
const FILE_DEPENDENCY: u64 = 3;
const FILE_SOURCE_CODE_INFO: u64 = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let manifest_dir = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    println!("cargo::rerun-if-changed=build.rs");
    let lock = manifest_dir.join("Cargo.lock");
    if lock.exists() {
        println!("cargo::rerun-if-changed={}", lock.display());
    }

    let descriptors = envoy_types_dir(&manifest_dir)?.join("src/generated/types.bin");
    println!("cargo::rerun-if-changed={}", descriptors.display());
    let set =
        fs::read(&descriptors).map_err(|error| format!("{}: {error}", descriptors.display()))?;
    let pruned = prune(&set).map_err(|error| format!("{}: {error}", descriptors.display()))?;

    let out = Path::new(&var("OUT_DIR")?).join("envoy_descriptors.bin");
    fs::write(&out, pruned).map_err(|error| format!("{}: {error}", out.display()))?;
    admin_api()
}

/// Compiles weir's own protos, and writes their descriptors without the source comments to `OUT_DIR/weir_descriptors.bin`.
/// protox needs no `protoc` on the machine.
fn admin_api() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_file("weir/admin/v1/admin.proto")?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::envoy_types::pb::google::protobuf")
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    let out = Path::new(&var("OUT_DIR")?).join("weir_descriptors.bin");
    let descriptors = compiler.include_source_info(false).encode_file_descriptor_set();
    fs::write(&out, descriptors).map_err(|error| format!("{}: {error}", out.display()).into())
}

fn var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("${name}: {error}"))
}

/// The source folder of the linked `envoy-types`, obtained from Cargo so that vendored and patched sources work too.
fn envoy_types_dir(manifest_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    // Offline is tried first because everything this build needs is already on disk. It fails if dev-dependencies,
    // which `cargo metadata` resolves but a plain build omits, were never downloaded; then Cargo may fetch them.
    let metadata = match cargo_metadata(manifest_dir, &["--offline"]) {
        Ok(metadata) => metadata,
        Err(offline) => cargo_metadata(manifest_dir, &[])
            .map_err(|online| format!("{offline}\nand without --offline: {online}"))?,
    };
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or("cargo metadata names no package envoy-types")?;
    Ok(Path::new(manifest)
        .parent()
        .ok_or("the manifest path of envoy-types has no parent")?
        .to_owned())
}

fn cargo_metadata(manifest_dir: &Path, args: &[&str]) -> Result<serde_json::Value, Box<dyn Error>> {
    let output = Command::new(var("CARGO")?)
        .args(["metadata", "--format-version", "1", "--filter-platform"])
        .arg(var("TARGET")?)
        .args(args)
        .current_dir(manifest_dir)
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("cargo metadata: {}", stderr.trim()).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A file of the set: its imports, and its bytes without source comments.
struct File<'a> {
    dependencies: Vec<&'a str>,
    bytes: Vec<u8>,
}

/// Prunes a serialized `FileDescriptorSet` to the files of [`ROOTS`] and their imports, in the original order.
fn prune(set: &[u8]) -> Result<Vec<u8>, String> {
    let mut files: BTreeMap<&str, File<'_>> = BTreeMap::new();
    let mut order = Vec::new();
    for field in Fields(set) {
        let field = field?;
        if field.number != SET_FILE {
            continue;
        }
        let (name, file) = read_file(field.payload)?;
        order.push(name);
        files.insert(name, file);
    }

    for root in ROOTS {
        if !files.keys().any(|name| name.starts_with(root)) {
            return Err(format!("no file {root}"));
        }
    }
    let mut keep: BTreeSet<&str> = BTreeSet::new();
    let mut open: Vec<&str> = files
        .keys()
        .copied()
        .filter(|name| ROOTS.iter().any(|root| name.starts_with(root)))
        .collect();
    while let Some(name) = open.pop() {
        if keep.insert(name) {
            let file = files.get(name).ok_or_else(|| format!("{name} is imported but missing"))?;
            open.extend(&file.dependencies);
        }
    }

    let mut out = Vec::new();
    for name in order {
        if keep.contains(name) {
            let bytes = &files[name].bytes;
            write_varint(&mut out, SET_FILE << 3 | 2);
            write_varint(&mut out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
    }
    Ok(out)
}

fn read_file(bytes: &[u8]) -> Result<(&str, File<'_>), String> {
    let mut name = None;
    let mut file = File { dependencies: Vec::new(), bytes: Vec::new() };
    for field in Fields(bytes) {
        let field = field?;
        let text = || std::str::from_utf8(field.payload).map_err(|error| error.to_string());
        match field.number {
            FILE_NAME => name = Some(text()?),
            FILE_DEPENDENCY => file.dependencies.push(text()?),
            FILE_SOURCE_CODE_INFO => continue,
            _ => {}
        }
        file.bytes.extend_from_slice(field.whole);
    }
    Ok((name.ok_or("a file without a name")?, file))
}

/// A field of a message: its number, its payload (empty unless length-delimited), and all of its bytes.
struct Field<'a> {
    number: u64,
    payload: &'a [u8],
    whole: &'a [u8],
}

/// The fields of a serialized message, in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = read_field(self.0);
        self.0 = match &field {
            Some(field) => &self.0[field.whole.len()..],
            None => &[],
        };
        Some(field.ok_or_else(|| "not a serialized FileDescriptorSet".to_owned()))
    }
}

fn read_field(bytes: &[u8]) -> Option<Field<'_>> {
    let mut at = 0;
    let tag = read_varint(bytes, &mut at)?;
    let mut payload: &[u8] = &[];
    match tag & 7 {
        0 => _ = read_varint(bytes, &mut at)?,
        1 => at += 8,
        2 => {
            let length = usize::try_from(read_varint(bytes, &mut at)?).ok()?;
            payload = bytes.get(at..at.checked_add(length)?)?;
            at += length;
        }
        5 => at += 4,
        _ => return None,
    }
    Some(Field { number: tag >> 3, payload, whole: bytes.get(..at)? })
}

fn read_varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
