//! `weir bootstrap`: prints an Envoy bootstrap file.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;

use crate::bootstrap::{
    AdsVariant, Bootstrap, NodeId, XdsAddress, XdsIdentity, dns_label, dns_name, label, locality,
};
use crate::mesh::{Interception, Locality, WeightDelivery};

const EXAMPLE: &str = "\
Examples:
  weir bootstrap > envoy.yaml && envoy -c envoy.yaml
  weir bootstrap --xds weir.weir-system.svc:15010 --ip 10.1.2.3 --pod web-0 -n shop -l app=web
  weir bootstrap --xds weir.weir-system.svc:15012 --ip 10.1.2.3 --pod web-0 -n shop -l app=web \\
    --token-file /var/run/secrets/tokens/istio-token \\
    --root-cert /var/run/secrets/istio/root-cert.pem --file /etc/envoy/envoy.yaml
  weir bootstrap --node-id sidecar~10.1.2.3~web-0.shop~shop.svc.cluster.local --intercept none";

/// Print a bootstrap for an Envoy that gets its configuration from weir
///
/// The node id identifies the proxy; give it in full or in parts. The configuration of a proxy depends on its namespace
/// and labels, its pod's address, its locality and how traffic is intercepted.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// The address of weir's xDS port; the host may be a DNS name
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15010")]
    xds: XdsAddress,

    /// The full node id: TYPE~IP~POD.NAMESPACE~DNSDOMAIN
    #[arg(long, value_name = "ID", conflicts_with_all = ["kind", "ip", "pod", "namespace", "dns_domain"])]
    node_id: Option<NodeId>,

    /// The proxy type
    #[arg(id = "kind", long = "type", value_name = "TYPE", default_value = "sidecar")]
    kind: Kind,

    /// The address of the proxy's pod; for a dual-stack pod give both, the primary one first
    #[arg(long, default_value = "127.0.0.1")]
    ip: Vec<IpAddr>,

    /// The name of the proxy's pod
    #[arg(long, value_name = "NAME", default_value = "envoy", value_parser = dns_name)]
    pod: String,

    /// The namespace of the proxy's pod
    #[arg(long, short = 'n', value_name = "NAMESPACE", default_value = "default", value_parser = dns_label)]
    namespace: String,

    /// The DNS domain for short names [default: NAMESPACE.svc.cluster.local]
    #[arg(long, value_name = "DOMAIN", value_parser = dns_name)]
    dns_domain: Option<String>,

    /// A label of the proxy's pod; may be repeated
    #[arg(long = "label", short = 'l', value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,

    /// The name of the proxy's cluster
    #[arg(long, value_name = "ID", default_value = "Kubernetes")]
    cluster_id: String,

    /// The node that the proxy runs on, for services with `internalTrafficPolicy: Local`
    #[arg(long, value_name = "NAME", value_parser = dns_name)]
    node_name: Option<String>,

    /// The proxy's locality; zone and sub-zone are optional
    #[arg(long, value_name = "REGION/ZONE/SUBZONE", value_parser = locality)]
    locality: Option<Locality>,

    /// Present the token in this file to weir, and connect over TLS: for port 15012. Needs --root-cert and --file: a file
    /// by the name of FILE with .token.json at the end says where the token is, so that Envoy reads it again when it
    /// changes
    #[arg(long, value_name = "FILE", requires = "root_cert", requires = "file")]
    token_file: Option<PathBuf>,

    /// The roots by which weir's certificate is verified, in PEM
    #[arg(long, value_name = "FILE", requires = "token_file")]
    root_cert: Option<PathBuf>,

    /// The service account of the proxy's pod, to which the token must belong
    #[arg(long, value_name = "NAME", requires = "token_file", value_parser = dns_name)]
    service_account: Option<String>,

    /// How traffic is intercepted
    #[arg(long, value_enum, value_name = "MODE", ignore_case = true, default_value = "redirect")]
    intercept: Interception,

    /// Use state-of-the-world ADS instead of delta ADS
    #[arg(long)]
    sotw: bool,

    /// How a change of weights reaches the proxy: as runtime values, or only in its routes
    #[arg(long, value_enum, value_name = "WAY", default_value = "runtime")]
    weights: WeightDelivery,

    /// Whether the proxy tells weir how many requests it sent to which cluster, and how they ended
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "on")]
    load_reports: super::Switch,

    /// The address of Envoy's admin interface
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:15000")]
    admin_address: SocketAddr,

    /// Serve Envoy's statistics for Prometheus (/stats/prometheus), and nothing else, at this address, such as
    /// 0.0.0.0:15090
    #[arg(long, value_name = "ADDRESS:PORT")]
    stats_listen: Option<SocketAddr>,

    /// Output format
    #[arg(long, short = 'o', value_name = "FORMAT", default_value = "yaml")]
    output: Output,

    /// Write to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// The proxy types that weir serves.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// A proxy beside a workload
    Sidecar,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// A YAML file
    Yaml,
    /// A JSON file
    Json,
}

/// Prints the bootstrap on stdout or writes it to a file.
///
/// # Errors
/// The file or stdout cannot be written to. A reader that has closed the pipe is not an error.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (file, output) = (args.file.clone(), args.output);
    let bootstrap = args.bootstrap();
    let text = output.render(&bootstrap)?;
    if let Some(file) = file {
        if let Some(identity) = &bootstrap.identity {
            write(&identity.token_secret, &format!("{:#}\n", identity.token_secret()))?;
        }
        write(&file, &text)?;
        return Ok(ExitCode::SUCCESS);
    }
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to stdout")
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

impl Output {
    fn render(self, bootstrap: &Bootstrap) -> anyhow::Result<String> {
        Ok(match self {
            Self::Yaml => bootstrap.to_yaml().context("printing the bootstrap as YAML")?,
            Self::Json => format!("{:#}\n", bootstrap.to_json()),
        })
    }
}

impl Args {
    fn identity(&self) -> Option<XdsIdentity> {
        let (token, roots, file) =
            (self.token_file.as_ref()?, self.root_cert.as_ref()?, self.file.as_ref()?);
        let mut token_secret = file.clone().into_os_string();
        token_secret.push(".token.json");
        Some(XdsIdentity {
            token: token.clone(),
            roots: roots.clone(),
            token_secret: token_secret.into(),
            service_account: self.service_account.clone(),
        })
    }

    fn bootstrap(self) -> Bootstrap {
        let Kind::Sidecar = self.kind;
        let identity = self.identity();
        let (first, others) = match self.ip.split_first() {
            Some((first, others)) => (*first, others.to_vec()),
            None => (Ipv4Addr::LOCALHOST.into(), Vec::new()),
        };
        let node = self.node_id.unwrap_or_else(|| NodeId {
            ip: first,
            pod: self.pod,
            dns_domain: self
                .dns_domain
                .unwrap_or_else(|| format!("{}.svc.cluster.local", self.namespace)),
            namespace: self.namespace,
        });
        Bootstrap {
            node,
            labels: self.labels.into_iter().collect(),
            cluster_id: self.cluster_id,
            other_ips: others,
            node_name: self.node_name,
            locality: self.locality,
            interception: self.intercept,
            xds: self.xds,
            identity,
            variant: if self.sotw { AdsVariant::Sotw } else { AdsVariant::Delta },
            weights: self.weights,
            load_reports: self.load_reports.is_on(),
            admin: self.admin_address,
            stats: self.stats_listen,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser};
    use serde_json::Value;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(flags: &str) -> Result<Args, clap::Error> {
        Command::try_parse_from(["bootstrap"].into_iter().chain(flags.split_whitespace()))
            .map(|command| command.args)
    }

    fn json(flags: &str) -> Value {
        let bootstrap = parse(flags).unwrap().bootstrap();
        serde_json::from_str(&Output::Json.render(&bootstrap).unwrap()).unwrap()
    }

    #[test]
    fn flags_are_well_formed() {
        Command::command().debug_assert();
    }

    #[test]
    fn without_flags_it_is_a_sidecar_on_this_machine() {
        let json = json("");
        assert_eq!(json["node"]["id"], "sidecar~127.0.0.1~envoy.default~default.svc.cluster.local");
        assert_eq!(json["node"]["metadata"]["INTERCEPTION_MODE"], "REDIRECT");
        assert_eq!(json["node"]["locality"], Value::Null);
        assert_eq!(json["dynamic_resources"]["ads_config"]["api_type"], "DELTA_GRPC");
        let admin = &json["admin"]["address"]["socket_address"];
        assert_eq!(
            (admin["address"].as_str(), admin["port_value"].as_u64()),
            (Some("127.0.0.1"), Some(15000))
        );
        let yaml = Output::Yaml.render(&parse("").unwrap().bootstrap()).unwrap();
        assert!(yaml.starts_with("node:\n  id: sidecar~"), "{yaml}");
    }

    #[test]
    fn the_parts_and_the_full_id_are_equivalent() {
        let parts = json(
            "--type sidecar --ip 10.1.2.3 --pod web-0 -n shop --dns-domain shop.svc.example.org",
        );
        let whole = json("--node-id sidecar~10.1.2.3~web-0.shop~shop.svc.example.org");
        assert_eq!(parts, whole);
        assert_eq!(
            json("--namespace shop")["node"]["id"],
            "sidecar~127.0.0.1~envoy.shop~shop.svc.cluster.local"
        );
    }

    #[test]
    fn every_flag_shows() {
        let json = json(
            "--xds weir:1234 --label app=web -l version=v1 --cluster-id east --locality eu/eu-a/r7 --intercept none --sotw \
             --ip 10.1.2.3 --ip fd00::3 --node-name n1 --admin-address [::1]:9901 \
             --stats-listen 0.0.0.0:15090 --load-reports off",
        );
        assert_eq!(json["cluster_manager"], Value::Null);
        let node = &json["node"];
        assert_eq!(node["cluster"], "web.default");
        assert_eq!(node["id"], "sidecar~10.1.2.3~envoy.default~default.svc.cluster.local");
        assert_eq!(node["metadata"]["INSTANCE_IPS"], "10.1.2.3,fd00::3");
        assert_eq!(node["metadata"]["NODE_NAME"], "n1");
        assert_eq!(
            node["metadata"]["LABELS"],
            serde_json::json!({ "app": "web", "version": "v1" })
        );
        assert_eq!(node["metadata"]["CLUSTER_ID"], "east");
        assert_eq!(node["metadata"]["INTERCEPTION_MODE"], "NONE");
        assert_eq!(
            node["locality"],
            serde_json::json!({ "region": "eu", "zone": "eu-a", "sub_zone": "r7" })
        );
        assert_eq!(json["dynamic_resources"]["ads_config"]["api_type"], "GRPC");
        assert_eq!(json["static_resources"]["clusters"][0]["type"], "STRICT_DNS");
        assert_eq!(json["admin"]["address"]["socket_address"]["address"], "::1");
        let listener = &json["static_resources"]["listeners"][0];
        assert_eq!(listener["address"]["socket_address"]["port_value"], 15090);
    }

    #[test]
    fn wrong_flags_are_wrong_usage() {
        for (flags, part) in [
            ("--label app", "KEY=VALUE"),
            ("--ip 1.2.3", "invalid IP address"),
            ("--namespace a.b", "not a DNS label"),
            ("--namespace a~b", "not a DNS label"),
            ("--pod a~b", "not a DNS name"),
            ("--xds weir", "HOST:PORT"),
            ("--type router", "possible values: sidecar"),
            ("--intercept maybe", "possible values: redirect, none"),
            ("--locality /zone", "REGION/ZONE/SUBZONE"),
            ("--node-id sidecar~1.2.3.4", "has 4"),
            ("--token-file t --root-cert r", "--file"),
            ("--token-file t --file f", "--root-cert"),
            ("--service-account web", "--token-file"),
            ("--node-id sidecar~1.2.3.4~a.b~c --ip 1.2.3.4", "cannot be used with"),
        ] {
            let error = parse(flags).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{flags}");
            assert!(error.to_string().contains(part), "{flags}: {error}");
        }
    }
}
