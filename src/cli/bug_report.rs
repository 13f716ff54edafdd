//! `weir bug-report`: what a running weir knows, in one file for somebody else to read.

use std::fs::OpenOptions;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::jiff::Timestamp;

use super::remote::AdminArgs;

/// How long a page may take.
const ANSWER: Duration = Duration::from_secs(30);

/// The largest page or file, in bytes.
const LARGEST: usize = 256 << 20;

/// What a running weir is asked for: the path, the name in the report, and what it is.
const PAGES: [(&str, &str, &str); 9] = [
    ("/debug/info", "info.json", "version, flags, tasks and memory"),
    ("/ready?verbose", "ready.txt", "whether it is ready, and how far it is with each kind"),
    ("/api/v1/readiness", "readiness.json", "the same as JSON"),
    (
        "/api/v1/proxies",
        "proxies.json",
        "the connected proxies, what they rejected and why they lag",
    ),
    ("/api/v1/splits", "splits.json", "weighted routes, wanted and effective"),
    ("/api/v1/findings", "findings.json", "problems of objects"),
    ("/api/v1/timeline", "timeline.json", "what happened, and when"),
    ("/metrics", "metrics.txt", "metrics"),
    ("/healthz", "healthz.txt", "whether it answers"),
];

/// Collect what a running weir knows into one file, to attach to a report about a problem
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir bug-report
  weir bug-report -o report.tar.gz --add weir.log
  kubectl get vs,dr -A -o yaml > objects.yaml && weir bug-report --add objects.yaml

The file has the version, flags, readiness, proxies, splits, findings, time lines, metrics, tasks and
memory of the replica that is asked. It has no Secret, token or private key, and no configuration of a
proxy. It does have names of namespaces, objects, pods and hosts, and addresses: look at it before you
give it to others. Of the cluster it has only what you add with --add; a file with a private key, a
token or a Secret is refused.

Exit status: 0 success, 1 weir cannot be reached or the file cannot be written, 2 usage error.")]
pub(crate) struct Args {
    /// The file to write, or - for standard output [default: weir-bug-report-TIME.tar.gz]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Add a file, such as a log or what kubectl printed; may be repeated
    #[arg(long, value_name = "FILE")]
    add: Vec<PathBuf>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs the command.
///
/// # Errors
/// weir cannot be reached, a file cannot be read or written, or an added file has a secret.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    if to_stdout && std::io::stdout().is_terminal() {
        return Err(super::usage("--output -: standard output is a terminal; redirect it"));
    }
    let now = Timestamp::now();
    let added = args.add.iter().map(|file| added(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let address = args.admin.address()?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut files = Vec::new();
    let mut contents = format!("weir bug-report of {address} at {now:.0}\n\n");
    for (path, name, what) in PAGES {
        let page = tokio::time::timeout(ANSWER, fetch(&client, address, path)).await;
        let page = page.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within 30 s")));
        match page {
            Ok((status, body)) if secret(&body).is_none() => {
                contents += &format!("{name:18} {what} ({status})\n");
                files.push((name.to_owned(), body));
            }
            Ok(_) => contents += &format!("{name:18} left out: it seems to have a secret\n"),
            // Without an answer to the first, nothing listens there.
            Err(error) if files.is_empty() => {
                return Err(error.context(format!(
                    "cannot connect to weir on {address}; set --admin or $WEIR_ADMIN"
                )));
            }
            Err(error) => contents += &format!("{name:18} cannot be read: {error:#}\n"),
        }
    }
    for (name, content) in added {
        contents += &format!("{name:18} added by the caller\n");
        files.push((name, content));
    }
    files.insert(0, ("CONTENTS.txt".to_owned(), contents.into()));
    let stem = format!("weir-bug-report-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    let bundle = bundle(&stem, now, &files)?;
    if to_stdout {
        std::io::stdout().lock().write_all(&bundle)?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = args.output.unwrap_or_else(|| PathBuf::from(format!("{stem}.tar.gz")));
    write(&file, &bundle).with_context(|| format!("cannot write {}", file.display()))?;
    let (count, size) = (files.len(), bundle.len().div_ceil(1024));
    super::print(&format!(
        "wrote {} ({count} files, {size} KB); CONTENTS.txt says what is in it\n",
        file.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// A page, whatever its status is.
async fn fetch(
    client: &Client<HttpConnector, Empty<Bytes>>,
    address: &str,
    path: &str,
) -> anyhow::Result<(http::StatusCode, Bytes)> {
    let answer = client.get(format!("http://{address}{path}").parse()?).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), LARGEST).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{path}: {error}"))?;
    Ok((status, body.to_bytes()))
}

/// A file of the caller, with its name in the report.
fn added(file: &Path) -> anyhow::Result<(String, Bytes)> {
    let content = std::fs::read(file)
        .map_err(|error| super::usage(format!("--add {}: {error}", file.display())))?;
    if let Some(what) = secret(&content) {
        return Err(super::usage(format!(
            "--add {}: contains {what}; remove it from the file first",
            file.display()
        )));
    }
    let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    Ok((format!("added/{name}"), content.into()))
}

/// What looks like a secret in a content.
fn secret(content: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(content);
    if text.contains("PRIVATE KEY-----") {
        return Some("a private key");
    }
    if text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).any(is_token) {
        return Some("a token");
    }
    // Keys and tokens in a kubeconfig, and Secrets as kubectl prints them.
    let is_secret = text.lines().any(|line| {
        let words: String =
            line.chars().filter(|c| !c.is_whitespace() && !"\",-".contains(*c)).collect();
        words == "kind:Secret" || words.starts_with("clientkeydata:") || words.starts_with("token:")
    });
    let on_one_line = text.contains("\"kind\":\"Secret\"");
    (is_secret || on_one_line).then_some("a Secret or a credential")
}

/// Whether a word is a JSON Web Token: three parts in base64, of which the first begins a JSON object.
fn is_token(word: &str) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    matches!(parts.as_slice(), [head, body, signature]
        if head.starts_with("eyJ") && body.starts_with("eyJ") && signature.len() > 20)
}

/// The files in a folder of this name, as a tar file that is compressed with gzip.
fn bundle(stem: &str, now: Timestamp, files: &[(String, Bytes)]) -> anyhow::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(u64::try_from(now.as_second()).unwrap_or_default());
        tar.append_data(&mut header, format!("{stem}/{name}"), &**content)?;
    }
    Ok(tar.into_inner()?.finish()?)
}

/// Writes a file that only its owner may read.
fn write(file: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(file)?.write_all(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_recognized() {
        let token = format!("Bearer eyJhbGciOiJS.eyJpc3MiOiJr.{}", "x".repeat(40));
        for (text, what) in [
            ("-----BEGIN EC PRIVATE KEY-----\nabc\n", "a private key"),
            (&*token, "a token"),
            ("apiVersion: v1\nkind: Secret\n", "a Secret or a credential"),
            ("- kind: Secret\n", "a Secret or a credential"),
            ("{\"apiVersion\":\"v1\",\"kind\":\"Secret\"}", "a Secret or a credential"),
            ("    \"kind\": \"Secret\",\n", "a Secret or a credential"),
            ("    client-key-data: LS0t\n", "a Secret or a credential"),
            ("    token: abc\n", "a Secret or a credential"),
        ] {
            assert_eq!(secret(text.as_bytes()), Some(what), "{text}");
        }
        for text in
            ["kind: VirtualService\n", "--identity on --kubeconfig a.b.c", "the token expired"]
        {
            assert_eq!(secret(text.as_bytes()), None, "{text}");
        }
    }
}
