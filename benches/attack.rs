//! Measures the impact of hostile clients on well-behaved ones.
//!
//! `cargo bench --bench attack` starts `weir serve` on a folder of 100 Services and plays each attack of
//! `tests/support/hostile.rs` in turn, 20 000 streams (or connections) of each from several loopback addresses.
//! Meanwhile new proxies connect and a weight changes again and again. It fails if a new proxy waits for more than a
//! second, if a weight takes more than twice as long as without an attack (or 100 ms, if that is more), or if resident
//! memory exceeds 256 MB or does not return to within 1.5 times its previous value. `WEIR_STREAMS` sets the number of
//! streams, `WEIR_ATTACKS` the attacks (such as `RapidReset,Silent`), `WEIR_SERVE` additional flags of weir, and
//! `WEIR_BINARY` the binary.

#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../tests/support/hostile.rs"]
mod hostile;

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hostile::{Attack, Watcher};

const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The minimum and maximum duration of an attack.
const AT_LEAST: Duration = Duration::from_secs(3);
const AT_MOST: Duration = Duration::from_secs(40);

/// How long memory may take to return to normal.
const COMES_BACK: Duration = Duration::from_secs(20);

const SERVED: Duration = Duration::from_secs(1);
const WEIGHT: Duration = Duration::from_millis(100);
const RESIDENT: f64 = 256.0;

struct Weir {
    child: Child,
    xds: SocketAddr,
    admin: SocketAddr,
}

fn free_address() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind((PROXY, 0))?.local_addr()
}

impl Drop for Weir {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Weir {
    async fn start(folder: &Path) -> Result<Self, Box<dyn Error>> {
        let [xds, admin] = [free_address()?, free_address()?];
        let more =
            std::env::var("WEIR_SERVE").unwrap_or_else(|_| "--client-memory 128M".to_owned());
        let binary =
            std::env::var_os("WEIR_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_weir").into());
        let child = Command::new(binary)
            .args(["serve", "--log", "error", "--config-dir"])
            .arg(folder)
            .args(["--xds-listen", &xds.to_string(), "--admin-listen", &admin.to_string()])
            .args(more.split_whitespace())
            .stdin(Stdio::null())
            .spawn()?;
        let this = Self { child, xds, admin };
        while weir::envoy::Admin::new(this.admin).get("/ready").await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(this)
    }

    /// Resident memory in MB.
    fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .unwrap_or_default();
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        kib.unwrap_or(0.0) / 1024.0
    }
}

fn service(n: usize) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: bench}}\nspec:\n  clusterIP: 10.96.0.{n}\n  \
         ports: [{{name: http, port: 80, targetPort: 8080}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: \
         EndpointSlice\nmetadata: {{name: s{n}-1, namespace: bench, labels: {{kubernetes.io/service-name: s{n}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n"
    );
    for pod in 0..4 {
        text += &format!("- {{addresses: [10.1.{pod}.{n}]}}\n");
    }
    text
}

fn route(weight: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: s1, namespace: bench}}\nspec:\n  \
         hosts: [s1]\n  http:\n  - route:\n    - {{destination: {{host: s1}}, weight: {}}}\n    - {{destination: {{host: \
         s2}}, weight: {weight}}}\n",
        100 - weight
    )
}

fn write(folder: &Path, name: &str, text: &str) -> std::io::Result<()> {
    let temporary = folder.join(format!(".{name}"));
    std::fs::write(&temporary, text)?;
    std::fs::rename(temporary, folder.join(name))
}

/// Latencies of well-behaved clients.
#[derive(Default)]
struct Times {
    served: Vec<Duration>,
    weight: Vec<Duration>,
    resident: f64,
}

fn most(times: &[Duration]) -> Duration {
    times.iter().max().copied().unwrap_or_default()
}

fn middle(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

struct Bench<'a> {
    folder: &'a Path,
    weir: Weir,
    watcher: Watcher,
    weight: u32,
}

impl Bench<'_> {
    /// Connects a new proxy and changes a weight.
    async fn round(&mut self, times: &mut Times) -> Result<(), Box<dyn Error>> {
        let begun = Instant::now();
        let served = tokio::time::timeout(AT_MOST, hostile::served(PROXY, self.weir.xds)).await;
        times.served.push(begun.elapsed());
        drop(served??);
        self.weight = self.weight % 90 + 1;
        let begun = Instant::now();
        write(self.folder, "route.yaml", &route(self.weight))?;
        tokio::time::timeout(AT_MOST, self.watcher.next()).await??;
        times.weight.push(begun.elapsed());
        times.resident = times.resident.max(self.weir.resident());
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(())
    }

    /// Waits for memory to return to normal and returns the resident size.
    async fn afterwards(&self, before: f64) -> f64 {
        let begun = Instant::now();
        loop {
            let resident = self.weir.resident();
            if resident <= before * 1.5 || begun.elapsed() > COMES_BACK {
                return resident;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn attack(
        &mut self,
        attack: Attack,
        count: usize,
        quiet: Duration,
    ) -> Result<bool, Box<dyn Error>> {
        let before = self.weir.resident();
        let tried = Arc::new(AtomicUsize::new(0));
        let attackers = attack.start(self.weir.xds, count, &tried);
        let (mut times, begun) = (Times::default(), Instant::now());
        loop {
            let over = tried.load(Ordering::Relaxed) >= count && begun.elapsed() > AT_LEAST;
            if over || begun.elapsed() > AT_MOST {
                break;
            }
            self.round(&mut times).await?;
        }
        let (tried, took) = (tried.load(Ordering::Relaxed).min(count), begun.elapsed());
        drop(attackers);
        let after = self.afterwards(before).await;
        let (served, weight) = (most(&times.served), middle(&mut times.weight));
        let fine = served <= SERVED
            && weight <= (quiet * 2).max(WEIGHT)
            && times.resident <= RESIDENT
            && after <= before * 1.5;
        println!(
            "{:<14} {tried:>7} {:>6.1} {:>10.0} {:>10.1} {:>10.1} {before:>8.0} {:>8.0} {after:>8.0}  {}",
            format!("{attack:?}"),
            took.as_secs_f64(),
            ms(served),
            ms(weight),
            ms(most(&times.weight)),
            times.resident,
            if fine { "" } else { "FAILED" }
        );
        Ok(fine)
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let count =
        std::env::var("WEIR_STREAMS").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000);
    let chosen = std::env::var("WEIR_ATTACKS").unwrap_or_default();
    let folder = tempfile::tempdir()?;
    for n in 1..=100 {
        write(folder.path(), &format!("s{n}.yaml"), &service(n))?;
    }
    write(folder.path(), "route.yaml", &route(50))?;
    weir::admission::descriptors::raise();
    let weir = Weir::start(folder.path()).await?;
    let watcher = Watcher::new(PROXY, weir.xds, "80").await?;
    let mut bench = Bench { folder: folder.path(), weir, watcher, weight: 0 };
    let mut quiet = Times::default();
    for _ in 0..20 {
        bench.round(&mut quiet).await?;
    }
    println!(
        "quiet: a new proxy is served after {:.1} ms, a weight takes {:.1} ms, {:.0} MB resident",
        ms(most(&quiet.served)),
        ms(middle(&mut quiet.weight)),
        quiet.resident
    );
    println!(
        "{:<14} {:>7} {:>6} {:>10} {:>10} {:>10} {:>8} {:>8} {:>8}",
        "attack", "tried", "s", "served ms", "weight ms", "most ms", "MB", "MB most", "MB after"
    );
    let quiet = middle(&mut quiet.weight);
    let mut fine = true;
    for attack in Attack::ALL {
        if chosen.is_empty() || chosen.split(',').any(|name| name == format!("{attack:?}")) {
            fine &= bench.attack(attack, count, quiet).await?;
        }
    }
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
