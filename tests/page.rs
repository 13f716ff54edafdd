//! The web page on the admin port, in a real browser, with `weir demo --keep` behind it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::browser::Browser;

/// A demo that keeps running, and what it says about itself.
struct Demo {
    process: Child,
    /// The file with the VirtualService.
    route: PathBuf,
    /// The address of the page, without a slash at its end.
    page: String,
    _folder: tempfile::TempDir,
}

impl Demo {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["demo", "--keep", "--steps", "100,0", "--requests", "100"])
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut said = |start: &str| {
            let line = lines.find_map(|line| {
                let line = line.unwrap();
                line.trim_start().starts_with(start).then(|| line.trim_start().to_owned())
            });
            line.unwrap_or_else(|| panic!("the demo does not print {start}"))
        };
        let route = said("Still running.").rsplit(' ').next().unwrap().into();
        let page = said("http://").split("/ ").next().unwrap().to_owned();
        Self { process, route, page, _folder: folder }
    }

    /// Replaces a text in the file with the VirtualService, in one step.
    fn edit(&self, change: impl Fn(&str) -> String) {
        let text = std::fs::read_to_string(&self.route).unwrap();
        let changed = change(&text);
        assert_ne!(changed, text);
        let new = self.route.with_extension("new");
        std::fs::write(&new, changed).unwrap();
        std::fs::rename(new, &self.route).unwrap();
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It ends its Envoy itself. It may have ended already.
        let _ = kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGINT);
        let _ = self.process.wait();
    }
}

const TEXT: &str = "document.querySelector('main').innerText";

fn says(text: &str) -> String {
    format!("{TEXT}.includes({})", Value::from(text))
}

#[test]
fn a_newcomer_sees_the_canary_move_and_finds_why_it_does_not() {
    let Some(mut browser) =
        Browser::start("a_newcomer_sees_the_canary_move_and_finds_why_it_does_not")
    else {
        return;
    };
    let demo = Demo::start();
    it_follows_the_weights(&mut browser, &demo);
    it_names_what_is_wrong(&mut browser, &demo);
    links_lead_to_places(&mut browser, &demo);
    it_fits_a_phone_in_the_dark(&mut browser, &demo);
    // The wrong question is answered with status 400, and nothing else may fail.
    browser.complaints.retain(|complaint| !complaint.contains("/api/v1/explain?"));
    assert_eq!(browser.complaints, [""; 0]);
}

fn it_follows_the_weights(browser: &mut Browser, demo: &Demo) {
    browser.appear(1200, 900, false);
    browser.open(&format!("{}/", demo.page));
    browser.wait(&says("my-app.shop.svc.cluster.local v2"));
    browser.wait(&format!("/50 %\\s+50 %/.test({TEXT})"));
    assert_eq!(browser.value("document.title"), "The mesh at a glance · weir");

    // The page follows by itself.
    demo.edit(|text| {
        text.replacen("weight: 50", "weight: 80", 1).replacen("weight: 50", "weight: 20", 1)
    });
    browser.wait(&format!("/80 %\\s+80 %/.test({TEXT}) && /20 %\\s+20 %/.test({TEXT})"));

    // By keyboard to the canaries, and by a link to one of them.
    browser.press("c");
    browser.wait("document.querySelector('h1').innerText === 'Canaries'");
    browser.value("document.querySelector('td a').click()");
    browser.wait("document.querySelector('h1').innerText === 'shop/my-app'");
    browser.wait(&says("Live on 1 of 1 proxies"));
}

fn it_names_what_is_wrong(browser: &mut Browser, demo: &Demo) {
    // A wrong object is named, with markup as text; the last good version stays.
    demo.edit(|text| text.replacen("weight: 80", "weight: '<img src=x onerror=alert(1)>'", 1));
    browser.wait(&says("The newest version is rejected"));
    browser.wait(&says("onerror=alert(1)"));
    assert_eq!(browser.value("document.images.length"), 0);
    assert_eq!(browser.value(&format!("/80 %\\s+80 %/.test({TEXT})")), true);
    browser.press("f");
    browser.wait(&says("VirtualService shop/my-app"));
    browser.wait("document.querySelector('td .bad').innerText === 'error'");
}

fn links_lead_to_places(browser: &mut Browser, demo: &Demo) {
    // Deep links: a proxy, an explanation, and places that do not exist.
    browser.open(&format!("{}/#/proxies/shop/client-0", demo.page));
    browser.wait(&says("No difference: it was sent just what a translation from scratch gives."));
    browser.wait(&says("outbound|"));
    browser.value("document.querySelector('details').open = true");
    browser.wait("document.querySelector('details pre').innerText.includes('BlackHoleCluster')");
    let request = "GET%20http%3A%2F%2Fmy-app.shop%3APORT%2F";
    let port = browser.value("fetch('/api/v1/dump?proxy=shop/client-0&type=RDS').then((a) => a.json()).then((a) => a.resources[0].name)");
    let request = request.replace("PORT", port.as_str().unwrap());
    browser.open(&format!("{}/#/explain?from=shop%2Fclient-0&request={request}", demo.page));
    browser.wait(&says("It is served"));
    browser.wait(&says("80.00 %"));
    browser.value("document.querySelector('[name=request]').value = 'nonsense'");
    browser.value("document.querySelector('form button').click()");
    browser.wait(&says("does not start with http:// or https://"));
    assert!(browser.value("location.hash").as_str().unwrap().contains("request=nonsense"));
}

fn it_fits_a_phone_in_the_dark(browser: &mut Browser, demo: &Demo) {
    // A phone in the dark: nothing is wider than the screen, and the colours differ.
    let colour = "getComputedStyle(document.body).backgroundColor";
    let bright = browser.value(colour);
    browser.appear(390, 800, true);
    assert_ne!(browser.value(colour), bright);
    for view in [
        "",
        "canaries",
        "canaries/shop/my-app",
        "proxies",
        "proxies/shop/client-0",
        "explain",
        "findings",
    ] {
        browser.open(&format!("{}/#/{view}", demo.page));
        browser.wait("document.querySelector('main h1')");
        let wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth";
        assert_eq!(browser.value(wide), false, "{view}");
    }
    let unnamed = "[...document.querySelectorAll('input, textarea, svg[role=img], nav')]\
        .filter((each) => !(each.labels?.length || each.getAttribute('aria-label'))).length";
    assert_eq!(browser.value(unnamed), 0);
}
