//! What arbitrary bytes do to the TLS port: below TLS, inside of it, as tokens and as signing requests. weir refuses them in
//! words, takes no memory for them, and goes on serving. The bytes are the same each time; `WEIR_FUZZ_CASES` asks for more.

use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConnection;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::Code;

use crate::identity::{NAME, WEB_0, World, trusting};
use crate::support::mesh::{DEADLINE, until};

/// How many connections are open at a time.
const AT_A_TIME: usize = 16;

/// How much more memory weir may take after all of it, in KiB: far less than what the bytes would take if it kept them.
const MEMORY: u64 = 96 << 10;

fn cases(usual: usize) -> usize {
    let wanted = std::env::var("WEIR_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok());
    wanted.unwrap_or(usual)
}

/// Random numbers that are always the same (Marsaglia's xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.roll(256)).unwrap()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.roll(most);
        (0..length).map(|_| self.byte()).collect()
    }

    /// What is right, with some bytes changed, cut off or repeated; or anything.
    fn damage(&mut self, right: &[u8]) -> Vec<u8> {
        let mut bytes = right.to_vec();
        for _ in 0..=self.roll(4) {
            let at = self.roll(bytes.len().max(1));
            match self.roll(6) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_within(at.min(right.len().min(bytes.len()))..),
                2 => return self.bytes(2000),
                _ => {
                    let byte = self.byte();
                    if let Some(changed) = bytes.get_mut(at) {
                        *changed = byte;
                    }
                }
            }
        }
        bytes
    }
}

/// Sends bytes, and reads until weir closes the connection; it may have done so before.
async fn say<S>(mut stream: S, bytes: Vec<u8>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let _ = stream.write_all(&bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "weir keeps a connection whose client has ended it: {bytes:?}");
}

/// The first bytes of a client that speaks TLS.
fn hello(world: &World) -> Vec<u8> {
    let name = ServerName::try_from(NAME).unwrap();
    let mut client = ClientConnection::new(trusting(&world.roots), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// The preface of HTTP/2, settings, and a call of the certificate service with a body.
fn http2() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    let path = b"/istio.v1.auth.IstioCertificateService/CreateCertificate";
    // Literal headers without indexing, names from the static table (RFC 7541): POST, http, the path.
    let mut headers = vec![0x83, 0x86, 4, u8::try_from(path.len()).unwrap()];
    headers.extend(path);
    let length = u8::try_from(headers.len()).unwrap();
    bytes.extend([0, 0, length, 1, 4, 0, 0, 0, 1]);
    bytes.extend(headers);
    bytes.extend([0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 2, 8, 1]);
    bytes
}

async fn with_room(tasks: &mut JoinSet<()>) {
    while tasks.len() >= AT_A_TIME {
        tasks.join_next().await.unwrap().unwrap();
    }
}

/// The memory of weir, in KiB.
fn memory(world: &World) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.serve.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn connections(world: &World) -> u64 {
    let name = "weir_admitted{port=\"xds\",resource=\"connections\"} ";
    world.serve.metric(name).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arbitrary_bytes_on_the_tls_port_change_nothing() {
    let test = "arbitrary_bytes_on_the_tls_port_change_nothing";
    let Some(world) = World::start(test, &[]).await else {
        return;
    };
    let token = world.token("web", Some("web-0"), "istio-ca");
    world.ask(Some(&token), &WEB_0).await.unwrap();
    let before = memory(&world);
    let (mut dice, mut tasks) = (Dice(0x5eed), JoinSet::new());
    let (hello, http2) = (hello(&world), http2());
    let tls = TlsConnector::from(trusting(&world.roots));
    for _ in 0..cases(300) {
        let (below, inside) = (dice.damage(&hello), dice.damage(&http2));
        let (tls, port) = (tls.clone(), world.port);
        tasks.spawn(async move {
            // weir may refuse a connection while others are open.
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
                say(stream, below).await;
            }
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await
                && let Ok(stream) = tls.connect(ServerName::try_from(NAME).unwrap(), stream).await
            {
                say(stream, inside).await;
            }
        });
        with_room(&mut tasks).await;
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    until("all connections are gone", async || connections(&world).await == 0).await;
    world.ask(Some(&token), &WEB_0).await.unwrap();
    let after = memory(&world);
    assert!(after < before + MEMORY, "{before} KiB before, {after} KiB after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arbitrary_tokens_and_signing_requests_are_refused_in_words() {
    let test = "arbitrary_tokens_and_signing_requests_are_refused_in_words";
    let Some(world) = World::start(test, &[]).await else {
        return;
    };
    let world = Arc::new(world);
    let token = world.token("web", Some("web-0"), "istio-ca");
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap();
    let (pem, der) = (request.pem().unwrap(), request.der().to_vec());
    world.sign(Some(&token), &pem, 0).await.unwrap();
    let before = memory(&world);
    let mut dice = Dice(0xc5a);
    for _ in 0..cases(60) {
        let wrong: String = dice
            .damage(token.as_bytes())
            .into_iter()
            .map(|byte| char::from(b'!' + byte % 94))
            .collect();
        if wrong != token && !wrong.is_empty() {
            let status = world.sign(Some(&wrong), &pem, 0).await.unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied, "{wrong}: {status}");
        }
        let damaged = match dice.roll(3) {
            0 => String::from_utf8_lossy(&dice.damage(pem.as_bytes())).into_owned(),
            _ => {
                let der = dice.damage(&der);
                pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der))
            }
        };
        if let Err(status) = world.sign(Some(&token), &damaged, 0).await {
            assert_eq!(status.code(), Code::InvalidArgument, "{damaged}: {status}");
            let said = status.message();
            assert!(said.starts_with("the certificate signing request"), "{damaged}: {said}");
        }
    }
    world.sign(Some(&token), &pem, 0).await.unwrap();
    let after = memory(&world);
    assert!(after < before + MEMORY, "{before} KiB before, {after} KiB after");
}
