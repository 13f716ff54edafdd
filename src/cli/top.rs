//! `weir top`: a live view of canaries and proxies in the terminal.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use tonic::Streaming;
use tonic::transport::Channel;

use super::remote::{AdminArgs, status_error};
use super::signals::Signals;
use super::{ps, splits};
use crate::admin::api::v1;
use crate::admin::api::v1::admin_client::AdminClient;

/// Watch canaries and proxies: which weights are live where, what they get, and which proxies are behind
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir top
  weir top -n shop

Proxies that lag or reject something come first, then those that take in a change. Ctrl-C ends it.
weir splits -w and weir ps print the same as lines.

Exit status: 130 ended by Ctrl-C, 1 weir cannot be reached, 2 usage error.")]
pub(crate) struct Args {
    #[command(flatten)]
    admin: AdminArgs,
    /// Only canaries and proxies in this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

/// How often the proxies are asked for.
const EACH: Duration = Duration::from_secs(1);

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if !std::io::stdout().is_terminal() {
        return Err(super::usage(
            "weir top needs a terminal; weir splits -w and weir ps print lines",
        ));
    }
    let mut signals = Signals::new()?;
    // The first connection must work: a wrong address is an error and not a view.
    let mut client = args.admin.client().await?;
    let mut view =
        View { namespace: args.namespace.clone().unwrap_or_default(), ..View::default() };
    let screen = Screen::open()?;
    loop {
        let ended = tokio::select! {
            ended = view.follow(&mut client, &screen) => ended,
            status = signals.any() => return Ok(ExitCode::from(status)),
        };
        view.trouble = match ended {
            Ok(()) => "weir closed the stream; trying again".to_owned(),
            Err(error) => format!("{error:#}; trying again"),
        };
        screen.show(&view)?;
        tokio::select! {
            () = tokio::time::sleep(EACH) => {}
            status = signals.any() => return Ok(ExitCode::from(status)),
        }
        if let Ok(next) = args.admin.client().await {
            client = next;
        }
    }
}

/// What is shown.
#[derive(Debug, Default)]
struct View {
    namespace: String,
    splits: v1::ListSplitsResponse,
    proxies: v1::ListProxiesResponse,
    /// Why it is not current; empty if it is.
    trouble: String,
}

impl View {
    /// Shows each change until weir ends the stream.
    async fn follow(
        &mut self,
        client: &mut AdminClient<Channel>,
        screen: &Screen,
    ) -> anyhow::Result<()> {
        let request = v1::ListSplitsRequest { namespace: self.namespace.clone() };
        let mut updates: Streaming<_> =
            client.watch_splits(request).await.map_err(status_error)?.into_inner();
        let mut ticks = tokio::time::interval(EACH);
        loop {
            tokio::select! {
                update = updates.message() => match update.map_err(status_error)? {
                    Some(splits) => self.splits = splits,
                    None => return Ok(()),
                },
                _ = ticks.tick() => {
                    let answer = client.list_proxies(v1::ListProxiesRequest {}).await;
                    self.proxies = answer.map_err(status_error)?.into_inner();
                    self.sort();
                }
            }
            self.trouble.clear();
            screen.show(self)?;
        }
    }

    /// Keeps the proxies of the namespace, those in trouble first.
    fn sort(&mut self) {
        let namespace = &self.namespace;
        self.proxies.proxies.retain(|proxy| namespace.is_empty() || proxy.namespace == *namespace);
        self.proxies.proxies.sort_by_cached_key(|proxy| (urgency(proxy), proxy.id.clone()));
    }

    /// The lines that fit a screen.
    fn lines(&self, width: usize, height: usize) -> Vec<String> {
        let proxies = &self.proxies.proxies;
        let [troubled, busy] =
            [0, 1].map(|urgent| proxies.iter().filter(|proxy| urgency(proxy) == urgent).count());
        let mut lines = vec![format!(
            "weir: {} proxies, {} in trouble, {} taking in a change, {} weighted routes",
            proxies.len(),
            troubled,
            busy,
            self.splits.splits.len()
        )];
        if !self.trouble.is_empty() {
            lines.push(self.trouble.clone());
        }
        lines.push(String::new());
        let splits = splits::text(&self.splits);
        let ps = ps::text(&self.proxies);
        // Canaries get up to two thirds, and all that proxies do not need.
        let room = height.saturating_sub(lines.len() + 1);
        let (splits, ps): (Vec<_>, Vec<_>) = (splits.lines().collect(), ps.lines().collect());
        let of_splits = splits.len().min((room * 2 / 3).max(room.saturating_sub(ps.len())));
        lines.extend(splits[..of_splits].iter().map(|line| (*line).to_owned()));
        lines.push(String::new());
        lines.extend(ps.iter().map(|line| (*line).to_owned()));
        lines.truncate(height);
        lines.iter().map(|line| line.chars().take(width).collect()).collect()
    }
}

/// 0 for a proxy that lags or rejects something, 1 for one that has not everything yet, 2 for the others.
fn urgency(proxy: &v1::Proxy) -> u8 {
    if !proxy.lagging.is_empty() || !proxy.rejected.is_empty() {
        0
    } else if proxy.acked != proxy.wanted || !proxy.held.is_empty() {
        1
    } else {
        2
    }
}

/// The terminal's other screen; the first one comes back on drop.
#[derive(Debug)]
struct Screen;

impl Screen {
    fn open() -> std::io::Result<Self> {
        let mut out = std::io::stdout().lock();
        out.write_all(b"\x1b[?1049h\x1b[?25l")?;
        out.flush()?;
        Ok(Self)
    }

    fn show(&self, view: &View) -> std::io::Result<()> {
        let size = terminal_size::terminal_size_of(std::io::stdout());
        let (width, height) = size.map_or((80, 24), |(width, height)| (width.0, height.0));
        let lines = view.lines(width.into(), height.into());
        // Each line replaces what was there, so nothing flickers.
        let text = format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"));
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A closed terminal needs nothing back.
        let _ = std::io::stdout().lock().write_all(b"\x1b[?25h\x1b[?1049l");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(pod: &str, acked: Option<u64>, lagging: &str) -> v1::Proxy {
        v1::Proxy {
            id: pod.to_owned(),
            namespace: "shop".to_owned(),
            pod: pod.to_owned(),
            acked,
            wanted: Some(2),
            lagging: lagging.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn proxies_in_trouble_come_first_and_nothing_exceeds_the_screen() {
        let mut view = View { namespace: "shop".to_owned(), ..View::default() };
        view.proxies.proxies = vec![
            proxy("web-0", Some(2), ""),
            proxy("web-1", Some(1), ""),
            proxy("web-2", Some(1), "it does not answer"),
            v1::Proxy { namespace: "other".to_owned(), ..proxy("web-3", None, "") },
        ];
        view.sort();
        let pods: Vec<_> = view.proxies.proxies.iter().map(|proxy| &*proxy.pod).collect();
        assert_eq!(pods, ["web-2", "web-1", "web-0"]);
        let lines = view.lines(80, 24);
        assert_eq!(
            lines[0],
            "weir: 3 proxies, 1 in trouble, 1 taking in a change, 0 weighted routes"
        );
        assert!(lines.iter().any(|line| line.contains("shop/web-2")), "{lines:#?}");
        for (width, height) in [(80, 24), (20, 5), (1, 1), (0, 0)] {
            let lines = view.lines(width, height);
            assert!(lines.len() <= height && lines.iter().all(|l| l.chars().count() <= width));
        }
    }
}
